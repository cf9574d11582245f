//! Leases: who is alive, what a heartbeat answers, what is given up.

use super::{
    Stage,
    site::{LONG, Site, cluster, ended, new_job, serves, to_hand_back},
};
use anyhow::{Context as _, Result, bail, ensure};
use jobgate_shared::domain::{Command, Ending, JobId, JobState, NewJob, Refusal, RetryPolicy, WorkerId};
use jobgate_shared::store::{Claimed, Heartbeat, Pulse, Worker, WorkerCluster};
use std::{collections::BTreeSet, time::Duration};

fn pulse() -> Pulse {
    Pulse { ttl: LONG, ..Pulse::default() }
}

struct News {
    cancel: BTreeSet<JobId>,
    settled: BTreeSet<JobId>,
    lost: BTreeSet<JobId>,
}

async fn beat(site: &Site<'_>, worker: WorkerId, pulse: &Pulse) -> Result<News> {
    match site.store.heartbeat(worker, pulse).await? {
        Heartbeat::Renewed { cancel, settled, lost } => {
            let set = |jobs: Vec<JobId>| jobs.into_iter().collect();
            Ok(News { cancel: set(cancel), settled: set(settled), lost: set(lost) })
        }
        Heartbeat::Expired => bail!("the lease of {worker} has ended"),
    }
}

async fn seen(site: &Site<'_>, worker: WorkerId) -> Result<Worker> {
    let workers = site.store.workers().await?;
    workers.into_iter().find(|w| w.id == worker).context("the worker is not shown")
}

/// Every beat again, until the job has ended or is somebody else's.
pub async fn a_heartbeat_tells_its_worker_what_is_to_be_cancelled(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (worker, other) = (site.worker().await?, site.worker().await?);
    let claimed = site.claimed(worker, new_job()).await?;
    let running = site.running(worker, new_job()).await?;
    let others = site.running(other, new_job()).await?;
    let untouched = site.running(worker, new_job()).await?;
    let waiting = site.accept(new_job()).await?;
    for job in [&claimed, &running, &others, &waiting] {
        site.command(Command::Cancel, job.id).await?;
    }
    for _ in 0..2 {
        assert_eq!(beat(&site, worker, &pulse()).await?.cancel, [claimed.id, running.id].into());
        assert_eq!(beat(&site, other, &pulse()).await?.cancel, [others.id].into());
    }
    site.tell(&running, 2, ended(Ending::Canceled)).await?;
    site.store.hand_back(worker, &[to_hand_back(&claimed, Duration::ZERO)]).await?;
    assert_eq!(site.get(claimed.id).await?.life.state, JobState::Canceled);
    assert_eq!(beat(&site, worker, &pulse()).await?.cancel, BTreeSet::new());
    // A cancel goes over to the adopter.
    site.store.deregister(other).await?;
    site.take(worker, others.id).await?;
    assert_eq!(beat(&site, worker, &pulse()).await?.cancel, [others.id].into());
    assert_eq!(site.get(untouched.id).await?, untouched);
    Ok(())
}

/// Ended, retried or gone is settled; in somebody else's hands is lost; neither says go on telling.
pub async fn a_heartbeat_settles_what_the_row_agrees_with(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let worker = site.worker().await?;
    let running = site.running(worker, new_job()).await?;
    let finished = site.ended(worker, new_job(), Ending::Finished).await?;
    let retry = RetryPolicy { backoff_seconds: 3600, max_backoff_seconds: 3600, ..RetryPolicy::default() };
    let new = NewJob { max_attempts: 2, retry, ..new_job() };
    let retried = site.running(worker, new).await?;
    site.tell(&retried, 2, ended(Ending::Failed)).await?;
    let adopted = site.running(worker, new_job()).await?;
    site.store.hand_back(worker, &[to_hand_back(&adopted, Duration::ZERO)]).await?;
    let second = site.worker().await?;
    site.take(second, adopted.id).await?;
    let absent = JobId::generate();
    let mut unsettled: Vec<_> =
        [&running, &finished, &retried, &adopted].map(|job| (job.id, 1, job.life.epoch)).into();
    unsettled.push((absent, 1, 1));
    let news = beat(&site, worker, &Pulse { unsettled, ..pulse() }).await?;
    assert_eq!(news.settled, [finished.id, retried.id, absent].into());
    assert_eq!(news.lost, [adopted.id].into());
    Ok(())
}

/// A longer one lengthens, a shorter one shortens.
pub async fn a_lease_runs_from_its_last_heartbeat(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let short = Duration::from_secs(2);
    let kept = site.register(serves(None), short).await?;
    beat(&site, kept, &pulse()).await?;
    let ended = site.register(serves(None), LONG).await?;
    beat(&site, ended, &Pulse { ttl: short, ..pulse() }).await?;
    site.pass(short).await;
    beat(&site, kept, &pulse()).await?;
    assert_eq!(site.store.heartbeat(ended, &pulse()).await?, Heartbeat::Expired);
    let now = site.now().await?;
    let (kept, ended) = (seen(&site, kept).await?, seen(&site, ended).await?);
    ensure!(kept.alive && kept.expires_at > now, "{kept:?}");
    ensure!(!ended.alive && ended.expires_at <= now, "{ended:?}");
    Ok(())
}

/// Expired, deregistered or never known: register anew, as somebody else. A replayed registration is no new lease.
pub async fn a_lease_that_ended_is_never_renewed(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    assert_eq!(site.store.heartbeat(WorkerId::generate(), &pulse()).await?, Heartbeat::Expired);
    let worker = site.worker().await?;
    let registered = seen(&site, worker).await?;
    site.store.register(&registered, Duration::from_secs(1)).await?;
    assert_eq!(seen(&site, worker).await?, registered);
    site.store.deregister(worker).await?;
    site.store.deregister(worker).await?;
    site.store.deregister(WorkerId::generate()).await?;
    assert_eq!(site.store.heartbeat(worker, &pulse()).await?, Heartbeat::Expired);
    site.store.register(&registered, LONG).await?;
    assert_eq!(site.store.heartbeat(worker, &pulse()).await?, Heartbeat::Expired);
    Ok(())
}

/// Host, clusters, reach; and from each pulse: jobs, draining, what is parked and what is no more.
pub async fn workers_are_shown_as_they_last_told(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let before = site.now().await?;
    let clusters = serves(Some("host-a"));
    let worker = site.register(clusters.clone(), LONG).await?;
    let new = seen(&site, worker).await?;
    assert_eq!(
        (&*new.host, &new.clusters, new.jobs, new.draining, new.alive),
        ("here", &clusters, 0, false, true)
    );
    ensure!(new.registered_at >= before && new.expires_at >= before + LONG, "{new:?}");
    let told =
        Pulse { jobs: 7, draining: true, parked: vec![(cluster("slurm-a"), "down".into())], ..pulse() };
    beat(&site, worker, &told).await?;
    let shown = seen(&site, worker).await?;
    assert_eq!((shown.jobs, shown.draining), (7, true));
    let parked: Vec<_> = shown.clusters.iter().map(|c| (c.name.as_str(), c.parked.as_deref())).collect();
    assert_eq!(parked, [("local", None), ("slurm-a", Some("down"))]);
    beat(&site, worker, &pulse()).await?;
    let shown = seen(&site, worker).await?;
    assert_eq!((shown.jobs, shown.draining, shown.clusters), (0, false, clusters));
    // A dead one is still shown, as dead.
    site.store.deregister(worker).await?;
    ensure!(!seen(&site, worker).await?.alive, "alive after its end");
    Ok(())
}

/// Whoever drains is one of them still: it calls its manager.
pub async fn who_serves_a_cluster_is_counted_while_its_lease_runs(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let serving = async |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| cluster(name)).collect();
        anyhow::Ok(site.store.serving(&names).await?)
    };
    assert_eq!(serving(&["local"]).await?, [0]);
    assert_eq!(serving(&[]).await?, [0; 0]);
    let only = |name: &str| vec![WorkerCluster { name: cluster(name), reach: None, parked: None }];
    let first = site.register(only("local"), LONG).await?;
    let both = [only("local"), only("slurm-a")].concat();
    site.register(both, Duration::from_millis(500)).await?;
    beat(&site, first, &Pulse { draining: true, ..pulse() }).await?;
    assert_eq!(serving(&["slurm-a", "slurm", "local", "slurm-a"]).await?, [1, 0, 2, 1]);
    site.pass(Duration::from_secs(1)).await;
    assert_eq!(serving(&["local", "slurm-a"]).await?, [1, 0]);
    site.store.deregister(first).await?;
    assert_eq!(serving(&["local"]).await?, [0]);
    Ok(())
}

/// A claimed job waits again after its pause; a recorded one is nobody's; another claim's job is left alone.
pub async fn handing_back_gives_up_only_what_is_still_ones_own(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let (first, second) = (site.worker().await?, site.worker().await?);
    let pause = Duration::from_secs(1);
    let claimed = site.claimed(first, new_job()).await?;
    let recorded = site.pending(first, new_job()).await?;
    let others = site.claimed(second, new_job()).await?;
    let older = site.claimed(first, new_job()).await?;
    site.store.hand_back(first, &[to_hand_back(&older, Duration::ZERO)]).await?;
    let again = site.take(first, older.id).await?;
    let before = site.now().await?;
    let items = [
        to_hand_back(&claimed, pause),
        to_hand_back(&recorded, pause),
        to_hand_back(&others, pause),
        to_hand_back(&older, pause),
    ];
    for _ in 0..2 {
        site.store.hand_back(first, &items).await?;
    }
    let back = site.get(claimed.id).await?.life;
    assert_eq!((back.state, back.owner, back.epoch), (JobState::Initialized, None, 1));
    assert_eq!((back.claimed_at, back.fruitless_claims), (None, 0));
    ensure!(back.due_at >= before + pause && back.reason.as_deref() == Some("no room"), "{back:?}");
    let nobodys = site.get(recorded.id).await?.life;
    assert_eq!((nobodys.state, nobodys.owner), (JobState::Pending, Some(WorkerId::NOBODY)));
    assert_eq!(site.get(others.id).await?, others);
    assert_eq!(site.get(older.id).await?, again);
    assert_eq!(site.claim(second, &[claimed.id]).await?, [Claimed::Refused(Refusal::NotDue)]);
    site.pass(pause).await;
    site.take(second, claimed.id).await?;
    site.recount().await
}

/// Whoever holds the only door to the store knows that nobody else is in.
pub async fn every_lease_can_be_ended_at_once(stage: &dyn Stage) -> Result<()> {
    let site = Site::new(stage);
    let workers = [site.worker().await?, site.worker().await?];
    let job = site.running(workers[0], new_job()).await?;
    site.store.expire_all_leases().await?;
    for worker in workers {
        assert_eq!(site.store.heartbeat(worker, &pulse()).await?, Heartbeat::Expired);
        ensure!(!seen(&site, worker).await?.alive, "alive");
    }
    let adopter = site.worker().await?;
    assert_eq!(site.take(adopter, job.id).await?.life.epoch, 2);
    Ok(())
}
