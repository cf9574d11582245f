//! What every adapter does alike: read rows, ask the transition function, write back what moved.
//!
//! An adapter brings [`Ledger`], two operations on rows. Everything that changes a job goes through [`decide`], so the
//! state machine is written once, and a lost race is read again and decided again here and nowhere else.

use super::{
    Applied, Claimed, Scope, StoreError, StoreResult, ToHandBack, ToRecord, Vanished, WorkerCluster,
};
use crate::domain::{
    Change, ClusterName, Command, Fact, JobId, Life, Outcome, Phase, Project, Refusal, RetryPolicy, Standing,
    StatusEvent, WorkerId, transition,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

/// How often a lost race is run again before the caller is told to come back.
const MAX_ROUNDS: usize = 16;

/// A job as far as a decision needs it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) job: JobId,
    pub(crate) project: Project,
    pub(crate) cluster: ClusterName,
    #[allow(dead_code, reason = "for adapters that count by deltas; the model counts anew")]
    pub(crate) priority: i16,
    pub(crate) max_attempts: u32,
    pub(crate) retry: RetryPolicy,
    pub(crate) life: Life,
    /// Rises with every write; what a write is guarded by.
    pub(crate) version: i64,
    /// Only read for claims; otherwise whatever the adapter likes.
    pub(crate) standing: Standing,
}

/// A row's way from one life to another, with everything to tell about it. Several facts about one job in one batch make
/// one move.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    /// The row as read: its version guards the write, its state leaves the counts.
    pub(crate) before: Row,
    /// What to write.
    pub(crate) after: Life,
    /// What to tell, in order.
    pub(crate) changes: Vec<Change>,
}

impl Move {
    /// A hint given for the row still stands: the same claim of the same owner. Anything else begins unhinted, so that
    /// whoever waits or is stranded next is hinted at once.
    pub(crate) fn keeps_hint(&self) -> bool {
        let (was, is) = (&self.before.life, &self.after);
        was.state.is_owned() && is.state.is_owned() && was.owner == is.owner && was.epoch == is.epoch
    }
}

/// How many jobs of each cluster `moves` take out of the queue into a worker's hands.
pub(crate) fn fresh_claims(moves: &[Move]) -> BTreeMap<&ClusterName, u32> {
    let mut fresh = BTreeMap::new();
    for Move { before, after, .. } in moves {
        if before.standing.room.is_some()
            && before.life.state.phase() == Phase::Waiting
            && after.state.is_owned()
        {
            *fresh.entry(&before.cluster).or_default() += 1;
        }
    }
    fresh
}

/// The jobs for which a cluster had no room. Their hints are used up, and must not stand for jobs about to be claimed.
pub(crate) fn refused_for_room(jobs: &[JobId], claimed: &[Claimed]) -> Vec<JobId> {
    let full = jobs.iter().zip(claimed).filter(|(_, answer)| **answer == Claimed::Refused(Refusal::Full));
    full.map(|(job, _)| *job).collect()
}

/// What rows are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A claim, or giving up: [`Row::standing`] must be true.
    Claim,
    /// Anything else.
    Change,
}

/// The rows of one adapter.
#[async_trait]
pub(crate) trait Ledger: Send {
    /// The rows that exist among `jobs`, and the store's time.
    async fn load(&mut self, jobs: &[JobId], purpose: Purpose) -> StoreResult<(DateTime<Utc>, Vec<Row>)>;

    /// Writes each move whose row still has the version it was read with, together with its waiting entry, its claim
    /// entry, its history, its counts and its feed entries, in one transaction; answers the jobs written. Writes none when
    /// there is no longer room in a cluster for its [`fresh_claims`].
    async fn save(&mut self, moves: &[Move]) -> StoreResult<HashSet<JobId>>;
}

/// What a job is told. What only its row knows (its cluster, its project, its standing) is filled in once it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told<'a> {
    /// A worker that serves these clusters asks for it.
    Claim { worker: WorkerId, clusters: &'a [WorkerCluster], alone: bool },
    /// A submission was created for it.
    Record(&'a ToRecord),
    /// Its owner gives it up.
    HandBack(WorkerId, &'a ToHandBack),
    /// A watcher saw something of it.
    Event(&'a StatusEvent),
    /// Nobody can reach it since a time; it is given up once that has lasted so long.
    Vanished(&'a Vanished, Option<Duration>),
    /// A user who sees `scope` asks something of it.
    Command { scope: &'a Scope, command: Command, by: &'a str },
}

impl<'a> Told<'a> {
    /// What it does depends on who is alive.
    fn asks_standing(self) -> bool {
        match self {
            Self::Claim { .. } | Self::Vanished(..) => true,
            Self::Record(_) | Self::HandBack(..) | Self::Event(_) | Self::Command { .. } => false,
        }
    }

    /// The fact this is to a job with this row, which the facts before it in the batch gave `life`; or the answer when it
    /// is none. The batch has `taken` so many jobs of its cluster already.
    fn fact(self, row: &Row, life: &Life, taken: u32) -> Result<Fact<'a>, Decided> {
        Ok(match self {
            Self::Claim { worker, clusters, alone } => {
                let served = clusters.iter().find(|c| c.name == row.cluster);
                let served = served.ok_or(Decided::Refused(Refusal::OutOfReach))?;
                let mut standing = row.standing;
                standing.room = standing.room.map(|room| room.saturating_sub(taken));
                if life.owner != row.life.owner {
                    // Claimed by this very batch: an id named twice is granted twice under one claim.
                    standing.owner_alive = standing.claimer_alive;
                }
                Fact::Claim { worker, reach: served.reach.as_ref(), alone, standing }
            }
            Self::Record(ToRecord { attempt, epoch, submission, .. }) => {
                Fact::Record { attempt: *attempt, epoch: *epoch, submission }
            }
            Self::HandBack(worker, ToHandBack { epoch, why, pause, .. }) => {
                Fact::HandBack { worker, epoch: *epoch, why, pause: *pause }
            }
            Self::Event(event) => Fact::Event(event),
            Self::Vanished(Vanished { since, .. }, lost_after) => {
                Fact::Vanished { since: *since, lost_after, standing: row.standing }
            }
            Self::Command { scope, .. } if !scope.covers(&row.project) => return Err(Decided::Absent),
            Self::Command { command, by, .. } => Fact::Command { command, by },
        })
    }
}

/// What became of one fact.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decided {
    /// It moved the job, which now lives so.
    Advanced(Box<Life>),
    /// The row already agreed; it lives so.
    Duplicate(Box<Life>),
    /// About something that is over.
    Stale,
    /// The row says no.
    Refused(Refusal),
    /// No such job.
    Absent,
}

impl Decided {
    /// What became of an event.
    pub(crate) fn applied(&self) -> Applied {
        match self {
            Self::Advanced(_) => Applied::Advanced,
            Self::Duplicate(_) => Applied::Duplicate,
            Self::Stale | Self::Refused(_) => Applied::Stale,
            Self::Absent => Applied::Unknown,
        }
    }

    /// The life under which `worker` was granted the job, or why it was not.
    pub(crate) fn granted(self, worker: WorkerId) -> Result<Box<Life>, Claimed> {
        match self {
            // A claim can also end a job: one that killed its workers again and again.
            Self::Advanced(life) | Self::Duplicate(life) => {
                let mine = life.state.is_owned() && life.owner == Some(worker);
                if mine { Ok(life) } else { Err(Claimed::Refused(Refusal::Ended)) }
            }
            Self::Stale => Err(Claimed::Refused(Refusal::Owned)),
            Self::Refused(refusal) => Err(Claimed::Refused(refusal)),
            Self::Absent => Err(Claimed::Absent),
        }
    }

    /// The row holds the submission it was told to record.
    pub(crate) fn recorded(&self) -> bool {
        matches!(self, Self::Advanced(_) | Self::Duplicate(_))
    }
}

/// Tells each job its fact; one answer per fact, in order. Facts about one job are told in order and saved as one move.
pub(crate) async fn decide(
    ledger: &mut impl Ledger,
    facts: &[(JobId, Told<'_>)],
) -> StoreResult<Vec<Decided>> {
    let purpose =
        if facts.iter().any(|(_, told)| told.asks_standing()) { Purpose::Claim } else { Purpose::Change };
    let mut answers: Vec<Option<Decided>> = vec![None; facts.len()];
    for _ in 0..MAX_ROUNDS {
        let open: Vec<usize> = (0..facts.len()).filter(|i| answers[*i].is_none()).collect();
        if open.is_empty() {
            break;
        }
        let mut ids: Vec<JobId> = open.iter().map(|i| facts[*i].0).collect();
        // Every adapter locks in this order, so two batches never wait for each other in a circle.
        ids.sort_unstable();
        ids.dedup();
        let (now, rows) = ledger.load(&ids, purpose).await?;
        let mut round = Round::new(rows);
        for i in &open {
            let (job, told) = facts[*i];
            answers[*i] = Some(round.tell(job, told, now));
        }
        let moves = round.moves();
        if moves.is_empty() {
            break;
        }
        let saved = ledger.save(&moves).await?;
        let beaten: HashSet<JobId> =
            moves.iter().map(|m| m.before.job).filter(|job| !saved.contains(job)).collect();
        // Somebody else wrote first: what this round decided for these jobs never happened.
        for i in open {
            if beaten.contains(&facts[i].0) {
                answers[i] = None;
            }
        }
    }
    answers
        .into_iter()
        .map(|a| {
            a.ok_or_else(|| {
                StoreError::Away(anyhow::anyhow!("lost {MAX_ROUNDS} races for a row or for room in a row"))
            })
        })
        .collect()
}

/// One reading of the rows and what the facts made of them.
struct Round {
    rows: HashMap<JobId, (Row, Life, Vec<Change>)>,
    /// Jobs taken out of the queue, by cluster.
    taken: HashMap<ClusterName, u32>,
}

impl Round {
    fn new(rows: Vec<Row>) -> Self {
        let rows = rows.into_iter().map(|row| (row.job, (row.clone(), row.life, Vec::new()))).collect();
        Self { rows, taken: HashMap::new() }
    }

    fn tell(&mut self, job: JobId, told: Told<'_>, now: DateTime<Utc>) -> Decided {
        let Some((row, life, changes)) = self.rows.get_mut(&job) else { return Decided::Absent };
        let taken = self.taken.get(&row.cluster).copied().unwrap_or(0);
        let fact = match told.fact(row, life, taken) {
            Ok(fact) => fact,
            Err(answer) => return answer,
        };
        match transition(life, row.max_attempts, &row.retry, &fact, now) {
            Outcome::Advanced { life: next, change } => {
                if life.state.phase() == Phase::Waiting && next.state.is_owned() {
                    *self.taken.entry(row.cluster.clone()).or_default() += 1;
                }
                *life = (*next).clone();
                changes.push(change);
                Decided::Advanced(next)
            }
            Outcome::Duplicate => Decided::Duplicate(Box::new(life.clone())),
            Outcome::Stale => Decided::Stale,
            Outcome::Refused(refusal) => Decided::Refused(refusal),
        }
    }

    /// What moved, in the order of ids.
    fn moves(&mut self) -> Vec<Move> {
        let mut moves: Vec<Move> = self
            .rows
            .drain()
            .filter(|(_, (_, _, changes))| !changes.is_empty())
            .map(|(_, (before, after, changes))| Move { before, after, changes })
            .collect();
        moves.sort_unstable_by_key(|m| m.before.job);
        moves
    }
}
