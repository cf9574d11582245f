//! Who there is: the processes of each role, as they begin, stop, die and are begun anew.

use crate::{
    broker::{Bells, BrokerDoor},
    cluster::Manager,
    plan::{Action, Fault, Flaw, Link, Outcome, Role, Setting},
    port::Port,
    process::Process,
    store::{Rows, StoreDoor},
    world::{RunClock, World, lock},
};
use chrono::TimeDelta;
use jobgate_api::{
    accept::{AcceptSettings, Acceptor},
    dispatcher::{self, Dispatcher, HintBudget},
    feed::Feed,
    recorder::{self, Recorder},
};
use jobgate_shared::{
    broker::BrokerHealth,
    domain::{Command, JobId},
    logs::LogStore,
    settings::Period,
};
use jobgate_worker::{Served, Timing, Worker, pace::Pace, regulator::RegulatorConfig};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// How long the leases run here.
const LEASE: Duration = Duration::from_secs(6);
/// How old a leftover is before it is swept, and how long after that a sweep has looked at the latest.
pub(crate) const SWEPT_WITHIN: Duration = Duration::from_secs(12 + 2 * 15);

/// An API process.
#[derive(Debug)]
pub(crate) struct Api {
    process: Arc<Process>,
    pub(crate) store: Arc<StoreDoor>,
    pub(crate) broker: Arc<BrokerDoor>,
    pub(crate) budget: Arc<HintBudget>,
    pub(crate) acceptor: Arc<Acceptor>,
}

/// Everybody.
#[derive(Debug)]
pub(crate) struct City {
    pub(crate) world: Arc<World>,
    pub(crate) rows: Arc<Rows>,
    pub(crate) managers: Vec<Arc<Manager>>,
    bells: Arc<Bells>,
    /// The users' own, which is right.
    pub(crate) clock: Arc<RunClock>,
    logs: Arc<LogStore>,
    apis: Mutex<Vec<Arc<Api>>>,
    /// Every process that was not killed, whatever its role.
    processes: Mutex<Vec<(Role, Arc<Process>)>>,
    begun: AtomicUsize,
    /// Jobs whose users were told that they are accepted, by their place in the plan.
    pub(crate) accepted: Mutex<BTreeMap<usize, JobId>>,
    /// Users who have not got their answer.
    pub(crate) waiting: AtomicUsize,
}

impl City {
    pub(crate) fn new(world: &Arc<World>, rows: Arc<Rows>, managers: Vec<Arc<Manager>>) -> Arc<Self> {
        let city = Arc::new(Self {
            world: world.clone(),
            rows,
            managers,
            bells: Bells::new(world),
            clock: RunClock::new(world, TimeDelta::zero()),
            logs: Arc::new(LogStore::in_memory()),
            apis: Mutex::default(),
            processes: Mutex::default(),
            begun: AtomicUsize::new(0),
            accepted: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        for (role, count) in world.plan.processes {
            (0..count).for_each(|_| city.begin(role));
        }
        if world.plan.poison.is_some() {
            city.keep_workers();
        }
        city
    }

    /// Begins workers anew as they die.
    fn keep_workers(self: &Arc<Self>) {
        let city = self.clone();
        self.world.outside.spawn("keeper", async move {
            let over = city.world.outside.shutdown().clone();
            while over.run_until_cancelled(sleep(Duration::from_millis(700))).await.is_some() {
                city.begin_if_needed(Role::Worker);
            }
        });
    }

    /// One more process of a role, under a name nobody had.
    pub(crate) fn begin(&self, role: Role) {
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        let process = Process::new(&self.world, format!("{role:?}-{number}"));
        let store = |records| {
            let (process, rows) = (process.clone(), self.rows.clone());
            Arc::new(StoreDoor { process, rows, records })
        };
        let broker = BrokerDoor::new(&process, &self.bells);
        match role {
            Role::Api => self.begin_api(&process, store(false), broker),
            Role::Worker => self.begin_worker(&process, store(false), broker),
            Role::Recorder => {
                let (clock, config) = (process.clock.clone(), recorder::Config::default());
                recorder::run(&process.tasks, Recorder { store: store(true), broker, clock, config });
            }
        }
        lock(&self.processes).push((role, process));
    }

    fn begin_api(&self, process: &Arc<Process>, store: Arc<StoreDoor>, broker: Arc<BrokerDoor>) {
        let (tasks, budget) = (&process.tasks, Arc::new(HintBudget::new()));
        let hint_for = self.world.plan.hint_for;
        if self.world.plan.flaw == Flaw::HintsAreLost {
            budget.set(BTreeMap::new(), 1_000);
        } else {
            let config =
                dispatcher::Config { hint_ttl: Period::new(hint_for), ..dispatcher::Config::default() };
            let parts = Dispatcher {
                store: store.clone(),
                broker: broker.clone(),
                clock: process.clock.clone(),
                budget: budget.clone(),
                config,
                lease: LEASE,
                sole: false,
                outside: BTreeSet::new(),
            };
            dispatcher::run(tasks, parts);
        }
        let feed = Feed::new(store.clone(), tasks.clone());
        let settings = AcceptSettings { hint_for, ..AcceptSettings::default() };
        let acceptor =
            Acceptor::new(store.clone(), broker.clone(), budget.clone(), feed, tasks.clone(), settings);
        lock(&self.apis).push(Arc::new(Api { process: process.clone(), store, broker, budget, acceptor }));
    }

    fn begin_worker(&self, process: &Arc<Process>, store: Arc<StoreDoor>, broker: Arc<BrokerDoor>) {
        let served = |manager: &Arc<Manager>| Served {
            name: manager.cluster.clone(),
            engine: Arc::new(Port {
                process: process.clone(),
                manager: manager.clone(),
                rows: self.rows.clone(),
            }),
            regulator: RegulatorConfig::Fixed {
                max_in_flight: NonZeroU32::new(self.world.plan.room).unwrap_or(NonZeroU32::MIN),
            },
            max_calls: self.world.plan.calls,
            lost_after: Duration::from_secs(20),
            slow_after: Duration::from_secs(10),
            pace: Pace::default(),
            max_submits_per_second: None,
        };
        let worker = Worker {
            leases: store,
            broker,
            clock: process.clock.clone(),
            logs: self.logs.clone(),
            clusters: self.managers.iter().map(served).collect(),
            timing: Timing {
                lease: LEASE,
                heartbeat: Duration::from_secs(2),
                drain: Duration::from_secs(5),
                ship: Duration::from_secs(1),
                sweep: Duration::from_secs(15),
                sweep_older_than: Duration::from_secs(12),
                broker_patience: Duration::from_secs(8),
            },
            reporting: None,
            host: process.name.clone(),
        };
        let shutdown = process.tasks.shutdown().clone();
        process.tasks.supervise("worker", move || {
            let (worker, shutdown) = (worker.clone(), shutdown.clone());
            async move {
                worker.run(shutdown).await;
                Ok(())
            }
        });
    }

    /// Processes of a role that live and are not about to stop.
    fn at_work(&self, role: Role) -> Vec<Arc<Process>> {
        let processes = lock(&self.processes);
        let working = processes.iter().filter(|(known, process)| {
            *known == role && !process.is_dead() && !process.tasks.shutdown().is_cancelled()
        });
        working.map(|(_, process)| process.clone()).collect()
    }

    fn some(&self, role: Role) -> Option<Arc<Process>> {
        let working = self.at_work(role);
        let place = self.world.dice().below(working.len() as u64);
        working.get(usize::try_from(place).unwrap_or(0)).cloned()
    }

    /// An API that was not killed, if there is one.
    pub(crate) fn some_api(&self) -> Option<Arc<Api>> {
        let apis: Vec<Arc<Api>> = lock(&self.apis).iter().filter(|a| !a.process.is_dead()).cloned().collect();
        let place = self.world.dice().below(apis.len() as u64);
        apis.get(usize::try_from(place).unwrap_or(0)).cloned()
    }

    fn everybody(&self) -> Vec<Arc<Process>> {
        lock(&self.processes).iter().map(|(_, process)| process.clone()).collect()
    }

    fn after(self: &Arc<Self>, time: Duration, what: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let city = self.clone();
        self.world.outside.spawn("after", async move {
            sleep(time).await;
            what(&city);
        });
    }

    /// Does what the script says.
    pub(crate) fn perform(self: &Arc<Self>, action: Action) {
        self.world.say(|| format!("-- {action:?}"));
        match action {
            Action::Post(place) => self.post(place),
            Action::Cancel => self.command(Command::Cancel),
            Action::Hold => self.command(Command::Hold),
            Action::Release => self.command(Command::Release),
            Action::Retry => self.command(Command::Retry),
            Action::Prioritise => self.prioritise(),
            Action::Set(cluster, setting) => self.set(cluster, setting),
            Action::Kill(role, for_so_long) => {
                if let Some(process) = self.some(role) {
                    self.world.struck(Fault::Kill);
                    process.kill();
                    self.bells.ring();
                    self.after(for_so_long, move |city| city.begin_if_needed(role));
                }
            }
            Action::Freeze(role, for_so_long) => {
                if let Some(process) = self.some(role) {
                    self.world.struck(Fault::Freeze);
                    process.freeze();
                    self.after(for_so_long, move |city| {
                        process.thaw();
                        city.bells.ring();
                    });
                }
            }
            Action::Cut(role, link, for_so_long) => {
                if let Some(process) = self.some(role) {
                    self.world.struck(match link {
                        Link::Store => Fault::CutFromStore,
                        Link::Broker => Fault::CutFromBroker,
                        Link::Manager => Fault::CutFromManager,
                    });
                    process.set_cut(link, true);
                    self.after(for_so_long, move |city| city.mend(&process, link));
                }
            }
            Action::Drain(for_so_long) => self.drain(for_so_long),
            Action::AddWorker => self.begin(Role::Worker),
            Action::StoreAway(for_so_long) => {
                self.world.struck(Fault::StoreAway);
                self.world.set_store_away(true);
                self.after(for_so_long, |city| city.world.set_store_away(false));
            }
            Action::BrokerAway(for_so_long) => {
                self.world.struck(Fault::BrokerAway);
                self.set_broker(BrokerHealth::Down);
                self.after(for_so_long, |city| city.set_broker(BrokerHealth::Up));
            }
            Action::BrokerBlocked(for_so_long) => {
                self.world.struck(Fault::BrokerBlocked);
                self.set_broker(BrokerHealth::Blocked);
                self.after(for_so_long, |city| city.set_broker(BrokerHealth::Up));
            }
            Action::Reconnect(role) => {
                if let Some(process) = self.some(role) {
                    self.world.struck(Fault::Reconnect);
                    process.reconnect();
                }
            }
            Action::Purge(cluster) => {
                self.world.struck(Fault::Purge);
                self.bells.purge(&self.managers[cluster].cluster);
            }
            Action::ManagerAway(cluster, for_so_long) => {
                self.world.struck(Fault::ManagerAway);
                self.managers[cluster].set_away(true);
                self.after(for_so_long, move |city| city.managers[cluster].set_away(false));
            }
        }
    }

    fn set_broker(&self, health: BrokerHealth) {
        self.bells.set_health(health);
        self.everybody().iter().for_each(|process| process.set_broker(health));
    }

    fn mend(&self, process: &Process, link: Link) {
        process.set_cut(link, false);
        if link == Link::Broker {
            process.set_broker(self.bells.health());
        }
        self.bells.ring();
    }

    fn begin_if_needed(&self, role: Role) {
        let wanted =
            self.world.plan.processes.iter().find(|(known, _)| *known == role).map_or(0, |(_, n)| *n);
        if self.at_work(role).len() < wanted {
            self.begin(role);
        }
    }

    fn drain(self: &Arc<Self>, for_so_long: Duration) {
        let Some(process) = self.some(Role::Worker) else { return };
        self.world.say(|| format!("{} is to stop", process.name));
        process.tasks.shutdown().cancel();
        let world = self.world.clone();
        self.world.outside.spawn("drain", async move {
            process.tasks.wait().await;
            world.say(|| format!("{} has stopped", process.name));
            world.came(Outcome::Drained);
        });
        self.after(for_so_long, |city| city.begin_if_needed(Role::Worker));
    }

    /// Everything that is broken is mended, and every role is there again.
    pub(crate) fn heal(self: &Arc<Self>) {
        self.world.say(|| "-- all is well".to_owned());
        self.world.calm_down();
        self.managers.iter().for_each(|manager| manager.set_away(false));
        self.bells.set_health(BrokerHealth::Up);
        for process in self.everybody() {
            process.thaw();
            for link in [Link::Store, Link::Broker, Link::Manager] {
                process.set_cut(link, false);
            }
            process.set_broker(BrokerHealth::Up);
        }
        for role in [Role::Api, Role::Worker, Role::Recorder] {
            self.begin_if_needed(role);
        }
        self.bells.ring();
        self.resume_all();
        let all: Vec<JobId> = self.rows.watch(|watch| watch.jobs.keys().copied().collect());
        for job in all {
            self.ask(job, Command::Release);
        }
    }

    /// Resumes what is paused, and lifts every limit.
    pub(crate) fn resume_all(self: &Arc<Self>) {
        for place in 0..self.managers.len() {
            let Some(setting) = self.rows.setting(&self.managers[place].cluster) else { continue };
            if setting.paused {
                self.set(place, Setting::Paused(false));
            }
            if setting.max_in_flight.is_some() {
                self.set(place, Setting::Limit(None));
            }
        }
    }

    /// Asks everybody to stop; answers who did not.
    pub(crate) async fn stop(&self) -> Vec<String> {
        self.world.outside.shutdown().cancel();
        let living: Vec<_> = self.everybody().into_iter().filter(|process| !process.is_dead()).collect();
        for process in &living {
            process.tasks.shutdown().cancel();
        }
        let mut left = Vec::new();
        for process in living {
            if timeout(Duration::from_mins(1), process.tasks.wait()).await.is_err() {
                left.push(process.name.clone());
            }
        }
        left
    }
}
