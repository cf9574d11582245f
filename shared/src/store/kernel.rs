//! What every adapter does alike: read rows, ask the transition function, write back what moved.
//!
//! An adapter brings [`Ledger`], two operations on rows. Everything that changes a job goes through [`decide`], so the
//! state machine is written once, and a lost race is read again and decided again here and nowhere else.

use super::{StoreError, StoreResult};
use crate::domain::{
    Change, ClusterName, Fact, JobId, Life, Outcome, Project, Refusal, RetryPolicy, Standing, transition,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};

/// How often a lost race is run again before the caller is told to come back.
const MAX_ROUNDS: usize = 16;

/// A job as far as a decision needs it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) job: JobId,
    pub(crate) project: Project,
    pub(crate) cluster: ClusterName,
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

/// What rows are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A claim: [`Row::standing`] must be true.
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
    /// entry, its history, its counts and its feed entries, in one transaction; answers the jobs written.
    async fn save(&mut self, moves: &[Move]) -> StoreResult<HashSet<JobId>>;
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

/// Tells each job its fact; one answer per fact, in order. Facts about one job are told in order and saved as one move.
pub(crate) async fn decide(
    ledger: &mut impl Ledger,
    facts: &[(JobId, Fact<'_>)],
    purpose: Purpose,
) -> StoreResult<Vec<Decided>> {
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
            let (job, fact) = &facts[*i];
            answers[*i] = Some(round.tell(*job, fact, now));
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
            a.ok_or_else(|| StoreError::Away(anyhow::anyhow!("lost {MAX_ROUNDS} races for one row in a row")))
        })
        .collect()
}

/// One reading of the rows and what the facts made of them.
struct Round {
    rows: HashMap<JobId, (Row, Life, Vec<Change>)>,
}

impl Round {
    fn new(rows: Vec<Row>) -> Self {
        let rows = rows.into_iter().map(|row| (row.job, (row.clone(), row.life, Vec::new()))).collect();
        Self { rows }
    }

    fn tell(&mut self, job: JobId, fact: &Fact<'_>, now: DateTime<Utc>) -> Decided {
        let Some((row, life, changes)) = self.rows.get_mut(&job) else { return Decided::Absent };
        // The row knows its standing; the fact, made before the row was read, does not.
        let fact = match fact {
            Fact::Claim { worker, reach, alone, .. } => {
                Fact::Claim { worker: *worker, reach: *reach, alone: *alone, standing: row.standing }
            }
            Fact::Record { .. } | Fact::HandBack { .. } | Fact::Event(_) | Fact::Command { .. } => {
                fact.clone()
            }
        };
        match transition(life, row.max_attempts, &row.retry, &fact, now) {
            Outcome::Advanced { life: next, change } => {
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
