//! What producers call: accept, look up, list, command, change, remove.

use super::{
    SPANS,
    pair::{Pair, Pick},
};
use anyhow::Result;
use jobgate_shared::domain::{
    Command, Document, Ending, IdempotencyKey, JobId, JobSpec, JobState, NewJob, Report, RetryPolicy,
};
use jobgate_shared::store::{Filter, Inserted, PageRequest, Patch, Scope};
use proptest::{collection::vec, option, prelude::*, sample::select, sample::subsequence};
use serde_json::{Value, json};
use std::time::Duration;

/// The projects jobs are posted in, and one that nobody uses.
pub(super) const PROJECTS: &[&str] = &["a", "b", "nobody"];
/// The clusters jobs are posted for.
pub(super) const CLUSTERS: &[&str] = &["local", "slurm-a"];
/// States in which a report is taken.
const RUNS: &[JobState] = &[JobState::Claimed, JobState::Pending, JobState::Running];
const LABELS: &[&str] = &["x", "y\"", "{z,"];
const NAMES: &[&str] = &["sum", "n%"];
pub(super) const ENDED: &[JobState] =
    &[JobState::Finished, JobState::Failed, JobState::Canceled, JobState::TimedOut, JobState::Lost];

/// A name that was written here, so it is a good one.
pub(super) fn name<N: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> N {
    name.parse().unwrap_or_else(|e| panic!("{name}: {e:?}"))
}

/// Whose jobs a caller sees.
pub(super) fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![3 => Just(Scope::All), 1 => select(PROJECTS).prop_map(|p| Scope::Project(name(p)))]
}

#[derive(Debug, Clone)]
pub(super) enum Producing {
    Insert { jobs: Vec<Posting>, hinted: Option<Duration> },
    Get { scope: Scope, job: Pick },
    List { scope: Scope, filter: Asked, after: Option<Pick>, limit: u32 },
    History { scope: Scope, job: Pick },
    Command { scope: Scope, jobs: Vec<Pick>, command: Command },
    Patch { scope: Scope, job: Pick, patch: Patch },
    Report { scope: Scope, job: Pick, report: Report },
    Remove { scope: Scope, job: Pick },
}

/// A job in a batch.
#[derive(Debug, Clone)]
pub(super) enum Posting {
    New(Draft),
    /// One posted before, because its answer was lost. Not one that has gone since: ids are never used again.
    Again(u8),
}

/// What can make a difference between two jobs.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    tie: u8,
    project: &'static str,
    cluster: &'static str,
    name: &'static str,
    labels: Vec<&'static str>,
    priority: i16,
    max_attempts: u32,
    retry: RetryPolicy,
    /// Seconds from when it is posted.
    run_in: Option<i64>,
    hold: bool,
    key: Option<(&'static str, u8)>,
}

/// A filter, with jobs that stand for when they were accepted.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    states: Vec<JobState>,
    labels: Vec<&'static str>,
    cluster: Option<&'static str>,
    name: Option<&'static str>,
    created_after: Option<Pick>,
    created_before: Option<Pick>,
}

fn retry() -> impl Strategy<Value = RetryPolicy> {
    let always = vec![Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost];
    let patient =
        RetryPolicy { backoff_seconds: 3_600, max_backoff_seconds: 5_000, retry_on: always.clone() };
    let prompt = RetryPolicy { backoff_seconds: 0, max_backoff_seconds: 0, retry_on: always };
    select(vec![RetryPolicy::default(), prompt, patient])
}

fn labels() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(LABELS, 0..=2)
}

impl Draft {
    fn any() -> impl Strategy<Value = Self> {
        let whose = (any::<u8>(), select(&PROJECTS[..2]), select(CLUSTERS), select(NAMES), labels());
        let how = (select(&[-1, 0, 0, 7][..]), 1..4_u32, retry());
        let when = (option::weighted(0.3, select(&[-3_600, 1, 3_600][..])), prop::bool::weighted(0.15));
        let key = option::weighted(0.4, (select(&["k", "l", "m#1"][..]), 0..2_u8));
        (whose, how, when, key).prop_map(|(whose, how, (run_in, hold), key)| {
            let (tie, project, cluster, name, labels) = whose;
            let (priority, max_attempts, retry) = how;
            Self { tie, project, cluster, name, labels, priority, max_attempts, retry, run_in, hold, key }
        })
    }

    fn post(&self, pair: &mut Pair<'_>) -> NewJob {
        let key = self.key.map(|(key, body)| IdempotencyKey { key: key.into(), body: [body; 32] });
        let inputs = json!({"tie": self.tie}).as_object().cloned().unwrap_or_default();
        NewJob {
            id: JobId(pair.new_id(self.tie)),
            project: name(self.project),
            name: self.name.into(),
            cluster: name(self.cluster),
            spec: JobSpec { command: vec!["true".into()], ..JobSpec::default() },
            labels: self.labels.iter().map(|label| (*label).to_owned()).collect(),
            priority: self.priority,
            inputs: if self.tie < 128 { inputs } else { Document::new() },
            max_attempts: self.max_attempts,
            retry: self.retry.clone(),
            run_at: self.run_in.map(|seconds| pair.at(seconds)),
            hold: self.hold,
            created_by: "token:t".into(),
            idempotency: key,
        }
    }
}

impl Asked {
    fn any() -> impl Strategy<Value = Self> {
        let states = prop_oneof![Just(Vec::new()), subsequence(&JobState::ALL[..], 1..=3)];
        let rare = |pick| option::weighted(0.2, pick);
        (
            states,
            labels(),
            option::weighted(0.3, select(CLUSTERS)),
            option::weighted(0.3, select(NAMES)),
            rare(Pick::any()),
            rare(Pick::any()),
        )
            .prop_map(|(states, labels, cluster, name, created_after, created_before)| Self {
                states,
                labels,
                cluster,
                name,
                created_after,
                created_before,
            })
    }

    async fn filter(&self, pair: &Pair<'_>) -> Result<Filter> {
        let accepted = async |pick: Option<Pick>| match pick {
            None => anyhow::Ok(None),
            Some(pick) => {
                let job = pair.job(pick, &JobState::ALL).await?;
                Ok(Some(pair.find(job).await?.map_or(pair.now(), |job| job.created_at)))
            }
        };
        Ok(Filter {
            states: self.states.clone(),
            labels: self.labels.iter().map(|label| (*label).to_owned()).collect(),
            cluster: self.cluster.map(name),
            name: self.name.map(str::to_owned),
            created_after: accepted(self.created_after).await?,
            created_before: accepted(self.created_before).await?,
        })
    }
}

fn patch() -> impl Strategy<Value = Patch> {
    let value = select(vec![Value::Null, json!(1), json!({"deep": ["ä", null]})]);
    let outputs = vec((select(&["p", "q"][..]), value), 0..3)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
    let labels = labels().prop_map(|labels| labels.into_iter().map(str::to_owned).collect());
    let priority = option::weighted(0.6, select(&[-100, -1, 0, 7, 100][..]));
    (option::of(labels), priority, option::of(0..=100_u8), option::of(outputs))
        .prop_map(|(labels, priority, progress, outputs)| Patch { labels, priority, progress, outputs })
}

fn report() -> impl Strategy<Value = Report> {
    let text = || option::weighted(0.4, select(&["", "sorting", "ä"][..]).prop_map(str::to_owned));
    let labels = labels().prop_map(|labels| labels.into_iter().map(str::to_owned).collect());
    let outputs = vec((select(&["p", "q"][..]), select(vec![json!(1), json!(["ä"])])), 0..2)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
    let order = (option::weighted(0.5, 1..3_u32), option::weighted(0.7, 0..4_u64));
    (order, option::of(0..=100_u8), text(), text(), labels, outputs).prop_map(
        |((attempt, seq), progress, stage, message, labels, outputs)| Report {
            attempt,
            seq,
            progress,
            stage,
            message,
            labels,
            outputs,
        },
    )
}

/// States in which a command does something.
fn obeys(command: Command) -> &'static [JobState] {
    match command {
        Command::Cancel => &[JobState::Held, JobState::Initialized, JobState::Claimed, JobState::Running],
        Command::Hold => &[JobState::Initialized],
        Command::Release => &[JobState::Held],
        Command::Retry => ENDED,
    }
}

impl Producing {
    /// Some new jobs.
    pub(super) fn posts() -> impl Strategy<Value = Self> {
        vec(Draft::any().prop_map(Posting::New), 2..8).prop_map(|jobs| Self::Insert { jobs, hinted: None })
    }

    pub(super) fn any() -> impl Strategy<Value = Self> {
        let posting = prop_oneof![
            8 => Draft::any().prop_map(Posting::New),
            1 => any::<u8>().prop_map(Posting::Again),
        ];
        let span = option::of(select(SPANS));
        let about = || (scope(), Pick::any());
        let limit = select(&[1, 2, 3, 50][..]);
        prop_oneof![
            6 => (vec(posting, 0..5), span).prop_map(|(jobs, hinted)| Self::Insert { jobs, hinted }),
            1 => about().prop_map(|(scope, job)| Self::Get { scope, job }),
            3 => (scope(), Asked::any(), option::of(Pick::any()), limit)
                .prop_map(|(scope, filter, after, limit)| Self::List { scope, filter, after, limit }),
            2 => about().prop_map(|(scope, job)| Self::History { scope, job }),
            4 => (scope(), Pick::some(), select(&Command::ALL[..]))
                .prop_map(|(scope, jobs, command)| Self::Command { scope, jobs, command }),
            3 => (about(), patch()).prop_map(|((scope, job), patch)| Self::Patch { scope, job, patch }),
            3 => (about(), report()).prop_map(|((scope, job), report)| Self::Report { scope, job, report }),
            1 => about().prop_map(|(scope, job)| Self::Remove { scope, job }),
        ]
    }

    pub(super) async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        match self {
            Self::Insert { jobs, hinted } => insert(pair, jobs, *hinted).await,
            Self::Get { scope, job } => {
                let job = pair.job(*job, &JobState::ALL).await?;
                pair.both(async |store| store.get(scope, job).await).await.map(drop)
            }
            Self::List { scope, filter, after, limit } => {
                let filter = filter.filter(pair).await?;
                let after = match after {
                    Some(pick) => Some(pair.job(*pick, &JobState::ALL).await?),
                    None => None,
                };
                let page = PageRequest { after, limit: *limit };
                pair.both(async |store| store.list(scope, &filter, page).await).await.map(drop)
            }
            Self::History { scope, job } => {
                let job = pair.job(*job, &JobState::ALL).await?;
                pair.both(async |store| store.history(scope, job).await).await.map(drop)
            }
            Self::Command { scope, jobs, command } => {
                let jobs = pair.jobs(jobs, obeys(*command)).await?;
                pair.both(async |store| store.command(scope, &jobs, *command, "token:c").await)
                    .await
                    .map(drop)
            }
            Self::Patch { scope, job, patch } => {
                let job = pair.job(*job, &JobState::ALL).await?;
                pair.both(async |store| store.patch(scope, job, patch).await).await.map(drop)
            }
            Self::Report { scope, job, report } => {
                let job = pair.job(*job, RUNS).await?;
                pair.both(async |store| store.report(scope, job, report).await).await.map(drop)
            }
            Self::Remove { scope, job } => {
                let job = pair.job(*job, ENDED).await?;
                pair.both(async |store| store.remove(scope, job).await).await.map(drop)
            }
        }
    }
}

async fn insert(pair: &mut Pair<'_>, postings: &[Posting], hinted: Option<Duration>) -> Result<()> {
    let mut jobs = Vec::new();
    for posting in postings {
        match posting {
            Posting::New(draft) => jobs.push(draft.post(pair)),
            Posting::Again(nth) => {
                let before = pair.posted.get(usize::from(*nth) % pair.posted.len().max(1)).cloned();
                let Some(before) = before else { continue };
                if !pair.accepted.contains(&before.id) || pair.find(before.id).await?.is_some() {
                    jobs.push(before);
                }
            }
        }
    }
    let outcomes = pair.both(async |store| store.insert(&jobs, hinted).await).await?;
    for (new, outcome) in jobs.into_iter().zip(outcomes) {
        if let Inserted::Created(job) = outcome {
            pair.accepted.insert(job.id);
        }
        if pair.posted.iter().all(|posted| posted.id != new.id) {
            pair.posted.push(new);
        }
    }
    Ok(())
}
