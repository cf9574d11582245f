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

mod acts;
mod config;
mod files;
mod id;
mod looks;
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
use files::Directory;
use futures::TryFutureExt as _;
use id::{Identity, Mark, Nonce};
use jobgate_shared::{
    clock::Clock,
    domain::{JobSpec, Observation, SpecError, Submission, SubmissionTag},
};
use rest::Rest;
use state::Fault;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use token::Tokens;
use tokio::time::Instant;
use wire::JobRecord;

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
        let exit_file = dir.as_ref().map(|dir| dir.join(id::exit_file(job.tag, nonce)));
        let script = script::render(&self.config, job, exit_file.as_deref());
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
