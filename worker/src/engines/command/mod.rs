//! The command engine: any scheduler with a command line, by configuration alone.
//!
//! A submission is a directory every host of the cluster sees, and a job at the scheduler whose name says which directory.
//! The job's script takes a start token there and writes its end there, so what runs and how it ended does not depend on
//! what a scheduler remembers; the scheduler is told to create, start and cancel, and asked what it makes of all of them.
//!
//! **Why nothing runs twice.** Every create makes another directory under another nonce, with a job that is held; only the
//! recorded one is released. A scheduler that begins a job again finds the token taken, and runs nothing. A cancel or a
//! discard takes the token first, so it knows whether it came first, and nothing the scheduler does later matters.
//!
//! **Why no stranger's job is touched.** Schedulers use ids again. An id is released or cancelled only after the scheduler
//! has said that its job has our name, nonce and all.

mod answer;
mod config;
mod files;
mod judge;
mod process;
mod script;
mod template;
#[cfg(test)]
mod tests;

pub use config::CommandConfig;

use crate::{
    engine::{
        Capabilities, Engine, EngineError, EngineResult, LogChunk, Sighting, Stream, SubmitMode, ToCreate,
    },
    engines::{EngineContext, EngineSettings as _},
};
use answer::Row;
use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use config::{Call, Settings, State};
use files::{Files, Place, Standing};
use jobgate_shared::domain::{JobSpec, SpecError, Submission, SubmissionTag};
use judge::{Verdict, judge};
use process::Answer;
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use template::Values;
use tokio::{sync::Semaphore, time::Instant};

/// Commands of one engine at once; more would only load the scheduler's host.
const COMMANDS_AT_ONCE: usize = 16;
/// How soon the accounting is asked again about the same job.
const ACCOUNT_EVERY: Duration = Duration::from_secs(10);
/// Questions to the accounting in one poll, where each is about one job.
const ACCOUNTS_AT_ONCE: usize = 20;
/// Of a job the scheduler has not known for so long nothing more is expected in its log.
const LOG_ENDS: Duration = Duration::from_mins(2);
/// What was never submitted, as far as anybody knows, is debris after this.
const DEBRIS_AFTER: Duration = Duration::from_hours(24);

/// The engine; one per scheduler and process.
#[derive(Debug)]
pub struct CommandEngine {
    config: CommandConfig,
    context: EngineContext,
    files: Arc<Files>,
    permits: Semaphore,
    seen: Mutex<Seen>,
}

/// What polls noticed, kept only to know how long it has been so; losing it costs time.
#[derive(Debug, Default)]
struct Seen {
    /// Over, says the scheduler, without an end in the files.
    over: HashMap<Place, Instant>,
    /// Begun, and not known to the scheduler.
    unknown: HashMap<Place, Instant>,
    /// Asked about in the accounting, and what it said.
    accounted: HashMap<Place, (Instant, Option<Row>)>,
}

fn away(error: impl Into<anyhow::Error>) -> EngineError {
    EngineError::Away(error.into())
}

impl CommandEngine {
    /// Opens the shared directory; runs no command.
    pub fn open(config: CommandConfig, context: EngineContext) -> anyhow::Result<Self> {
        let path = &config.settings.shared_dir;
        let files = Files::open(path).with_context(|| format!("shared_dir {}", path.display()))?;
        let (files, permits) = (Arc::new(files), Semaphore::new(COMMANDS_AT_ONCE));
        Ok(Self { config, context, files, permits, seen: Mutex::default() })
    }

    fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// A panic elsewhere leaves nothing half done in here.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A whole call that does something, cut off in time, and with it the command it waits for.
    async fn call<T>(&self, work: impl Future<Output = EngineResult<T>> + Send) -> EngineResult<T> {
        within(self.context.call_timeout, work).await
    }

    /// A whole look.
    async fn look<T>(&self, work: impl Future<Output = EngineResult<T>> + Send) -> EngineResult<T> {
        within(self.context.look_timeout, work).await
    }

    /// Work on the shared directory, on a thread that may block.
    async fn files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> EngineResult<T> {
        let files = self.files.clone();
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        done.context("a call ended early").map_err(away)?.context("shared_dir").map_err(away)
    }

    async fn run(&self, call: &Call, values: &Values<'_>, input: Option<&str>) -> EngineResult<Answer> {
        let _permit = self.permits.acquire().await.context("closed").map_err(away)?;
        let argv = call.argv.render(values);
        process::run(self.settings(), &self.context.cluster, call, &argv, input).await
    }

    /// What a command tells of these ids; an id it does not know hides no other.
    async fn told(&self, call: &Call, ids: &[String]) -> EngineResult<Vec<Row>> {
        let mut rows = Vec::new();
        let most = if call.argv.takes_one() { 1 } else { self.settings().max_ids.get() as usize };
        let mut todo: Vec<&[String]> = ids.chunks(most).collect();
        while let Some(ids) = todo.pop() {
            let words = ids.first().map(|id| ("id", id.clone())).into_iter().collect();
            match self.run(call, &Values { words, ids, options: Vec::new() }, None).await? {
                Answer::Done(output) => rows.extend(answer::rows(call, &output).map_err(away)?),
                Answer::Unknown if ids.len() > 1 => todo.extend(<[_; 2]>::from(ids.split_at(ids.len() / 2))),
                Answer::Unknown => {}
                Answer::Refused(why) | Answer::NotNow(why) => {
                    return Err(away(anyhow!("a question was refused: {why}")));
                }
            }
        }
        Ok(rows)
    }

    /// Every job at the scheduler with a name of ours.
    async fn listed(&self) -> EngineResult<HashMap<Place, Row>> {
        let Some(find) = &self.settings().find else { return Ok(HashMap::new()) };
        let rows = match self.run(find, &Values::default(), None).await? {
            Answer::Done(output) => answer::rows(find, &output).map_err(away)?,
            Answer::Unknown => Vec::new(),
            Answer::Refused(why) | Answer::NotNow(why) => {
                return Err(away(anyhow!("a question was refused: {why}")));
            }
        };
        Ok(rows.into_iter().filter_map(|row| Some((Place::named(&row.name)?, row))).collect())
    }

    /// What the scheduler says of these: nothing of one whose id is another job's now.
    async fn known(&self, asked: &[(Place, String)]) -> EngineResult<HashMap<Place, Row>> {
        let told = match &self.settings().poll {
            None => self.listed().await?,
            Some(poll) => {
                let ids: Vec<String> = asked.iter().map(|(_, id)| id.clone()).collect();
                let rows = self.told(poll, &ids).await?.into_iter();
                rows.filter_map(|row| Some((Place::named(&row.name)?, row))).collect()
            }
        };
        let ours = asked.iter().filter_map(|(place, id)| Some((*place, told.get(place)?, id)));
        Ok(ours.filter(|(_, row, id)| row.id == **id).map(|(place, row, _)| (place, row.clone())).collect())
    }

    /// How those ended that the scheduler shows no more, as far as it keeps account.
    async fn accounted(&self, unknown: Vec<(Place, String)>) -> EngineResult<HashMap<Place, Row>> {
        let Some(account) = &self.settings().account else { return Ok(HashMap::new()) };
        let now = Instant::now();
        let most = if account.argv.takes_one() { ACCOUNTS_AT_ONCE } else { usize::MAX };
        let mut found = HashMap::new();
        let asked: Vec<(Place, String)> = {
            let mut seen = self.seen();
            let said =
                unknown.iter().filter_map(|(place, _)| Some((*place, seen.accounted.get(place)?.1.clone()?)));
            found.extend(said);
            let due = |place: &Place| match seen.accounted.get(place) {
                Some((at, said)) => said.is_none() && now >= *at + ACCOUNT_EVERY,
                None => true,
            };
            let due: Vec<_> = unknown.into_iter().filter(|(place, _)| due(place)).take(most).collect();
            seen.accounted.extend(due.iter().map(|(place, _)| (*place, (now, None))));
            due
        };
        let ids: Vec<String> = asked.iter().map(|(_, id)| id.clone()).collect();
        for row in self.told(account, &ids).await? {
            let over = match row.state {
                Some(State::Inert | State::Pending | State::Running) | None => false,
                Some(State::Finished | State::Failed | State::Canceled | State::TimedOut | State::Gone) => {
                    true
                }
            };
            let ours = Place::named(&row.name).filter(|place| asked.contains(&(*place, row.id.clone())));
            if let Some(place) = ours.filter(|_| over) {
                self.seen().accounted.insert(place, (now, Some(row.clone())));
                found.insert(place, row);
            }
        }
        Ok(found)
    }

    /// Tells the scheduler to end a job, if it still has it under our name.
    async fn order_end(&self, place: Place, id: &str) -> EngineResult<()> {
        let known = self.known(&[(place, id.to_owned())]).await?;
        let Some(row) = known.get(&place) else { return Ok(()) };
        match row.state {
            Some(State::Finished | State::Failed | State::Canceled | State::TimedOut | State::Gone)
                if self.settings().poll.is_some() =>
            {
                Ok(())
            }
            Some(_) | None => self.order(&self.settings().cancel, place, id).await,
        }
    }

    /// One command about one job; one that is not known needs none.
    async fn order(&self, call: &Call, place: Place, id: &str) -> EngineResult<()> {
        let words = BTreeMap::from([
            ("id", id.to_owned()),
            ("tag", place.tag.to_string()),
            ("name", place.to_string()),
        ]);
        match self.run(call, &Values { words, ..Values::default() }, None).await? {
            Answer::Done(_) | Answer::Unknown => Ok(()),
            Answer::Refused(why) => Err(EngineError::Refused(why)),
            Answer::NotNow(why) => Err(EngineError::NotNow(why)),
        }
    }

    async fn submit(&self, job: &ToCreate) -> EngineResult<Submission> {
        let options = self.settings().chosen(&job.spec);
        let options = options.map_err(|fault| EngineError::Refused(fault.to_string()))?;
        let (of, settings) = (job.clone(), self.settings().clone());
        let (place, script) = self.files(move |files| files.make(&settings, &of)).await?;
        let call = &self.settings().create;
        let values = Values { words: self.words(job, place), ids: &[], options };
        let input = call.stdin.then_some(script.as_str());
        match self.run(call, &values, input).await? {
            Answer::Done(output) => {
                let id = answer::new_id(call, &output).map_err(away)?;
                let noted = id.clone();
                self.files(move |files| files.note_id(place, &noted)).await?;
                Ok(place.submission(&id))
            }
            Answer::Refused(why) => self.unmake(place, EngineError::Refused(why)).await,
            Answer::NotNow(why) => self.unmake(place, EngineError::NotNow(why)).await,
            Answer::Unknown => Err(away(anyhow!("it does not know what it was to create"))),
        }
    }

    /// What the scheduler did not take leaves nothing.
    async fn unmake<T>(&self, place: Place, why: EngineError) -> EngineResult<T> {
        self.files(move |files| if files.bury_fresh(place)? { files.remove(place) } else { Ok(()) }).await?;
        Err(why)
    }

    /// What a command line that creates can name.
    fn words(&self, job: &ToCreate, place: Place) -> BTreeMap<&'static str, String> {
        let dir = self.files.dir(place);
        let wants = job.spec.resources;
        // The job's own script keeps its limit; the scheduler's comes after it, should the script be gone.
        let limit =
            job.spec.time_limit_seconds.map(|limit| limit + self.settings().kill_grace.as_secs() + 60);
        let always = [
            ("tag", job.tag.to_string()),
            ("name", place.to_string()),
            ("project", job.project.to_string()),
            ("output", format!("{dir}/scheduler.out")),
            ("error", format!("{dir}/scheduler.err")),
            ("script", format!("{dir}/job")),
            ("attempt_dir", dir),
        ];
        let asked = [
            ("cpus", wants.cpus.map(|n| n.to_string())),
            ("memory_mib", wants.memory_mib.map(|n| n.to_string())),
            ("gpus", wants.gpus.map(|n| n.to_string())),
            ("nodes", wants.nodes.map(|n| n.to_string())),
            ("time_limit_seconds", limit.map(|n| n.to_string())),
            ("time_limit_minutes", limit.map(|n| n.div_ceil(60).to_string())),
            ("working_dir", job.spec.working_dir.clone()),
        ];
        always.into_iter().chain(asked.into_iter().filter_map(|(name, value)| Some((name, value?)))).collect()
    }

    async fn release(&self, place: Place, id: &str) -> EngineResult<()> {
        let Some(start) = &self.settings().start else { return Ok(()) };
        match self.files(move |files| files.look(place)).await? {
            Standing::Fresh => {}
            Standing::Missing
            | Standing::Tombstone { .. }
            | Standing::Begun { .. }
            | Standing::Ended { .. }
            | Standing::Lost { .. } => return Ok(()),
        }
        match self.known(&[(place, id.to_owned())]).await?.get(&place).map(|row| row.state) {
            Some(Some(State::Inert) | None) => self.order(start, place, id).await,
            // On its way already; or not known, which polls tell of, or find it inert and have it started again.
            Some(Some(_)) | None => Ok(()),
        }
    }

    async fn sight(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        let asked: Vec<Option<(Place, String)>> =
            submissions.iter().map(|(tag, submission)| Place::of(*tag, submission)).collect();
        let places: Vec<Place> = asked.iter().flatten().map(|(place, _)| *place).collect();
        let look = |places: Vec<Place>| {
            self.files(move |files| {
                files.still_stand().map_err(io::Error::other)?;
                places
                    .into_iter()
                    .map(|place| Ok((place, files.look(place)?)))
                    .collect::<io::Result<HashMap<_, _>>>()
            })
        };
        let open = |standing: Option<&Standing>| match standing {
            Some(Standing::Fresh | Standing::Begun { .. } | Standing::Ended { .. }) => true,
            Some(Standing::Missing | Standing::Tombstone { .. } | Standing::Lost { .. }) | None => false,
        };
        let first = look(places.clone()).await?;
        let of_interest: Vec<(Place, String)> =
            asked.iter().flatten().filter(|(place, _)| open(first.get(place))).cloned().collect();
        let mut rows = if of_interest.is_empty() { HashMap::new() } else { self.known(&of_interest).await? };
        // Looked at after the scheduler was asked: what ended before it answered has written its end.
        let standings = look(places).await?;
        let unknown = of_interest.into_iter().filter(|(place, _)| {
            let unfinished = matches!(
                standings.get(place),
                Some(Standing::Fresh | Standing::Begun { .. } | Standing::Ended { signaled: true, .. })
            );
            unfinished && !rows.contains_key(place)
        });
        rows.extend(self.accounted(unknown.collect()).await?);
        let mut sightings = Vec::with_capacity(asked.len());
        for asked in asked {
            sightings.push(match asked {
                None => Sighting::Absent,
                Some((place, _)) => {
                    let standing = standings.get(&place).unwrap_or(&Standing::Missing);
                    self.decide(place, standing, rows.get(&place)).await?
                }
            });
        }
        Ok(sightings)
    }

    /// One sighting; writes an end that nobody else will write any more.
    async fn decide(&self, place: Place, standing: &Standing, row: Option<&Row>) -> EngineResult<Sighting> {
        let now = self.context.clock.now();
        let (word, code, reason, meanwhile) = match judge(standing, row, now) {
            Verdict::Stands(sighting) => {
                let begun = matches!(standing, Standing::Begun { .. });
                let mut seen = self.seen();
                seen.over.remove(&place);
                if begun && sighting == Sighting::Absent {
                    seen.unknown.entry(place).or_insert_with(Instant::now);
                } else {
                    seen.unknown.remove(&place);
                }
                return Ok(sighting);
            }
            Verdict::Over { word, code, reason, meanwhile } => (word, code, reason, meanwhile),
        };
        let since = *self.seen().over.entry(place).or_insert_with(Instant::now);
        if since.elapsed() < *self.settings().exit_settles {
            return Ok(meanwhile);
        }
        let fresh = *standing == Standing::Fresh;
        let standing = self
            .files(move |files| {
                if !fresh || files.bury_fresh(place)? {
                    files.write_end(place, word, code, &reason)?;
                }
                files.look(place)
            })
            .await?;
        Ok(match judge(&standing, None, now) {
            Verdict::Stands(sighting) => sighting,
            Verdict::Over { meanwhile, .. } => meanwhile,
        })
    }

    async fn end(&self, place: Place, id: &str) -> EngineResult<()> {
        match self.files(move |files| files.look(place)).await? {
            Standing::Missing | Standing::Ended { .. } | Standing::Lost { .. } => return Ok(()),
            Standing::Fresh | Standing::Tombstone { .. } | Standing::Begun { .. } => {}
        }
        self.files(move |files| files.cancel(place)).await?;
        self.order_end(place, id).await
    }

    async fn remove_unrecorded(&self, place: Place, id: Option<String>) -> EngineResult<()> {
        let (standing, noted) =
            self.files(move |files| Ok((files.look(place)?, files.noted_id(place)?))).await?;
        let row = self.listed().await?.remove(&place);
        let state = row.as_ref().map(|row| row.state);
        let id = id.or(noted).or(row.map(|row| row.id));
        match self.config.mode() {
            SubmitMode::TwoPhase | SubmitMode::UniqueName | SubmitMode::Fenced => {
                // Released and not yet begun: it was started.
                let started =
                    standing == Standing::Fresh && !matches!(state, None | Some(Some(State::Inert)));
                if started || !self.files(move |files| files.bury_fresh(place)).await? {
                    return Ok(());
                }
            }
            // It began by being created.
            SubmitMode::AtMostOnce => {
                let begun = !self.files(move |files| files.cancel(place)).await?;
                if let (true, Some(id)) = (begun, &id) {
                    return self.order_end(place, id).await;
                }
            }
        }
        // Without an id a create may still be on its way: what it makes finds the tombstone, and the sweep finds that.
        let Some(id) = id else { return Ok(()) };
        self.order_end(place, &id).await?;
        self.files(move |files| files.remove(place)).await
    }

    async fn leave(&self, place: Place, id: &str) -> EngineResult<()> {
        match self.files(move |files| files.look(place)).await? {
            Standing::Missing => return Ok(()),
            Standing::Ended {
                end: jobgate_shared::domain::Observation::Ended { began: Some(_), .. },
                ..
            } => {}
            Standing::Fresh => {
                if !self.files(move |files| files.bury_fresh(place)).await? {
                    return Err(away(anyhow!("it is just beginning")));
                }
                self.order_end(place, id).await?;
            }
            Standing::Begun { .. } => {
                if self.known(&[(place, id.to_owned())]).await?.contains_key(&place) {
                    self.end(place, id).await?;
                    return Err(away(anyhow!("it still runs; it is being ended")));
                }
            }
            Standing::Tombstone { .. } | Standing::Ended { .. } | Standing::Lost { .. } => {
                self.order_end(place, id).await?;
            }
        }
        self.files(move |files| files.remove(place)).await?;
        let mut seen = self.seen();
        seen.over.remove(&place);
        seen.unknown.remove(&place);
        seen.accounted.remove(&place);
        Ok(())
    }

    /// Held at the scheduler, and in the shared directory: another gateway's are not there.
    async fn held(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        if self.config.mode() != SubmitMode::TwoPhase {
            return Ok(Vec::new());
        }
        let listed = self.listed().await?;
        let now = self.context.clock.now();
        self.files(move |files| {
            let age = |place| -> io::Result<Duration> {
                Ok(files.changed_at(place)?.and_then(|at| (now - at).to_std().ok()).unwrap_or_default())
            };
            let mut found = Vec::new();
            for place in files.places()? {
                let inert = match (files.look(place)?, listed.get(&place)) {
                    (Standing::Fresh, Some(row)) => row.state == Some(State::Inert),
                    (Standing::Tombstone { canceled: false, .. }, Some(_)) => true,
                    (Standing::Fresh | Standing::Tombstone { canceled: false, .. }, None) => {
                        if age(place)? >= DEBRIS_AFTER && files.bury_fresh(place)? {
                            files.remove(place)?;
                        }
                        false
                    }
                    (
                        Standing::Missing
                        | Standing::Tombstone { canceled: true, .. }
                        | Standing::Begun { .. }
                        | Standing::Ended { .. }
                        | Standing::Lost { .. },
                        _,
                    ) => false,
                };
                if let Some(row) = listed.get(&place).filter(|_| inert)
                    && age(place)? >= older_than
                {
                    found.push((place.tag, place.submission(&row.id)));
                }
            }
            Ok(found)
        })
        .await
    }

    async fn over(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        let now = self.context.clock.now();
        self.files(move |files| {
            let mut found = Vec::new();
            for place in files.places()? {
                let at = match files.look(place)? {
                    Standing::Ended { at, .. } | Standing::Tombstone { at, canceled: true } => Some(at),
                    Standing::Lost { .. } => files.changed_at(place)?,
                    Standing::Missing
                    | Standing::Fresh
                    | Standing::Tombstone { canceled: false, .. }
                    | Standing::Begun { .. } => None,
                };
                let old = at.and_then(|at| (now - at).to_std().ok()).is_some_and(|age| age >= older_than);
                if let Some(id) = files.noted_id(place)?.filter(|_| old) {
                    found.push((place.tag, place.submission(&id)));
                }
            }
            Ok(found)
        })
        .await
    }

    async fn log(
        &self,
        place: Place,
        name: &'static str,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk> {
        let unknown = self.seen().unknown.get(&place).is_some_and(|since| since.elapsed() >= LOG_ENDS);
        let read = self.files(move |files| {
            // Looked at before the bytes are: what is read after the end was seen is all there is.
            let over = match files.look(place)? {
                Standing::Fresh | Standing::Begun { .. } => unknown,
                Standing::Missing
                | Standing::Tombstone { .. }
                | Standing::Ended { .. }
                | Standing::Lost { .. } => true,
            };
            let Some(attempt) = files.attempt(place)? else { return Ok(None) };
            let (bytes, at_end) = attempt.read_at(name, offset, limit)?;
            Ok(Some(LogChunk { bytes: bytes.into(), last: over && at_end }))
        });
        read.await?.ok_or_else(forgotten)
    }
}

fn forgotten() -> EngineError {
    EngineError::Refused("its logs are not kept here any more".to_owned())
}

async fn within<T>(
    patience: Duration,
    work: impl Future<Output = EngineResult<T>> + Send,
) -> EngineResult<T> {
    let late = || Err(away(anyhow!("no answer within {patience:?}")));
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| late())
}

#[async_trait]
impl Engine for CommandEngine {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        self.config.validate(spec)
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        self.validate(&job.spec).map_err(|fault| EngineError::Refused(fault.to_string()))?;
        self.call(Box::pin(self.submit(job))).await
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some((place, id)) = Place::of(tag, submission) else { return Ok(()) };
        self.call(self.release(place, &id)).await
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        self.look(self.sight(submissions)).await
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some((place, id)) = Place::of(tag, submission) else { return Ok(()) };
        self.call(self.end(place, &id)).await
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        self.call(async {
            if let Some(submission) = submission {
                return match Place::of(tag, submission) {
                    Some((place, id)) => self.remove_unrecorded(place, Some(id)).await,
                    None => Ok(()),
                };
            }
            for place in self.files(move |files| files.under(tag)).await? {
                self.remove_unrecorded(place, None).await?;
            }
            Ok(())
        })
        .await
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.look(self.held(older_than)).await
    }

    async fn ended(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.look(self.over(older_than)).await
    }

    async fn read_log(
        &self,
        tag: SubmissionTag,
        submission: &Submission,
        stream: Stream,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk> {
        let Some((place, _)) = Place::of(tag, submission) else { return Err(forgotten()) };
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        self.look(self.log(place, name, offset, limit)).await
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let Some((place, id)) = Place::of(tag, submission) else { return Ok(()) };
        self.call(self.leave(place, &id)).await
    }
}
