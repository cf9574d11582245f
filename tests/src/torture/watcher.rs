//! The eye of the harness: looks at the rows themselves, past every link, several times a second; notes how they change, who
//! of the fleet has fallen, and what the fleet says of itself.

use super::{
    evidence::Sighting,
    fleet::{ADMIN, Fleet, Kind, Member},
    load::Load,
};
use crate::scrape::Scrape;
use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::{Clock as _, SystemClock},
    domain::{JobId, JobState},
};
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

const EVERY: Duration = Duration::from_millis(400);
const SCRAPE_EVERY: Duration = Duration::from_secs(5);
/// A server that is being restarted does not answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Counters that must stay at nothing.
const DEFECTS: [&str; 3] =
    ["jobgate_task_panics_total", "jobgate_http_panics_total", "jobgate_broker_poison_total"];

/// How much was done up to some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Jobs producers were told to be stored.
    pub accepted: u64,
    /// Attempts that began.
    pub started: u64,
    /// Jobs that ended well.
    pub finished: u64,
    /// Jobs that ended because somebody asked.
    pub canceled: u64,
    /// Jobs that ended otherwise.
    pub failed: u64,
    /// Requests answered 503.
    pub refused: u64,
    /// Requests without an answer.
    pub silent: u64,
}

impl Counts {
    /// What was done since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            accepted: self.accepted - before.accepted,
            started: self.started - before.started,
            finished: self.finished - before.finished,
            canceled: self.canceled - before.canceled,
            failed: self.failed - before.failed,
            refused: self.refused - before.refused,
            silent: self.silent - before.silent,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            started: self.started + other.started,
            finished: self.finished + other.finished,
            canceled: self.canceled + other.canceled,
            failed: self.failed + other.failed,
            refused: self.refused + other.refused,
            silent: self.silent + other.silent,
        }
    }
}

/// Where everything stood at the last look.
#[derive(Debug, Clone)]
pub struct Standing {
    /// When that was.
    pub at: Instant,
    /// When the oldest job that has not ended was accepted.
    pub oldest_open: Option<DateTime<Utc>>,
    /// Jobs that have not ended.
    pub open: usize,
    /// When a row last changed.
    pub moved: Instant,
    /// How much was done.
    pub counts: Counts,
}

/// What was noted.
#[derive(Debug, Default)]
pub struct Notes {
    /// Changes of rows, oldest first.
    pub sightings: Vec<Sighting>,
    /// Defects, each told once.
    pub defects: Vec<String>,
    /// The most memory any process of a kind was seen to hold, in MiB.
    pub peak_memory_mib: BTreeMap<Kind, u64>,
}

/// The eye.
#[derive(Debug)]
pub struct Watcher {
    database: String,
    fleet: Arc<Fleet>,
    load: Arc<Load>,
    notes: Mutex<Notes>,
    standing: watch::Sender<Standing>,
}

type Seen = (i16, i32, i32);

impl Watcher {
    /// An eye that has seen nothing.
    pub fn new(database: String, fleet: Arc<Fleet>, load: Arc<Load>) -> Self {
        let now = Instant::now();
        let standing =
            Standing { at: now, oldest_open: None, open: 0, moved: now, counts: Counts::default() };
        Self { database, fleet, load, notes: Mutex::default(), standing: watch::Sender::new(standing) }
    }

    /// What was noted so far.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where everything stands, look by look.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Looks until it is dropped.
    pub async fn watch(&self) {
        let mut seen: HashMap<JobId, Seen> = HashMap::new();
        let mut connection = None;
        let mut scraped = Instant::now();
        loop {
            tokio::time::sleep(EVERY).await;
            match timeout(ANSWER, self.look(&mut connection, &mut seen)).await {
                Ok(Ok(())) => {}
                // The database is what is being tortured.
                Ok(Err(_)) | Err(_) => connection = None,
            }
            self.note_fallen().await;
            if scraped.elapsed() >= SCRAPE_EVERY {
                scraped = Instant::now();
                self.scrape_all().await;
            }
        }
    }

    async fn look(&self, slot: &mut Option<PgConnection>, seen: &mut HashMap<JobId, Seen>) -> Result<()> {
        let connection = match slot {
            Some(connection) => connection,
            None => slot.insert(PgConnection::connect(&self.database).await?),
        };
        let rows: Vec<(Uuid, i16, i32, i32)> = sqlx::query_as(
            "-- watch_jobs
             SELECT job_id, state, attempt, version FROM job_state",
        )
        .fetch_all(connection)
        .await?;
        let at = SystemClock.now();
        // After the rows were read, so that what stands behind began after the end that was seen.
        let lengths = self.load.ledger_lengths();
        let clusters: HashMap<JobId, String> = {
            let book = self.load.book();
            book.accepted.iter().map(|accepted| (accepted.job, accepted.cluster.clone())).collect()
        };
        let (mut counts, mut open, mut oldest, mut moved) = (self.counts(), 0, None, false);
        let mut new = Vec::new();
        for (id, code, attempt, version) in rows {
            let job = JobId(id);
            let state = JobState::from_code(code).with_context(|| format!("{job} is in state {code}"))?;
            match state {
                JobState::Finished => counts.finished += 1,
                JobState::Canceled => counts.canceled += 1,
                JobState::Failed | JobState::TimedOut | JobState::Lost => counts.failed += 1,
                JobState::Held
                | JobState::Initialized
                | JobState::Claimed
                | JobState::Pending
                | JobState::Running => {
                    open += 1;
                    let accepted_at = accepted_at(job);
                    oldest = oldest
                        .map_or(Some(accepted_at), |before: DateTime<Utc>| Some(before.min(accepted_at)));
                }
            }
            if seen.insert(job, (code, attempt, version)) != Some((code, attempt, version)) {
                moved = true;
                let length = clusters.get(&job).and_then(|cluster| lengths.get(cluster).copied());
                new.push(Sighting {
                    job,
                    at,
                    state,
                    attempt: u32::try_from(attempt)?,
                    version,
                    ledger_length: length.filter(|_| state.is_terminal()),
                });
            }
        }
        self.notes().sightings.extend(new);
        self.standing.send_modify(|standing| {
            standing.at = Instant::now();
            standing.oldest_open = oldest;
            standing.open = open;
            if moved {
                standing.moved = standing.at;
            }
            standing.counts = counts;
        });
        Ok(())
    }

    /// What is counted outside the rows.
    fn counts(&self) -> Counts {
        let troubles = &self.load.troubles;
        Counts {
            accepted: self.load.book().accepted.len() as u64,
            started: self.load.started(),
            refused: troubles.refused.load(Ordering::Relaxed),
            silent: troubles.silent.load(Ordering::Relaxed),
            ..Counts::default()
        }
    }

    /// Somebody who fell is a defect; the next heal starts it again.
    async fn note_fallen(&self) {
        for fallen in self.fleet.fallen().await {
            self.notes().defects.push(fallen);
        }
    }

    /// Notes what the members say of themselves; who does not answer is asked again later.
    pub async fn scrape_all(&self) {
        for member in &self.fleet.members {
            self.scrape(member).await;
        }
    }

    async fn scrape(&self, member: &Member) {
        if let Some(mib) = member.memory_mib().await {
            let mut notes = self.notes();
            let peak = notes.peak_memory_mib.entry(member.kind).or_default();
            *peak = mib.max(*peak);
        }
        let Ok(Ok(scrape)) = timeout(ANSWER, metrics_of(member)).await else { return };
        for name in DEFECTS {
            if let Some(count) = scrape.value(name, &[]).filter(|count| *count > 0.0) {
                let defect = format!("{} counts {name} {count}", member.name);
                let mut notes = self.notes();
                if !notes.defects.contains(&defect) {
                    notes.defects.push(defect);
                }
            }
        }
    }
}

async fn metrics_of(member: &Member) -> Result<Scrape> {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build()?;
    let answer = http.get(format!("{}/metrics", member.url)).bearer_auth(ADMIN).send().await?;
    Scrape::parse(&answer.error_for_status()?.text().await?)
}

/// The time in a job's id, which the process that accepted it put there.
fn accepted_at(job: JobId) -> DateTime<Utc> {
    let millis = i64::try_from(job.0.as_u64_pair().0 >> 16).unwrap_or(i64::MAX);
    DateTime::from_timestamp_millis(millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}
