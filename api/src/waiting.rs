//! Why a job waits, in words: what its own row does not know.
//!
//! A glance at workers, cluster settings and, where there are limits, how full the clusters are, at most [`GOOD_FOR`] old, so
//! that reading jobs costs the store a question or two more a second and not one a job. Never used to decide anything.

use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, Job, JobState, WorkerId},
    store::{ClusterSetting, Store, StoreResult, Worker},
};
use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How old a glance may be.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Keeps the last glance.
#[derive(Debug)]
pub struct Lookout {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    last: RwLock<Option<(Instant, Arc<Sight>)>>,
    looking: AtomicBool,
}

struct Looking<'a>(&'a AtomicBool);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Workers, cluster settings and full clusters at one moment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sight {
    /// As [`Store::workers`] tells.
    pub workers: Vec<Worker>,
    /// As [`Store::cluster_settings`] tells.
    pub settings: Vec<ClusterSetting>,
    /// Clusters with as many jobs in flight as an operator allows.
    pub full: BTreeSet<ClusterName>,
}

impl Lookout {
    /// Has not looked yet.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, last: RwLock::default(), looking: AtomicBool::new(false) }
    }

    /// What stands now.
    pub async fn look(&self) -> StoreResult<Arc<Sight>> {
        let at = self.clock.monotonic();
        let (workers, settings) = tokio::try_join!(self.store.workers(), self.store.cluster_settings())?;
        let full = if settings.iter().any(|setting| setting.max_in_flight.is_some()) {
            let clusters = self.store.outstanding().await?.into_iter();
            clusters.filter(|hinted| hinted.room == Some(0)).map(|hinted| hinted.cluster).collect()
        } else {
            BTreeSet::new()
        };
        let sight = Arc::new(Sight { workers, settings, full });
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = Some((at, sight.clone()));
        Ok(sight)
    }

    /// What stood a moment ago. When nobody has looked for a while, one caller looks and the others take what there is;
    /// nothing at all when there is nothing.
    pub async fn glance(&self) -> Option<Arc<Sight>> {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, sight)) = &last
            && at.elapsed() < GOOD_FOR
        {
            return Some(sight.clone());
        }
        let somebody_looks = self.looking.swap(true, Ordering::Relaxed);
        if somebody_looks && last.is_some() {
            return last.map(|(_, sight)| sight);
        }
        // Also when the request is dropped amid the look: otherwise nobody would ever look again.
        let _done = Looking(&self.looking);
        match self.look().await {
            Ok(sight) => Some(sight),
            // Whoever asked for a job hears of an outage from that question.
            Err(error) => {
                tracing::debug!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "cannot tell why jobs wait"
                );
                last.map(|(_, sight)| sight)
            }
        }
    }

    /// Sets the words of a job's reason, where the world knows more than its row.
    pub async fn explain(&self, jobs: &mut [Job]) {
        let waits = |job: &Job| job.life.state == JobState::Initialized || job.life.state.is_owned();
        if !jobs.iter().any(waits) {
            return;
        }
        let Some(sight) = self.glance().await else { return };
        let now = self.clock.now();
        // Only workers seen dead: one that registered since the glance is not seen at all.
        let dead: HashSet<WorkerId> = sight.workers.iter().filter(|w| !w.alive).map(|w| w.id).collect();
        for job in jobs {
            if let Some(reason) = sight.reason(job, &dead, now) {
                job.life.reason = Some(reason);
            }
        }
    }
}

impl Sight {
    /// What an operator set on a cluster.
    pub(crate) fn setting(&self, cluster: &ClusterName) -> Option<&ClusterSetting> {
        self.settings.iter().find(|setting| setting.cluster == *cluster)
    }

    /// Why `job` waits, when that is not what its row says.
    fn reason(&self, job: &Job, dead: &HashSet<WorkerId>, now: DateTime<Utc>) -> Option<String> {
        match job.life.state {
            JobState::Initialized if job.life.due_at > now => {
                // A back-off tells for itself.
                let waits = || format!("waits until {}", job.life.due_at.to_rfc3339());
                job.life.reason.is_none().then(waits)
            }
            JobState::Initialized => self.cluster_reason(job).or_else(|| {
                let queued = || "waits in the queue for a worker".to_owned();
                job.life.reason.is_none().then(queued)
            }),
            JobState::Claimed | JobState::Pending | JobState::Running => {
                let owner = job.life.owner?;
                if owner == WorkerId::NOBODY {
                    return Some("handed back by its worker; waits for another".to_owned());
                }
                dead.contains(&owner)
                    .then(|| format!("its worker {owner} is gone; waits for another to adopt it"))
            }
            JobState::Held
            | JobState::Finished
            | JobState::Failed
            | JobState::Canceled
            | JobState::TimedOut
            | JobState::Lost => None,
        }
    }

    /// What keeps every due job of the job's cluster waiting.
    fn cluster_reason(&self, job: &Job) -> Option<String> {
        let cluster = &job.cluster;
        let setting = self.setting(cluster);
        if let Some(setting) = setting.filter(|setting| setting.paused) {
            return Some(format!("cluster {cluster} is paused by {}", setting.by));
        }
        if let Some(limit) = setting.and_then(|setting| setting.max_in_flight)
            && self.full.contains(cluster)
        {
            return Some(format!(
                "cluster {cluster} has as many jobs in flight as an operator allows ({limit})"
            ));
        }
        let serving = || self.workers.iter().filter(|w| w.alive);
        let mut served = serving().flat_map(|w| w.clusters.iter().map(move |c| (w, c)));
        let of_this: Vec<_> = served.by_ref().filter(|(_, c)| c.name == *cluster).collect();
        if of_this.is_empty() {
            return Some(format!("no worker serves cluster {cluster}"));
        }
        if of_this.iter().all(|(worker, _)| worker.draining) {
            return Some(format!("every worker of cluster {cluster} is about to stop"));
        }
        let mut parked = of_this.iter().map(|(_, c)| c.parked.as_deref());
        let first = parked.next()??;
        parked.all(|reason| reason.is_some()).then(|| format!("cluster {cluster} is parked: {first}"))
    }
}
