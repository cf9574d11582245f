//! What dispatchers call: due and stranded jobs, their hints, who is alive.

use super::{
    SPANS,
    pair::{ALL, Pair, Pick},
    producing::{CLUSTERS, name},
    working::OWNED,
};
use anyhow::Result;
use chrono::TimeDelta;
use jobgate_shared::domain::{ClusterName, JobId, JobState, Reach, WorkerId};
use jobgate_shared::store::{FullStore, Store as _, StoreResult, Vanished};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

#[derive(Debug, Clone)]
pub(super) enum Dispatching {
    Due { cluster: &'static str, limit: u32, hint_for: Duration, again_after: Duration },
    Unhint(Vec<Pick>),
    Stranded { of: Dead, limit: u32, hint_for: Duration },
    Vanished { jobs: Vec<(Pick, i64)>, lost_after: Option<Duration> },
    Outstanding,
    Oldest,
    Workers,
    ExpireAllLeases,
}

/// Whom a dispatcher believes dead.
#[derive(Debug, Clone)]
pub(super) enum Dead {
    /// Everyone whose lease has ended.
    All,
    /// These, dead or not.
    Some(Vec<u8>),
}

impl Dead {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![3 => Just(Self::All), 1 => vec(any::<u8>(), 0..3).prop_map(Self::Some)]
    }

    async fn workers(&self, pair: &Pair<'_>) -> Result<Vec<WorkerId>> {
        Ok(match self {
            Self::All => {
                let known = pair.model.workers().await?;
                let alive: Vec<WorkerId> = known.into_iter().filter(|w| w.alive).map(|w| w.id).collect();
                pair.workers.iter().copied().filter(|worker| !alive.contains(worker)).collect()
            }
            Self::Some(picks) => {
                let mut workers = Vec::with_capacity(picks.len());
                for nth in picks {
                    workers.push(pair.worker(*nth).await?);
                }
                workers
            }
        })
    }
}

impl Dispatching {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let span = || select(SPANS);
        let limit = || select(&[0, 1, 2, 100][..]);
        prop_oneof![
            4 => (select(CLUSTERS), limit(), span(), span()).prop_map(
                |(cluster, limit, hint_for, again_after)| Self::Due { cluster, limit, hint_for, again_after }
            ),
            2 => Pick::some().prop_map(Self::Unhint),
            4 => (Dead::any(), limit(), span())
                .prop_map(|(of, limit, hint_for)| Self::Stranded { of, limit, hint_for }),
            2 => (vec((Pick::any(), 0..4_i64), 0..3), option::of(span()))
                .prop_map(|(jobs, lost_after)| Self::Vanished { jobs, lost_after }),
            2 => Just(Self::Outstanding),
            1 => Just(Self::Oldest),
            2 => Just(Self::Workers),
            1 => Just(Self::ExpireAllLeases),
        ]
    }

    pub(super) async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        match self {
            Self::Due { cluster, limit, hint_for, again_after } => {
                let cluster: ClusterName = name(cluster);
                let due =
                    async |store: &dyn FullStore| store.due(&cluster, *limit, *hint_for, *again_after).await;
                pair.both(due).await.map(drop)
            }
            Self::Unhint(jobs) => {
                let waiting_or_owned = [&[JobState::Initialized], OWNED].concat();
                let jobs = pair.jobs(jobs, &waiting_or_owned).await?;
                pair.both(async |store| store.unhint(&jobs).await).await
            }
            Self::Stranded { of, limit, hint_for } => {
                let dead = of.workers(pair).await?;
                pair.both(async |store| stranded(store, &dead, *limit, *hint_for).await).await.map(drop)
            }
            Self::Vanished { jobs, lost_after } => {
                let mut gone = Vec::new();
                for (job, hours) in jobs {
                    let since = pair.now() - TimeDelta::hours(*hours);
                    gone.push(Vanished { job: pair.job(*job, OWNED).await?, since });
                }
                pair.both(async |store| store.vanished(&gone, *lost_after).await).await.map(drop)
            }
            Self::Outstanding => outstanding(pair).await,
            Self::Oldest => oldest(pair).await,
            Self::Workers => workers(pair).await,
            Self::ExpireAllLeases => pair.both(async |store| store.expire_all_leases().await).await,
        }
    }
}

/// Where stranded jobs can be adopted, and who had them.
type Group = (ClusterName, Option<Reach>, WorkerId);

/// Every stranded job of these workers and of nobody, and whether no answer held more than `limit`. Which of them an
/// answer with a limit holds is the adapter's choice, so it is asked until there are none; where a hint is over at once
/// that would never be, so there it is asked once for all.
pub(super) async fn stranded(
    store: &dyn FullStore,
    dead: &[WorkerId],
    limit: u32,
    hint_for: Duration,
) -> StoreResult<(BTreeMap<Group, BTreeSet<(JobId, bool)>>, bool)> {
    let limit = if hint_for.is_zero() { ALL } else { limit };
    let (mut groups, mut kept) = (BTreeMap::<Group, BTreeSet<_>>::new(), true);
    loop {
        let found = store.stranded(dead, limit, hint_for).await?;
        let count: usize = found.iter().map(|group| group.jobs.len()).sum();
        kept &= count <= limit as usize;
        for group in found {
            let jobs = group.jobs.into_iter().map(|job| (job.job, job.suspect));
            groups.entry((group.cluster, group.reach, group.owner)).or_default().extend(jobs);
        }
        if count == 0 || hint_for.is_zero() {
            return Ok((groups, kept));
        }
    }
}

// The port promises no order for the answers below.

pub(super) async fn outstanding(pair: &Pair<'_>) -> Result<()> {
    let sorted = async |store: &dyn FullStore| {
        let mut hinted = store.outstanding().await?;
        hinted.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        Ok(hinted)
    };
    pair.both(sorted).await.map(drop)
}

pub(super) async fn oldest(pair: &Pair<'_>) -> Result<()> {
    let sorted = async |store: &dyn FullStore| {
        let mut oldest = store.oldest().await?;
        oldest.sort_by_key(|oldest| (oldest.cluster.clone(), oldest.priority));
        Ok(oldest)
    };
    pair.both(sorted).await.map(drop)
}

pub(super) async fn workers(pair: &Pair<'_>) -> Result<()> {
    let sorted = async |store: &dyn FullStore| {
        let mut workers = store.workers().await?;
        workers.sort_by_key(|worker| worker.id);
        Ok(workers)
    };
    pair.both(sorted).await.map(drop)
}
