//! What Slurm shows of jobs, and what they left: all that is asked and nothing that changes anything.

use super::{
    SlurmEngine, blocking,
    files::{Directory, Left},
    id::{self, Identity, Mark},
    late,
    state::{self, ExitFile, Fault},
    wire::JobRecord,
};
use crate::engine::{EngineError, Sighting};
use futures::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream,
};
use jobgate_shared::domain::{Ending, Observation, Submission, SubmissionTag};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// So many accounts are looked at side by side, unless some hang.
const ACCOUNTS_AT_ONCE: usize = 8;
/// slurmdbd is asked for so many jobs at once.
const STORED_AT_ONCE: usize = 8;
/// And for so many in one poll.
const STORED_PER_POLL: usize = 20;
/// How soon it is asked again about a job it does not know.
const STORED_EVERY: Duration = Duration::from_secs(10);
/// A slurmctld that was killed can take a job for running that has ended, until its node registers anew. So what running jobs
/// left is looked at so often, and believed if Slurm has not come to know of it in the same time.
const LEFT_BEHIND: Duration = Duration::from_mins(1);

/// The jobs of ours in one listing, by Slurm's id.
type Listing = HashMap<u32, (Identity, JobRecord)>;
/// A look at the jobs of one account, by its name.
type Look<'a, T> = (String, BoxFuture<'a, Result<T, Fault>>);
/// What is seen of one job.
type Sighted = (Identity, Result<Sighting, Fault>);

impl SlurmEngine {
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
    pub(super) async fn held(&self, patience: Duration) -> Result<Vec<(Identity, JobRecord, String)>, Fault> {
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
    pub(super) async fn look(&self, of: Identity, user: &str) -> Result<Option<JobRecord>, Fault> {
        let job = self.rest.job(user, of.job).await?;
        Ok(job.filter(|job| Identity::seen(job) == Some(of)))
    }

    /// How far a job of ours was brought; one whose comment somebody else wrote was at least created.
    pub(super) fn mark(&self, of: Identity, job: &JobRecord) -> Mark {
        of.mark(job, &self.scope).unwrap_or(Mark::Created)
    }

    /// What listings and the files of jobs that are over say of many: nothing of one that could not be looked at.
    pub(super) async fn sight_all(
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
                let ended = left.exit_file.as_ref().filter(|left| **left != ExitFile::BegunAgain);
                let ended = ended.filter(|_| !job.is_over() && self.is_left_behind(of));
                ended.map_or_else(|| job.sight(left.exit_file.as_ref()), state::sight_exit_file)
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
        Ok(match (last, left.exit_file) {
            (Some(job), exit_file) => job.sight(exit_file.as_ref()),
            (None, Some(exit_file)) => state::sight_exit_file(&exit_file),
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
    pub(super) async fn left_by(
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
    pub(super) async fn is_over(&self, of: Identity, user: &str) -> Result<bool, Fault> {
        let known = self.memory().over.get(&of).copied();
        if let Some(over) = known {
            return Ok(over);
        }
        let over = self.look(of, user).await?.is_none_or(|job| job.is_over());
        self.memory().over.insert(of, over);
        Ok(over)
    }

    /// Jobs that are over, of those that left output.
    pub(super) async fn left(&self, older_than: Duration) -> Result<Vec<(SubmissionTag, Submission)>, Fault> {
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
}

/// Of a job that has begun, and is held as if it had not: slurmctld went on from what it had saved before.
fn lost_its_beginning(left: &Left) -> Sighting {
    match &left.exit_file {
        Some(exit_file) => state::sight_exit_file(exit_file),
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
