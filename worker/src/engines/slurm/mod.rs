//! The Slurm engine: jobs of a Slurm cluster, through slurmrestd.
//!
//! An attempt is a job that is submitted held; its start lifts the hold. Everything that must be remembered is at Slurm: the
//! tag, and a nonce, in the job's name, which say that an id is ours (see [`id`]); how far it was brought, in its comment. A
//! start writes there that it was one, in the request that lifts the hold, so a job a person holds later is told apart from
//! one that was never started.
//!
//! **Why nothing runs twice.** Nothing that is not recorded is started, by the contract of the port, and a held job runs
//! nothing. A submit that went unanswered leaves one held job too many at worst, which the sweep removes. What Slurm itself
//! runs again (a requeue, a crash of slurmctld that had not yet saved the beginning) is told as a reason where Slurm tells it.
//!
//! **What slurmctld forgets.** It saves its state every few seconds. Killed between a start and the next save, it comes back
//! with the job held as before, though it has run. So what has left output is never started (again): it is told by the exit
//! code it left, or as gone. Without a log directory this cannot be known.
//!
//! **What a look at a job and an act on it leave between them.** Slurm has no "release it if it is still the one": should
//! slurmctld crash between the two and give the id to another held job of the same account within those milliseconds, that
//! one is meant.

mod config;
mod files;
mod id;
mod rest;
mod script;
#[cfg(test)]
mod scripted;
mod state;
#[cfg(test)]
mod tests;
mod token;
mod wire;

pub use config::{SlurmConfig, SlurmUser};

use crate::{
    engine::{Capabilities, Engine, EngineError, EngineResult, LogChunk, Sighting, Stream, ToCreate},
    engines::{EngineContext, EngineSettings as _},
};
use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use files::{Directory, Left};
use futures::{
    StreamExt as _, TryFutureExt as _,
    future::{BoxFuture, join_all},
    stream,
};
use id::{Identity, Mark, Nonce};
use jobgate_shared::{
    clock::Clock,
    domain::{Ending, JobSpec, Observation, SpecError, Submission, SubmissionTag},
};
use rest::Rest;
use serde_json::json;
use state::{Fault, Legacy};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use token::Tokens;
use tokio::{sync::Semaphore, time::Instant};
use wire::JobRecord;

/// So many accounts are looked at side by side, unless some hang.
const ACCOUNTS_AT_ONCE: usize = 8;
/// slurmdbd is asked for so many jobs at once.
const STORED_AT_ONCE: usize = 8;
/// And for so many in one poll.
const STORED_PER_POLL: usize = 20;
/// How soon it is asked again about a job it does not know.
const STORED_EVERY: Duration = Duration::from_secs(10);
/// How long it is remembered that a job was forgotten: longer than slurmctld keeps what has ended.
const FORGOTTEN_FOR: Duration = Duration::from_hours(1);

/// A slurmctld that was killed can take a job for running that has ended, until its node registers anew. So what running jobs
/// left is looked at so often, and believed if Slurm has not come to know of it in the same time.
const LEFT_BEHIND: Duration = Duration::from_mins(1);

/// The engine.
#[derive(Debug)]
pub struct SlurmEngine {
    config: SlurmConfig,
    scope: String,
    rest: Rest,
    clock: Arc<dyn Clock>,
    call_timeout: Duration,
    look_timeout: Duration,
    memory: Mutex<Memory>,
}

/// What this process saw; nothing that another could not see itself.
#[derive(Debug, Default)]
struct Memory {
    /// Whether a job was over when it was looked at last: its output is complete then.
    over: HashMap<Identity, bool>,
    /// When it was looked at last whether a running job has left its exit code, and since when it was seen to have.
    left: HashMap<Identity, (Instant, Option<Instant>)>,
    /// Jobs whose files are removed; Slurm shows them for some minutes more.
    forgotten: HashMap<Identity, Instant>,
    /// When slurmdbd said last that it does not know how they ended.
    unstored: HashMap<Identity, Instant>,
    /// Accounts that could not be looked at, while others could.
    troubled: BTreeSet<String>,
}

/// The jobs of ours in one listing, by Slurm's id.
type Listing = HashMap<u32, (Identity, JobRecord)>;
/// A look at the jobs of one account, by its name.
type Look<'a, T> = (String, BoxFuture<'a, Result<T, Fault>>);
/// What is seen of one job.
type Sighted = (Identity, Result<Sighting, Fault>);

impl SlurmEngine {
    /// An engine that has asked nobody yet.
    pub fn new(config: SlurmConfig, context: &EngineContext) -> anyhow::Result<Self> {
        let EngineContext { call_timeout, look_timeout, .. } = *context;
        let clock = context.clock.clone();
        let tokens = Tokens::new(config.tokens(), clock.clone(), call_timeout);
        let rest = Rest::new(context.cluster.clone(), &config, tokens)?;
        let scope = config.scope.clone().unwrap_or_else(|| context.cluster.to_string());
        Ok(Self { config, scope, rest, clock, call_timeout, look_timeout, memory: Mutex::default() })
    }

    /// Whose listing shows the jobs of an account.
    fn observer<'a>(&'a self, user: &'a str) -> &'a str {
        self.config.observer.as_deref().unwrap_or(user)
    }

    /// The jobs of ours an account sees.
    async fn listing(&self, observer: &str) -> Result<Listing, Fault> {
        let jobs = self.rest.jobs(observer).await?;
        let ours = jobs.into_iter().filter_map(|job| Identity::seen(&job).map(|of| (of.job, (of, job))));
        Ok(ours.collect())
    }

    /// Looks at many accounts, side by side: one that fails or hangs is left out, and told when that begins. Each has its turn
    /// within the patience, however many hang: one that takes longer than its part lets the next begin beside it. A fault only
    /// when it is everyone's.
    async fn each<T: Send>(
        &self,
        patience: Duration,
        looks: Vec<Look<'_, T>>,
    ) -> Result<Vec<(String, T)>, Fault> {
        let rounds = looks.len().div_ceil(ACCOUNTS_AT_ONCE).max(1);
        let part = patience / u32::try_from(rounds).unwrap_or(u32::MAX);
        let (deadline, turns) = (Instant::now() + patience, &Semaphore::new(ACCOUNTS_AT_ONCE));
        let mut bounded: Vec<BoxFuture<'_, (String, Result<T, Fault>)>> = Vec::new();
        for (account, mut look) in looks {
            bounded.push(Box::pin(async move {
                let turn = turns.acquire().await;
                let seen = async {
                    if let Ok(seen) = tokio::time::timeout(part, &mut look).await {
                        return seen;
                    }
                    drop(turn);
                    look.await
                };
                let seen = tokio::time::timeout_at(deadline, seen).await;
                (account, seen.unwrap_or_else(|_| Err(late(patience))))
            }));
        }
        let seen = join_all(bounded).await;
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        for (account, seen) in seen {
            match seen {
                Ok(seen) => found.push((account, seen)),
                Err(fault) => faults.push((account, fault)),
            }
        }
        if found.is_empty()
            && let Some((_, fault)) = faults.pop()
        {
            return Err(fault);
        }
        for (account, _) in &found {
            self.is_well(account);
        }
        for (account, fault) in faults {
            self.is_troubled(&account, fault);
        }
        Ok(found)
    }

    fn is_well(&self, account: &str) {
        if self.memory().troubled.remove(account) {
            tracing::info!(account, scope = self.scope, "Slurm shows the jobs of {account} again");
        }
    }

    fn is_troubled(&self, account: &str, fault: Fault) {
        if self.memory().troubled.insert(account.to_owned()) {
            let error = format!("{:#}", anyhow::Error::new(EngineError::from(fault)));
            tracing::warn!(account, scope = self.scope, error, "the jobs of {account} cannot be looked at");
        }
    }

    /// Held jobs of this gateway that were never started, each with its account.
    async fn held(&self, patience: Duration) -> Result<Vec<(Identity, JobRecord, String)>, Fault> {
        let accounts = self.config.accounts();
        let observers: BTreeSet<&str> = accounts.iter().map(|user| self.observer(user)).collect();
        let mut looks: Vec<Look<'_, Listing>> = Vec::new();
        for observer in observers {
            looks.push((observer.to_owned(), Box::pin(self.listing(observer))));
        }
        let mut found = Vec::new();
        for (observer, listing) in self.each(patience, looks).await? {
            for (of, job) in listing.into_values() {
                let ours = matches!(of.mark(&job, &self.scope), Some(Mark::Created | Mark::Discarded));
                // Who sees the jobs of all must not be taken for whom they belong to.
                let user = if job.user_name.is_empty() { observer.clone() } else { job.user_name.clone() };
                let mine =
                    if self.config.observer.is_some() { accounts.contains(&user) } else { user == observer };
                if ours && mine && job.is_held_by_user() {
                    found.push((of, job, user));
                }
            }
        }
        Ok(found)
    }

    /// The job, if the id is still its own.
    async fn look(&self, of: Identity, user: &str) -> Result<Option<JobRecord>, Fault> {
        let job = self.rest.job(user, of.job).await?;
        Ok(job.filter(|job| Identity::seen(job) == Some(of)))
    }

    /// How far a job of ours was brought; one whose comment somebody else wrote was at least created.
    fn mark(&self, of: Identity, job: &JobRecord) -> Mark {
        of.mark(job, &self.scope).unwrap_or(Mark::Created)
    }

    async fn lift_hold(&self, of: Identity, user: &str) -> Result<(), Fault> {
        let Some(job) = self.look(of, user).await? else {
            tracing::debug!(submission = of.job, "not started: Slurm does not know it");
            return Ok(());
        };
        if self.mark(of, &job) != Mark::Created || !job.is_held_by_user() {
            return Ok(());
        }
        let left = self.left_by(vec![(of, user.to_owned(), true)]).await?.remove(&of).transpose()?;
        if left.is_some_and(|left| left.begun) {
            tracing::warn!(submission = of.job, "not started: it has begun before, and slurmctld forgot it");
            return Ok(());
        }
        let comment = id::comment(of.tag, &self.scope, Mark::Started);
        done(self.rest.update(user, of.job, &json!({"hold": false, "comment": comment})).await)
    }

    async fn end(&self, of: Identity, user: &str) -> Result<(), Fault> {
        match self.look(of, user).await? {
            Some(job) if !job.is_over() => done(self.rest.cancel(user, of.job).await),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends a job that was never started, and writes down that nobody wanted it.
    async fn remove(&self, of: Identity, user: &str) -> Result<(), Fault> {
        let Some(job) = self.look(of, user).await? else { return Ok(()) };
        let comment = id::comment(of.tag, &self.scope, Mark::Discarded);
        match self.mark(of, &job) {
            Mark::Created | Mark::Discarded if job.is_held_by_user() => {
                done(self.rest.update(user, of.job, &json!({"comment": comment})).await)?;
                done(self.rest.cancel(user, of.job).await)
            }
            Mark::Created | Mark::Started | Mark::Discarded => Ok(()),
        }
    }

    /// What listings and the files of jobs that are over say of many: nothing of one that could not be looked at.
    async fn sight_all(
        &self,
        asked: &HashMap<Identity, String>,
    ) -> Result<HashMap<Identity, Sighting>, Fault> {
        let mut by_observer: BTreeMap<&str, Vec<(Identity, &str)>> = BTreeMap::new();
        for (of, user) in asked {
            by_observer.entry(self.observer(user)).or_default().push((*of, user));
        }
        let mut looks: Vec<Look<'_, Vec<Sighted>>> = Vec::new();
        for (observer, asked) in by_observer {
            looks.push((observer.to_owned(), Box::pin(self.sight_by(observer, asked))));
        }
        let (mut found, mut faults) = (HashMap::new(), BTreeMap::new());
        for (of, sighting) in
            self.each(self.look_timeout, looks).await?.into_iter().flat_map(|(_, seen)| seen)
        {
            match sighting {
                Ok(sighting) => drop(found.insert(of, sighting)),
                Err(fault) => drop(faults.insert(asked.get(&of).cloned().unwrap_or_default(), fault)),
            }
        }
        if found.is_empty()
            && let Some((_, fault)) = faults.pop_first()
        {
            return Err(fault);
        }
        for user in asked.values().collect::<BTreeSet<_>>() {
            let account = format!("{user}, by what they left,");
            match faults.remove(user) {
                Some(fault) => self.is_troubled(&account, fault),
                None => self.is_well(&account),
            }
        }
        Ok(found)
    }

    /// What one account's view of all jobs, and what they left, says of those of some.
    async fn sight_by(&self, observer: &str, asked: Vec<(Identity, &str)>) -> Result<Vec<Sighted>, Fault> {
        let mut listing = self.listing(observer).await?;
        let mut shown = Vec::new();
        for (of, user) in asked {
            let job = listing.remove(&of.job).filter(|(seen, _)| *seen == of).map(|(_, job)| job);
            shown.push((of, user.to_owned(), job));
        }
        let wanted = shown.iter().filter(|(of, _, job)| {
            job.as_ref().is_none_or(|job| job.is_over() || job.is_held_by_user() || self.is_due(*of, job))
        });
        let wanted = wanted.map(|(of, user, job)| (*of, user.clone(), job.is_none())).collect();
        let mut left = self.left_by(wanted).await?;
        let questions = AtomicUsize::new(STORED_PER_POLL);
        let mut sights: Vec<BoxFuture<'_, Sighted>> = Vec::new();
        for (of, user, job) in shown {
            let (left, questions) = (left.remove(&of).unwrap_or_else(|| Ok(Left::default())), &questions);
            sights.push(Box::pin(async move {
                let sighting = match left {
                    Ok(left) => self.sight(of, &user, job, left, questions).await,
                    Err(fault) => Err(fault),
                };
                (of, sighting)
            }));
        }
        Ok(stream::iter(sights).buffer_unordered(STORED_AT_ONCE).collect().await)
    }

    async fn sight(
        &self,
        of: Identity,
        user: &str,
        job: Option<JobRecord>,
        left: Left,
        questions: &AtomicUsize,
    ) -> Result<Sighting, Fault> {
        if self.memory().forgotten.contains_key(&of) {
            return Ok(Sighting::Absent);
        }
        let Some(job) = job else { return self.sight_of_the_past(of, user, left, questions).await };
        Ok(match self.mark(of, &job) {
            Mark::Created if job.is_held_by_user() && left.begun => lost_its_beginning(&left),
            Mark::Created if job.is_held_by_user() => Sighting::Inert,
            Mark::Created if job.is_over() && !left.begun => Sighting::Seen(never_began(job.observe(None))),
            Mark::Discarded => Sighting::Absent,
            Mark::Created | Mark::Started => {
                // What is being run for nothing has not ended.
                let ended = left.legacy.as_ref().filter(|left| **left != Legacy::BegunAgain);
                let ended = ended.filter(|_| !job.is_over() && self.is_left_behind(of));
                ended.map_or_else(|| job.sight(left.legacy.as_ref()), state::sight_legacy)
            }
        })
    }

    /// What a running job left is to be looked at; keeps the books about it.
    fn is_due(&self, of: Identity, job: &JobRecord) -> bool {
        if !job.is_running() {
            return false;
        }
        let (now, mut memory) = (Instant::now(), self.memory());
        let (looked, _) = memory.left.entry(of).or_insert((now, None));
        let due = now >= *looked + LEFT_BEHIND;
        if due {
            *looked = now;
        }
        due
    }

    /// It left its exit code long ago, and Slurm takes it for running.
    fn is_left_behind(&self, of: Identity) -> bool {
        let (now, mut memory) = (Instant::now(), self.memory());
        let (_, left) = memory.left.entry(of).or_insert((now, None));
        now >= *left.get_or_insert(now) + LEFT_BEHIND
    }

    /// Of a job slurmctld does not know any more.
    async fn sight_of_the_past(
        &self,
        of: Identity,
        user: &str,
        left: Left,
        questions: &AtomicUsize,
    ) -> Result<Sighting, Fault> {
        let Some(last) = self.stored(of, user, questions).await? else { return Ok(Sighting::Unseen) };
        Ok(match (last, left.legacy) {
            (Some(job), legacy) => job.sight(legacy.as_ref()),
            (None, Some(legacy)) => state::sight_legacy(&legacy),
            (None, None) => Sighting::Absent,
        })
    }

    /// What slurmdbd says of a job's end, which it does not know of a job that was lost; `None` when it was its turn to be
    /// asked and too many others' was, too.
    async fn stored(
        &self,
        of: Identity,
        user: &str,
        questions: &AtomicUsize,
    ) -> Result<Option<Option<JobRecord>>, Fault> {
        let asked = self.memory().unstored.get(&of).copied();
        if !self.config.slurmdb || asked.is_some_and(|at| Instant::now() < at + STORED_EVERY) {
            return Ok(Some(None));
        }
        let left = questions.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() {
            return Ok(None);
        }
        // One that hangs takes from the look only its part.
        let patience = self.look_timeout / 4;
        let stored = tokio::time::timeout(patience, self.rest.stored(self.observer(user), of.job)).await;
        let stored = stored.unwrap_or_else(|_| Err(late(patience)))?;
        // A job slurmdbd takes for alive, and slurmctld does not know, is one that was lost.
        let last = stored.into_iter().filter(|job| Identity::seen(job) == Some(of) && job.is_over());
        let last = last.max_by_key(id::submitted);
        if last.is_none() {
            self.memory().unstored.insert(of, Instant::now());
        }
        Ok(Some(last))
    }

    /// What jobs left, of those that left something. Where it decides (`true`), a directory that cannot be read is an outage
    /// of theirs.
    async fn left_by(
        &self,
        wanted: Vec<(Identity, String, bool)>,
    ) -> Result<HashMap<Identity, Result<Left, Fault>>, Fault> {
        let dirs: BTreeMap<String, _> = wanted
            .iter()
            .filter_map(|(_, user, _)| Some((user.clone(), self.config.log_dir(user)?)))
            .collect();
        blocking(move || {
            let mut found = HashMap::new();
            let mut open = HashMap::new();
            for (of, user, decides) in wanted {
                let Some(path) = dirs.get(&user) else { continue };
                let dir = open.entry(user).or_insert_with(|| Directory::open(path));
                let read = match dir {
                    Ok(dir) => dir.left_by(&of).map_err(anyhow::Error::from),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                match read {
                    Ok(left) => drop(found.insert(of, Ok(left))),
                    Err(error) if decides => drop(found.insert(of, Err(Fault::Away(error)))),
                    Err(error) => tracing::debug!(%error, "an exit code was not read; Slurm's own is told"),
                }
            }
            Ok(found)
        })
        .await
        .map_err(Fault::Away)
    }

    /// Whether nothing will be added to what a job has printed.
    async fn is_over(&self, of: Identity, user: &str) -> Result<bool, Fault> {
        let known = self.memory().over.get(&of).copied();
        if let Some(over) = known {
            return Ok(over);
        }
        let over = self.look(of, user).await?.is_none_or(|job| job.is_over());
        self.memory().over.insert(of, over);
        Ok(over)
    }

    async fn clear_away(&self, of: Identity, user: &str) -> Result<(), Fault> {
        if let Some(job) = self.look(of, user).await?.filter(|job| !job.is_over()) {
            if self.mark(of, &job) == Mark::Started || !job.is_held_by_user() {
                self.end(of, user).await?;
                return Err(Fault::Away(anyhow::anyhow!("it still runs; it is being ended")));
            }
            self.remove(of, user).await?;
        }
        if let Some(path) = self.config.log_dir(user) {
            blocking(move || {
                let dir = Directory::open(&path)?;
                for file in [of.file("out"), of.file("err"), of.legacy_file(), of.start_file()] {
                    match dir.remove(&file) {
                        // Where workers may only read, whoever owns the directory clears it.
                        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                            tracing::debug!(%error, file, "left where it is");
                        }
                        removed => removed?,
                    }
                }
                Ok(())
            })
            .await
            .map_err(Fault::Away)?;
        }
        let now = Instant::now();
        let mut memory = self.memory();
        memory.over.remove(&of);
        memory.unstored.remove(&of);
        memory.forgotten.retain(|_, at| now - *at < FORGOTTEN_FOR);
        memory.forgotten.insert(of, now);
        Ok(())
    }

    /// Jobs that are over, of those that left output.
    async fn left(&self, older_than: Duration) -> Result<Vec<(SubmissionTag, Submission)>, Fault> {
        let mut looks: Vec<Look<'_, Vec<(SubmissionTag, Submission)>>> = Vec::new();
        for user in self.config.accounts() {
            looks.push((user.clone(), Box::pin(self.left_of(user, older_than))));
        }
        let found = self.each(self.look_timeout, looks).await?;
        Ok(found.into_iter().flat_map(|(_, left)| left).collect())
    }

    async fn left_of(
        &self,
        user: String,
        older_than: Duration,
    ) -> Result<Vec<(SubmissionTag, Submission)>, Fault> {
        let Some(path) = self.config.log_dir(&user) else { return Ok(Vec::new()) };
        let now = self.clock.now().into();
        let left = blocking(move || Ok(Directory::open(&path)?.left(now, older_than)?));
        let mut left = left.await.map_err(Fault::Away)?;
        left.retain(|of| !self.memory().forgotten.contains_key(of));
        if left.is_empty() {
            return Ok(Vec::new());
        }
        let listing = self.listing(self.observer(&user)).await?;
        let lives =
            |of: &Identity| listing.get(&of.job).is_some_and(|(seen, job)| seen == of && !job.is_over());
        Ok(left.iter().filter(|of| !lives(of)).map(|of| (of.tag, of.submission(&user))).collect())
    }

    /// Nothing is left half done under it.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All the work of a call that does something, whatever requests it takes.
    async fn call<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> EngineResult<T> {
        within(self.call_timeout, work).await
    }

    /// All the work of a look.
    async fn glance<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> EngineResult<T> {
        within(self.look_timeout, work).await
    }
}

async fn within<T>(patience: Duration, work: impl Future<Output = Result<T, Fault>>) -> EngineResult<T> {
    Ok(tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(late(patience)))?)
}

fn late(patience: Duration) -> Fault {
    Fault::Away(anyhow!("slurmrestd did not answer within {patience:?}"))
}

/// A job that is over or not known needs nothing more done to it.
fn done(answer: Result<(), Fault>) -> Result<(), Fault> {
    match answer {
        Ok(()) | Err(Fault::Unknown | Fault::Over) => Ok(()),
        Err(fault @ (Fault::NotBelieved(_) | Fault::Away(_) | Fault::Refused(_) | Fault::NotNow(_))) => {
            Err(fault)
        }
    }
}

/// Of a job that has begun, and is held as if it had not: slurmctld went on from what it had saved before.
fn lost_its_beginning(left: &Left) -> Sighting {
    match &left.legacy {
        Some(legacy) => state::sight_legacy(legacy),
        None => Sighting::Gone { evidence: "slurmctld forgot that it had begun".to_owned() },
    }
}

/// An end nobody's start led to. Slurm makes one by itself, too: slurmd has a job killed that it was told to launch by a
/// slurmctld that does not remember it.
fn never_began(seen: Observation) -> Observation {
    match seen {
        Observation::Ended { ending: Ending::Canceled, at, .. } => {
            let reason = Some("canceled at Slurm before it began".to_owned());
            Observation::Ended { ending: Ending::Canceled, exit_code: None, reason, began: None, at }
        }
        seen @ (Observation::Pending { .. } | Observation::Running { .. } | Observation::Ended { .. }) => {
            seen
        }
    }
}

/// Work on files, on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a call ended early")?
}

fn forgotten() -> EngineError {
    EngineError::Refused("its logs are not kept here any more".to_owned())
}

#[async_trait]
impl Engine for SlurmEngine {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        self.config.validate(spec)
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        self.validate(&job.spec).map_err(|fault| EngineError::Refused(fault.to_string()))?;
        let Some(user) = self.config.account(&job.project) else {
            let why = format!("this cluster has no account for jobs of project {}", job.project);
            return Err(EngineError::Refused(why));
        };
        let nonce = Nonce::draw();
        let dir = self.config.log_dir(user);
        let legacy = dir.as_ref().map(|dir| dir.join(id::legacy_file(job.tag, nonce)));
        let script = script::render(&self.config, job, legacy.as_deref());
        let outputs = id::outputs(dir.as_deref(), job.tag, nonce);
        let (name, comment) = (id::name(job.tag, nonce), id::comment(job.tag, &self.scope, Mark::Created));
        let submitted = async {
            let version = self.rest.version(user).await?;
            let names = (name.as_str(), comment.as_str());
            let body = script::request(&self.config, &version, job, names, &outputs, script);
            let id = self.rest.submit(user, &body.map_err(Fault::Refused)?).await?;
            Ok(Identity { tag: job.tag, nonce, job: id }.submission(user))
        };
        let many = self.config.accounts().len() > 1;
        self.call(submitted.map_err(|fault| match fault {
            // Where it is one account of many, its jobs wait, and those of the others go on.
            Fault::NotBelieved(source) if many => Fault::NotNow(format!("{source:#}")),
            fault @ (Fault::NotBelieved(_)
            | Fault::Unknown
            | Fault::Over
            | Fault::Away(_)
            | Fault::Refused(_)
            | Fault::NotNow(_)) => fault,
        }))
        .await
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some((of, user)) = Identity::of(tag, submission) else { return Ok(()) };
        self.call(self.lift_hold(of, &user)).await
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        let places: Vec<_> =
            submissions.iter().map(|(tag, submission)| Identity::of(*tag, submission)).collect();
        // One may be asked for more than once.
        let asked: HashMap<Identity, String> = places.iter().flatten().cloned().collect();
        let found = self.sight_all(&asked).await?;
        let mut memory = self.memory();
        for (of, sighting) in &found {
            let over = match sighting {
                Sighting::Seen(Observation::Ended { .. }) | Sighting::Gone { .. } => true,
                Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
                | Sighting::Inert => false,
                Sighting::Absent | Sighting::Unseen => continue,
            };
            memory.over.insert(*of, over);
        }
        // What nobody asks for any more is somebody else's, or is about to be forgotten.
        memory.over.retain(|of, over| *over || asked.contains_key(of));
        memory.left.retain(|of, _| asked.contains_key(of));
        memory.unstored.retain(|of, _| asked.contains_key(of));
        let sight = |(of, _): &(Identity, String)| found.get(of).cloned().unwrap_or(Sighting::Unseen);
        Ok(places.iter().map(|place| place.as_ref().map_or(Sighting::Absent, sight)).collect())
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some((of, user)) = Identity::of(tag, submission) else { return Ok(()) };
        self.call(self.end(of, &user)).await
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        self.call(async {
            if let Some(submission) = submission {
                return match Identity::of(tag, submission) {
                    Some((of, user)) => self.remove(of, &user).await,
                    None => Ok(()),
                };
            }
            // An account that cannot be looked at keeps no other's jobs from being canceled: what it holds under the tag is
            // held and nobody's, and the sweep finds it.
            let held = self.held(self.call_timeout / 2).await?;
            for (of, _, user) in held.into_iter().filter(|(of, ..)| of.tag == tag) {
                self.remove(of, &user).await?;
            }
            Ok(())
        })
        .await
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        let held = self.held(self.look_timeout).await?;
        let now = self.clock.now();
        let age = |job: &JobRecord| {
            let since = id::submitted(job).unwrap_or(now);
            (now - since).to_std().unwrap_or(Duration::ZERO)
        };
        let old = held.into_iter().filter(|(_, job, _)| age(job) >= older_than);
        Ok(old.map(|(of, _, user)| (of.tag, of.submission(&user))).collect())
    }

    async fn ended(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        Ok(self.left(older_than).await?)
    }

    async fn read_log(
        &self,
        tag: SubmissionTag,
        submission: &Submission,
        stream: Stream,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk> {
        let Some((of, user)) = Identity::of(tag, submission) else { return Err(forgotten()) };
        let Some(path) = self.config.log_dir(&user) else {
            return Err(EngineError::Refused("this cluster keeps no logs".to_owned()));
        };
        let ending = match stream {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        };
        let chunk = self.glance(async {
            // Looked at before the bytes are: what is read after the end was seen is all there is.
            let over = self.is_over(of, &user).await?;
            let file = of.file(ending);
            let read = blocking(move || Ok(Directory::open(&path)?.read_at(&file, offset, limit)?));
            Ok(match read.await.map_err(Fault::Away)? {
                Some((bytes, at_end)) => Some(LogChunk { bytes: bytes.into(), last: over && at_end }),
                // Not yet begun, or never to be, or removed.
                None if over => None,
                None => Some(LogChunk { bytes: bytes::Bytes::new(), last: false }),
            })
        });
        chunk.await?.ok_or_else(forgotten)
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some((of, user)) = Identity::of(tag, submission) else { return Ok(()) };
        self.call(self.clear_away(of, &user)).await
    }
}
