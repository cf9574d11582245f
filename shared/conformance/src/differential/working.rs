//! What workers call: leases, claims, records, hand-backs.

use super::{
    SPANS,
    pair::{Pair, Pick, shift},
    producing::{CLUSTERS, name},
};
use anyhow::Result;
use jobgate_shared::domain::{ClusterName, JobId, JobState, Life, Reach, Submission, WorkerId};
use jobgate_shared::store::{Claimed, Heartbeat, Pulse, ToHandBack, ToRecord, Worker, WorkerCluster};
use proptest::{collection::vec, option, prelude::*, sample::select, sample::subsequence};
use serde_json::json;
use std::time::Duration;

const REACHES: &[&str] = &["here", "here", "here", "there"];
/// Mostly longer than a sequence has time.
const LEASES: &[Duration] = &[
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_hours(3),
    Duration::from_hours(9),
    Duration::from_hours(9),
    Duration::from_hours(9),
    Duration::from_hours(9),
];
/// What resource managers call submissions; few, so that two often meet.
pub(super) const SUBMISSIONS: &[&str] = &["1", "2"];
pub(super) const OWNED: &[JobState] = &[JobState::Claimed, JobState::Pending, JobState::Running];

#[derive(Debug, Clone)]
pub(super) enum Working {
    /// A new worker, or a known one again because its answer was lost.
    Register {
        again: Option<u8>,
        serves: Serves,
        ttl: Duration,
        draining: bool,
    },
    Heartbeat {
        worker: u8,
        ttl: Duration,
        jobs: u32,
        draining: bool,
        parked: Vec<&'static str>,
        unsettled: Vec<Claim>,
    },
    Claim {
        worker: u8,
        serves: Serves,
        jobs: Vec<Pick>,
    },
    ClaimAlone {
        worker: u8,
        serves: Serves,
        job: Pick,
    },
    Record {
        items: Vec<(Claim, Made)>,
    },
    /// What becomes of most claims: whatever is granted is recorded.
    Submit {
        worker: u8,
        jobs: Vec<Pick>,
        made: Made,
    },
    /// By the first job's owner, or by whoever.
    HandBack {
        by_owner: bool,
        worker: u8,
        items: Vec<(Claim, Duration)>,
    },
    Deregister {
        worker: u8,
    },
    Held {
        worker: u8,
    },
    /// Of two workers and nobody.
    InHands {
        workers: [u8; 2],
        cluster: &'static str,
        limit: u32,
    },
    Leftovers {
        found: Vec<(Claim, &'static str)>,
    },
}

/// What a worker serves and where.
#[derive(Debug, Clone)]
pub(super) struct Serves {
    clusters: Vec<&'static str>,
    reach: Option<&'static str>,
    parked: Option<&'static str>,
}

impl Serves {
    fn any() -> impl Strategy<Value = Self> {
        let clusters = prop_oneof![4 => Just(CLUSTERS.to_vec()), 1 => subsequence(CLUSTERS, 1)];
        let reach = option::weighted(0.8, select(REACHES));
        let parked = option::weighted(0.1, Just("no answer"));
        (clusters, reach, parked).prop_map(|(clusters, reach, parked)| Self { clusters, reach, parked })
    }

    fn clusters(&self) -> Vec<WorkerCluster> {
        let serves = |cluster: &&str| WorkerCluster {
            name: name(cluster),
            reach: self.reach.map(|reach| Reach(reach.to_owned())),
            parked: self.parked.map(str::to_owned),
        };
        self.clusters.iter().map(serves).collect()
    }
}

/// A claim as somebody remembers it: of a job, and how far attempt and epoch are from the row's.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    job: Pick,
    attempt: i32,
    epoch: i32,
}

/// A claim resolved: the job, the attempt, the epoch, and who has it.
pub(super) struct Remembered {
    pub(super) job: JobId,
    pub(super) attempt: u32,
    pub(super) epoch: u32,
    pub(super) owner: Option<WorkerId>,
    pub(super) submission: Option<String>,
}

impl Claim {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        (Pick::any(), shift(), shift()).prop_map(|(job, attempt, epoch)| Self { job, attempt, epoch })
    }

    pub(super) async fn remember(&self, pair: &Pair<'_>, likely: &[JobState]) -> Result<Remembered> {
        let job = pair.job(self.job, likely).await?;
        let life = pair.find(job).await?.map(|found| found.life);
        let (attempt, epoch) = life.as_ref().map_or((1, 1), |life| (life.attempt, life.epoch));
        Ok(Remembered {
            job,
            attempt: attempt.saturating_add_signed(self.attempt),
            epoch: epoch.saturating_add_signed(self.epoch),
            owner: life.as_ref().and_then(|life| life.owner),
            submission: life.and_then(|life| life.submission).map(|submission| submission.id),
        })
    }
}

/// A created submission.
#[derive(Debug, Clone)]
pub(super) struct Made {
    id: &'static str,
    reach: Option<&'static str>,
    detailed: bool,
}

impl Made {
    fn any() -> impl Strategy<Value = Self> {
        (select(SUBMISSIONS), option::weighted(0.3, select(REACHES)), any::<bool>())
            .prop_map(|(id, reach, detailed)| Self { id, reach, detailed })
    }

    fn submission(&self) -> Submission {
        let detail = if self.detailed { json!({"made": 1}) } else { serde_json::Value::Null };
        Submission { id: self.id.into(), detail, reach: self.reach.map(|reach| Reach(reach.to_owned())) }
    }
}

fn some<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    vec(of, 0..6)
}

impl Working {
    /// A worker for every cluster.
    pub(super) fn registers() -> impl Strategy<Value = Self> {
        let serves = Serves { clusters: CLUSTERS.to_vec(), reach: Some("here"), parked: None };
        Just(Self::Register { again: None, serves, ttl: Duration::from_hours(9), draining: false })
    }

    pub(super) fn any() -> impl Strategy<Value = Self> {
        let span = || select(SPANS);
        let register = (option::weighted(0.1, any::<u8>()), Serves::any(), select(LEASES), any::<bool>());
        let beat = (
            any::<u8>(),
            select(LEASES),
            0..9_u32,
            any::<bool>(),
            subsequence(CLUSTERS, 0..=1),
            some(Claim::any()),
        );
        prop_oneof![
            3 => register.prop_map(|(again, serves, ttl, draining)| Self::Register { again, serves, ttl, draining }),
            3 => beat.prop_map(|(worker, ttl, jobs, draining, parked, unsettled)| Self::Heartbeat {
                worker, ttl, jobs, draining, parked, unsettled
            }),
            8 => (any::<u8>(), Serves::any(), Pick::some())
                .prop_map(|(worker, serves, jobs)| Self::Claim { worker, serves, jobs }),
            4 => (any::<u8>(), Serves::any(), Pick::any())
                .prop_map(|(worker, serves, job)| Self::ClaimAlone { worker, serves, job }),
            5 => some((Claim::any(), Made::any())).prop_map(|items| Self::Record { items }),
            8 => (any::<u8>(), Pick::some(), Made::any())
                .prop_map(|(worker, jobs, made)| Self::Submit { worker, jobs, made }),
            3 => (prop::bool::weighted(0.8), any::<u8>(), some((Claim::any(), span())))
                .prop_map(|(by_owner, worker, items)| Self::HandBack { by_owner, worker, items }),
            1 => any::<u8>().prop_map(|worker| Self::Deregister { worker }),
            1 => some((Claim::any(), select(SUBMISSIONS))).prop_map(|found| Self::Leftovers { found }),
            1 => any::<u8>().prop_map(|worker| Self::Held { worker }),
            1 => (any::<[u8; 2]>(), select(CLUSTERS), 0..5_u32)
                .prop_map(|(workers, cluster, limit)| Self::InHands { workers, cluster, limit }),
        ]
    }

    pub(super) async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        match self {
            Self::Register { again, serves, ttl, draining } => {
                register(pair, *again, serves, *ttl, *draining).await
            }
            Self::Heartbeat { worker, ttl, jobs, draining, parked, unsettled } => {
                let parked = parked.iter().map(|cluster| (name::<ClusterName>(cluster), "away".to_owned()));
                let mut pulse = Pulse {
                    ttl: *ttl,
                    jobs: *jobs,
                    draining: *draining,
                    parked: parked.collect(),
                    unsettled: Vec::new(),
                };
                for claim in unsettled {
                    let Remembered { job, attempt, epoch, .. } = claim.remember(pair, OWNED).await?;
                    pulse.unsettled.push((job, attempt, epoch));
                }
                let worker = pair.worker(*worker).await?;
                pair.both(async |store| Ok(in_order(store.heartbeat(worker, &pulse).await?))).await.map(drop)
            }
            Self::Claim { worker, serves, jobs } => {
                let (worker, serves) = (pair.worker(*worker).await?, serves.clusters());
                let jobs =
                    pair.jobs(jobs, &[JobState::Initialized, JobState::Claimed, JobState::Pending]).await?;
                pair.both(async |store| store.claim(worker, &serves, &jobs).await).await.map(drop)
            }
            Self::ClaimAlone { worker, serves, job } => {
                let (worker, serves) = (pair.worker(*worker).await?, serves.clusters());
                let job = pair.job(*job, &[JobState::Initialized, JobState::Claimed]).await?;
                pair.both(async |store| store.claim_alone(worker, &serves, job).await).await.map(drop)
            }
            Self::Record { items } => {
                let mut records = Vec::new();
                for (claim, made) in items {
                    let Remembered { job, attempt, epoch, .. } =
                        claim.remember(pair, &[JobState::Claimed]).await?;
                    records.push(ToRecord { job, attempt, epoch, submission: made.submission() });
                }
                pair.both(async |store| store.record(&records).await).await.map(drop)
            }
            Self::Submit { worker, jobs, made } => submit(pair, *worker, jobs, made).await,
            Self::HandBack { by_owner, worker, items } => hand_back(pair, *by_owner, *worker, items).await,
            Self::Deregister { worker } => {
                let worker = pair.worker(*worker).await?;
                pair.both(async |store| store.deregister(worker).await).await
            }
            Self::Held { worker } => {
                let worker = pair.worker(*worker).await?;
                let sorted = |mut jobs: Vec<JobId>| {
                    jobs.sort_unstable();
                    jobs
                };
                pair.both(async |store| store.held(worker).await.map(sorted)).await.map(drop)
            }
            Self::InHands { workers: [one, other], cluster, limit } => {
                let owners = [pair.worker(*one).await?, pair.worker(*other).await?, WorkerId::NOBODY];
                let cluster: ClusterName = name(cluster);
                pair.both(async |store| store.in_hands(&cluster, &owners, None, *limit).await).await.map(drop)
            }
            Self::Leftovers { found } => {
                let mut inert = Vec::new();
                for (claim, id) in found {
                    let Remembered { job, attempt, .. } = claim.remember(pair, OWNED).await?;
                    inert.push((job, attempt, (*id).to_owned()));
                }
                pair.both(async |store| store.leftovers(&inert).await).await.map(drop)
            }
        }
    }
}

async fn register(
    pair: &mut Pair<'_>,
    again: Option<u8>,
    serves: &Serves,
    ttl: Duration,
    draining: bool,
) -> Result<()> {
    let id = match again.filter(|_| !pair.workers.is_empty()) {
        Some(nth) => pair.workers[usize::from(nth) % pair.workers.len()],
        None => WorkerId(pair.new_id(0)),
    };
    if !pair.workers.contains(&id) {
        pair.workers.push(id);
    }
    let at = pair.now();
    let worker = Worker {
        id,
        host: "here".into(),
        clusters: serves.clusters(),
        registered_at: at,
        expires_at: at,
        alive: false,
        draining,
        jobs: 0,
    };
    pair.both(async |store| store.register(&worker, ttl).await).await
}

async fn submit(pair: &mut Pair<'_>, worker: u8, jobs: &[Pick], made: &Made) -> Result<()> {
    let worker = pair.worker(worker).await?;
    let serves = Serves { clusters: CLUSTERS.to_vec(), reach: made.reach, parked: None }.clusters();
    let jobs = pair.jobs(jobs, &[JobState::Initialized]).await?;
    let claimed = pair.both(async |store| store.claim(worker, &serves, &jobs).await).await?;
    let mut records = Vec::new();
    for answer in claimed {
        if let Claimed::Granted(job) = answer {
            let Life { attempt, epoch, .. } = job.life;
            records.push(ToRecord { job: job.id, attempt, epoch, submission: made.submission() });
        }
    }
    pair.both(async |store| store.record(&records).await).await.map(drop)
}

async fn hand_back(
    pair: &mut Pair<'_>,
    by_owner: bool,
    worker: u8,
    items: &[(Claim, Duration)],
) -> Result<()> {
    let (mut back, mut owner) = (Vec::new(), None);
    for (claim, pause) in items {
        let claim = claim.remember(pair, OWNED).await?;
        owner = owner.or(claim.owner);
        back.push(ToHandBack { job: claim.job, epoch: claim.epoch, why: "no room".into(), pause: *pause });
    }
    let worker = match owner.filter(|_| by_owner) {
        Some(owner) => owner,
        None => pair.worker(worker).await?,
    };
    pair.both(async |store| store.hand_back(worker, &back).await).await
}

/// The port promises no order for what a heartbeat answers.
fn in_order(heartbeat: Heartbeat) -> Heartbeat {
    let sorted = |mut jobs: Vec<JobId>| {
        jobs.sort_unstable();
        jobs
    };
    match heartbeat {
        Heartbeat::Renewed { cancel, settled, lost } => {
            Heartbeat::Renewed { cancel: sorted(cancel), settled: sorted(settled), lost: sorted(lost) }
        }
        Heartbeat::Expired => Heartbeat::Expired,
    }
}
