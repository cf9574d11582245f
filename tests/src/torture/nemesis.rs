//! Carries out faults, and heals them.

use super::{
    deployment::LEASE,
    disk::Disk,
    fleet::{Fleet, Kind, Member},
    load::{CANCELED_PERCENT, Load},
    schedule::{Fault, Step},
    watcher::{Counts, Watcher},
};
use crate::{
    proxy::Mode,
    services::{Postgres, RabbitMq, Shutdown, Vhost},
};
use anyhow::{Context as _, Result};
use jobgate_shared::clock::{Clock as _, SystemClock};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

/// How far a clock is set wrong, at most.
const OFFSET_SECONDS: i32 = 600;
/// Of a hundred commits, how many go unanswered while that is the fault.
const UNKNOWN_SHARE: f64 = 0.25;

/// What became of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// The step.
    #[serde(flatten)]
    pub step: Step,
    /// When it began, since the run did.
    pub began: Duration,
    /// How long the faults lasted.
    pub lasted: Duration,
    /// From its heal to the end of every job accepted before it; nothing if that was not waited for to its end.
    pub settled_after: Option<Duration>,
    /// What was done from its beginning until it had settled.
    pub meanwhile: Counts,
    /// Faults that could not be made here, and why.
    pub not_run: Vec<String>,
}

/// Everything a fault may touch.
#[derive(Debug)]
pub struct Nemesis {
    /// The processes.
    pub fleet: Arc<Fleet>,
    /// The producers.
    pub load: Arc<Load>,
    /// The database server.
    pub postgres: Mutex<Postgres>,
    /// The broker.
    pub rabbitmq: Mutex<RabbitMq>,
    /// The fleet's corner of it.
    pub vhost: Vhost,
    /// The disk under the spool, if it is one of its own.
    pub disk: Option<Disk>,
    /// The queues that can be purged.
    pub queues: Vec<String>,
    /// Sees when all is settled.
    pub watcher: Arc<Watcher>,
}

impl Nemesis {
    /// Carries out a step, heals, and waits at most `patience` until what was accepted before has ended.
    pub async fn carry_out(&self, step: Step, run_began: Instant, patience: Duration) -> Result<Done> {
        let before = self.watcher.standing().borrow().counts;
        let began = Instant::now();
        let inflicted = step.faults.iter().enumerate().map(|(n, fault)| {
            let rng = StdRng::seed_from_u64(step.seed.wrapping_add(n as u64));
            self.inflict(*fault, rng)
        });
        let not_run = futures::future::try_join_all(inflicted).await;
        self.heal().await?;
        let healed = Instant::now();
        let settled = self.settled(healed, patience).await;
        let after = self.watcher.standing().borrow().counts;
        Ok(Done {
            step,
            began: began - run_began,
            lasted: healed - began,
            settled_after: settled,
            meanwhile: after.since(before),
            not_run: not_run?.into_iter().flatten().collect(),
        })
    }

    /// Ends every fault there may be.
    pub async fn heal(&self) -> Result<()> {
        self.load.canceled_percent.store(CANCELED_PERCENT, Ordering::Relaxed);
        if let Some(disk) = &self.disk {
            disk.free()?;
        }
        let mut postgres = self.postgres.lock().await;
        if !postgres.is_running()? {
            postgres.start_again().await?;
        }
        let mut rabbitmq = self.rabbitmq.lock().await;
        if !rabbitmq.is_running()? {
            rabbitmq.start_again().await?;
        }
        self.fleet.heal().await
    }

    /// How long after `healed` every job accepted before it had ended.
    async fn settled(&self, healed: Instant, patience: Duration) -> Option<Duration> {
        let accepted_by = SystemClock.now();
        let mut standing = self.watcher.standing();
        let settled = standing.wait_for(|standing| {
            standing.at > healed && standing.oldest_open.is_none_or(|oldest| oldest > accepted_by)
        });
        let seen = timeout(patience, settled).await.ok()?.ok()?.at;
        Some(seen - healed)
    }

    /// What the fault could not do here, if anything.
    async fn inflict(&self, fault: Fault, mut rng: StdRng) -> Result<Option<String>> {
        let lasts = fault.lasts();
        match fault {
            Fault::KillWorkers => self.kill(&[Kind::Worker], lasts, &mut rng).await?,
            Fault::KillGateway => self.kill(&[Kind::Api, Kind::Recorder], lasts, &mut rng).await?,
            Fault::FreezeWorkers => self.freeze(&[Kind::Worker], lasts, &mut rng).await?,
            Fault::FreezeGateway => self.freeze(&[Kind::Api, Kind::Recorder], lasts, &mut rng).await?,
            Fault::BrokerRestart => {
                let mut rabbitmq = self.rabbitmq.lock().await;
                if rng.random_bool(0.5) {
                    rabbitmq.kill()?;
                } else {
                    rabbitmq.stop().await?;
                }
                sleep(lasts).await;
                rabbitmq.start_again().await?;
            }
            Fault::MemoryAlarm => {
                let rabbitmq = self.rabbitmq.lock().await;
                rabbitmq.set_memory_alarm().await?;
                sleep(lasts).await;
                rabbitmq.clear_memory_alarm().await?;
            }
            Fault::QueuePurge => return self.purge(lasts, &mut rng).await,
            Fault::DatabaseRestart => {
                let mut postgres = self.postgres.lock().await;
                postgres.restart(Shutdown::Immediate).await?;
                sleep(lasts).await;
                postgres.stop(Shutdown::Immediate).await?;
                sleep(rng.random_range(Duration::ZERO..LEASE)).await;
                postgres.start_again().await?;
            }
            Fault::BackendKills => self.kill_backends(lasts, &mut rng).await?,
            Fault::DatabaseSilent => {
                self.silence(lasts, &mut rng, |member, mode| member.database.set(mode)).await;
            }
            Fault::BrokerSilent => {
                self.silence(lasts, &mut rng, |member, mode| member.broker.set(mode)).await;
            }
            Fault::UnknownCommits => {
                self.on_links(|member, _| member.database.set(Mode::UnknownCommits(UNKNOWN_SHARE)), &mut rng);
                sleep(lasts).await;
            }
            Fault::Cuts => self.cut(lasts, &mut rng).await,
            Fault::Delays => {
                let slow = |member: &Member, rng: &mut StdRng| {
                    let pause = rng.random_range(Duration::from_millis(20)..Duration::from_millis(300));
                    member.database.set(Mode::Delay(pause));
                    member.broker.set(Mode::Delay(pause));
                };
                self.on_links(slow, &mut rng);
                sleep(lasts).await;
            }
            Fault::Clocks => return self.turn_clocks(lasts, &mut rng).await,
            Fault::DiskFull => {
                let Some(disk) = &self.disk else {
                    return Ok(Some("disk-full: nothing can be mounted here".to_owned()));
                };
                disk.fill()?;
                sleep(lasts).await;
                disk.free()?;
            }
            Fault::CancelRace => {
                self.load.canceled_percent.store(100, Ordering::Relaxed);
                self.kill(&[Kind::Worker], lasts, &mut rng).await?;
            }
        }
        Ok(None)
    }

    async fn kill(&self, kinds: &[Kind], lasts: Duration, rng: &mut StdRng) -> Result<()> {
        let end = Instant::now() + lasts;
        while Instant::now() < end {
            let victim = self.one_of(kinds, rng)?;
            victim.kill().await?;
            sleep(rng.random_range(Duration::ZERO..Duration::from_secs(1))).await;
            victim.start().await?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    async fn freeze(&self, kinds: &[Kind], lasts: Duration, rng: &mut StdRng) -> Result<()> {
        let first = self.one_of(kinds, rng)?;
        // Another one: frozen twice it would be thawed once too early.
        let second = loop {
            let second = self.one_of(kinds, rng)?;
            if !std::ptr::eq(first, second) {
                break second;
            }
        };
        first.freeze().await?;
        sleep(rng.random_range(Duration::ZERO..Duration::from_secs(1))).await;
        second.freeze().await?;
        sleep(lasts).await;
        first.thaw().await?;
        second.thaw().await
    }

    fn one_of(&self, kinds: &[Kind], rng: &mut StdRng) -> Result<&Member> {
        let members: Vec<&Member> = kinds.iter().flat_map(|kind| self.fleet.of(*kind)).collect();
        members.choose(rng).copied().context("nobody to choose from")
    }

    async fn purge(&self, lasts: Duration, rng: &mut StdRng) -> Result<Option<String>> {
        let end = Instant::now() + lasts;
        let (mut purged, mut failed) = (false, None);
        let deleted = self.queues.choose(rng).context("no queue")?;
        self.vhost.delete_queue(deleted).await?;
        while Instant::now() < end {
            for queue in &self.queues {
                match self.vhost.purge(queue).await {
                    Ok(_) => purged = true,
                    // What was deleted comes back when somebody needs it.
                    Err(_) if queue == deleted => {}
                    Err(error) => failed = Some(format!("queue-purge: {queue}: {error:#}")),
                }
            }
            sleep(Duration::from_millis(700)).await;
        }
        // With another fault beside it, it need not succeed every time.
        Ok(failed.filter(|_| !purged))
    }

    async fn kill_backends(&self, lasts: Duration, rng: &mut StdRng) -> Result<()> {
        let url = self.postgres.lock().await.admin_url();
        let mut connection = PgConnection::connect(&url).await?;
        let end = Instant::now() + lasts;
        while Instant::now() < end {
            sqlx::query(
                "-- kill_backends
                 SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < $1",
            )
            .bind(rng.random_range(0.1..0.6))
            .execute(&mut connection)
            .await?;
            sleep(rng.random_range(Duration::from_millis(200)..Duration::from_millis(900))).await;
        }
        Ok(connection.close().await?)
    }

    /// Nothing passes, or nothing in one direction, for some of the fleet or all of it. In the end half of them get what was
    /// held back, the other half never.
    async fn silence(&self, lasts: Duration, rng: &mut StdRng, set: impl Fn(&Member, Mode)) {
        let share = *[0.4, 1.0].choose(rng).unwrap_or(&1.0);
        let mut silent = Vec::new();
        for member in &self.fleet.members {
            if rng.random_bool(share) {
                let (up, down) =
                    *[(true, true), (true, false), (false, true)].choose(rng).unwrap_or(&(true, true));
                set(member, Mode::Stall { up, down });
                silent.push(member);
            }
        }
        sleep(lasts).await;
        for member in silent {
            if rng.random_bool(0.5) {
                set(member, Mode::Refuse);
            }
            set(member, Mode::Pass);
        }
    }

    async fn cut(&self, lasts: Duration, rng: &mut StdRng) {
        let end = Instant::now() + lasts;
        let within = |member: &Member, rng: &mut StdRng| {
            member.database.set(Mode::CutWithin(rng.random_range(2_000..20_000)));
            member.broker.set(Mode::CutWithin(rng.random_range(2_000..20_000)));
        };
        self.on_links(within, rng);
        while Instant::now() < end {
            if let Some(member) = self.fleet.members.choose(rng) {
                if rng.random_bool(0.5) { member.database.cut() } else { member.broker.cut() }
            }
            sleep(rng.random_range(Duration::from_millis(50)..Duration::from_millis(400))).await;
        }
    }

    fn on_links(&self, act: impl Fn(&Member, &mut StdRng), rng: &mut StdRng) {
        for member in &self.fleet.members {
            act(member, rng);
        }
    }

    async fn turn_clocks(&self, lasts: Duration, rng: &mut StdRng) -> Result<Option<String>> {
        let members = self.fleet.clocked();
        if members.is_empty() {
            return Ok(Some("clocks: libfaketime is not installed".to_owned()));
        }
        let end = Instant::now() + lasts;
        while Instant::now() < end {
            for member in &members {
                member.set_clock(rng.random_range(-OFFSET_SECONDS..=OFFSET_SECONDS))?;
            }
            sleep(Duration::from_secs(2)).await;
        }
        Ok(None)
    }
}
