//! A simulated resource manager, one per cluster, in every mode of submitting, with a ledger of what began.
//!
//! It holds to the engine port's contract; what it shows, and when calls reach it, is another matter. Its state follows
//! the time by itself: whatever is looked at is first brought up to now.

use crate::{
    plan::{Fault, Flaw, Outcome, Run},
    world::{World, lock},
};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, Ending, Observation, Submission, SubmissionTag},
};
use jobgate_worker::engine::{
    EngineError, EngineResult, LogChunk, Sighting, SubmitMode, TimeLimits, ToCreate,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;

/// How long a forgetful manager remembers what has ended.
const REMEMBERS: Duration = Duration::from_secs(4);
/// What a job prints.
const OUTPUT: &[u8] = b"hello\n";

/// How a submission ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Exit(i32),
    /// Somebody ended it, or it never began.
    Canceled,
    /// Its time was up.
    TimedOut,
    /// Without a trace but one.
    Vanished,
    /// Another submission of the attempt had its start token.
    FencedOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Does not run.
    Inert,
    /// Begins, or began, at this time.
    Begun(Duration),
    /// Over, at this time.
    Over { began: Option<Duration>, at: Duration, end: End },
}

#[derive(Debug)]
struct Held {
    tag: SubmissionTag,
    created: Duration,
    listed: Duration,
    limit: Option<Duration>,
    run: Run,
    phase: Phase,
    /// Removed before it began.
    discarded: bool,
    /// A worker said that it may go.
    released: bool,
}

impl Held {
    fn follow(&mut self, now: Duration) {
        let Phase::Begun(at) = self.phase else { return };
        let (length, end) = match self.limit.filter(|limit| *limit < self.run.length) {
            Some(limit) => (limit, End::TimedOut),
            None if self.run.vanishes => (self.run.length, End::Vanished),
            None => (self.run.length, End::Exit(self.run.exit)),
        };
        if now >= at + length {
            self.phase = Phase::Over { began: Some(at), at: at + length, end };
        }
    }

    fn began(&self, now: Duration) -> Option<Duration> {
        match self.phase {
            Phase::Inert => None,
            Phase::Begun(at) => Some(at).filter(|at| *at <= now),
            Phase::Over { began, .. } => began,
        }
    }

    fn end_now(&mut self, now: Duration) {
        match self.phase {
            Phase::Inert => self.phase = Phase::Over { began: None, at: now, end: End::Canceled },
            Phase::Begun(_) => {
                self.phase = Phase::Over { began: self.began(now), at: now, end: End::Canceled };
            }
            Phase::Over { .. } => {}
        }
    }

    fn is_known(&self, forgetful: bool, now: Duration) -> bool {
        let ended = match self.phase {
            Phase::Over { at, .. } => Some(at),
            Phase::Inert | Phase::Begun(_) => None,
        };
        let forgot = forgetful && ended.is_some_and(|at| now >= at + REMEMBERS);
        !(self.discarded || self.released || forgot)
    }
}

#[derive(Debug, Default)]
struct State {
    serial: u64,
    held: BTreeMap<String, Held>,
    /// The submission a name stands for.
    names: BTreeMap<SubmissionTag, String>,
    /// Names nothing may begin under any more, and start tokens: whose they are, if anybody's.
    tokens: BTreeMap<SubmissionTag, Option<String>>,
    away: bool,
}

/// One beginning of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) tag: SubmissionTag,
    pub(crate) id: String,
    pub(crate) at: Duration,
}

/// What is true of one submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truth {
    /// How it ended, if it did.
    pub(crate) end: Option<End>,
    /// A poll may rightly have missed that.
    pub(crate) forgotten: bool,
}

/// One resource manager.
#[derive(Debug)]
pub(crate) struct Manager {
    pub(crate) world: Arc<World>,
    pub(crate) cluster: ClusterName,
    pub(crate) mode: SubmitMode,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Rung when something may have ended.
    pub(crate) bell: Arc<Notify>,
}

pub(crate) fn away() -> EngineError {
    EngineError::Away(anyhow::anyhow!("no answer"))
}

impl Manager {
    pub(crate) fn new(
        world: &Arc<World>,
        cluster: ClusterName,
        mode: SubmitMode,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let (world, state, bell) = (world.clone(), Mutex::default(), Arc::new(Notify::new()));
        Arc::new(Self { world, cluster, mode, clock, state, bell })
    }

    pub(crate) fn set_away(&self, away: bool) {
        lock(&self.state).away = away;
    }

    /// Everything that has begun.
    pub(crate) fn starts(&self) -> Vec<Start> {
        let now = self.world.now();
        let state = lock(&self.state);
        let start = |(id, held): (&String, &Held)| {
            Some(Start { tag: held.tag, id: id.clone(), at: held.began(now)? })
        };
        state.held.iter().filter_map(start).collect()
    }

    /// Something of this attempt runs, or is about to.
    pub(crate) fn runs(&self, tag: SubmissionTag) -> bool {
        let now = self.world.now();
        lock(&self.state).held.values_mut().filter(|held| held.tag == tag).any(|held| {
            held.follow(now);
            matches!(held.phase, Phase::Begun(_))
        })
    }

    /// What is inert and nobody has removed.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let state = lock(&self.state);
        let inert = state.held.iter().filter(|(_, held)| held.phase == Phase::Inert && !held.discarded);
        inert.map(|(id, held)| format!("{id} of {}", held.tag)).collect()
    }

    /// What is true of a submission.
    pub(crate) fn truth(&self, id: &str) -> Option<Truth> {
        let now = self.world.now();
        let mut state = lock(&self.state);
        let held = state.held.get_mut(id)?;
        held.follow(now);
        let end = match held.phase {
            Phase::Over { end, .. } => Some(end),
            Phase::Inert | Phase::Begun(_) => None,
        };
        let forgotten = held.released || end.is_some() && self.world.plan.has(Fault::Forgets);
        Some(Truth { end, forgotten })
    }

    fn say(&self, what: &str, tag: SubmissionTag, id: &str) {
        self.world.say(|| format!("{}: {what} {tag} {id}", self.cluster));
    }

    fn answers(&self) -> EngineResult<()> {
        if lock(&self.state).away { Err(away()) } else { Ok(()) }
    }

    /// The job of this name would run for ever.
    fn is_forever(&self, name: &str) -> bool {
        place_of(name).and_then(|place| self.world.plan.jobs.get(place)).is_some_and(|wish| wish.forever)
    }

    pub(crate) fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        self.answers()?;
        let (run, now) = (self.world.plan.run(job.tag, self.is_forever(&job.name)), self.world.now());
        if run.refused {
            self.world.came(Outcome::CreateRefused);
            return Err(EngineError::Refused("the manager will never take this".to_owned()));
        }
        let lag = if self.world.strikes(Fault::ListingLag) {
            self.world.dice().millis(1_000, 12_000)
        } else {
            Duration::ZERO
        };
        let mut state = lock(&self.state);
        let finds = match self.mode {
            SubmitMode::TwoPhase => self.world.plan.finds_by_tag,
            SubmitMode::UniqueName => true,
            SubmitMode::Fenced | SubmitMode::AtMostOnce => false,
        };
        if self.mode == SubmitMode::UniqueName && state.tokens.contains_key(&job.tag) {
            return Err(EngineError::Refused("the name is not to be used any more".to_owned()));
        }
        if finds && let Some(id) = state.names.get(&job.tag) {
            let over = state.held.get(id).is_some_and(|held| matches!(held.phase, Phase::Over { .. }));
            if !(over && self.world.plan.flaw == Flaw::NamesAreForgotten) {
                let submission = submission(id);
                drop(state);
                self.say("created again", job.tag, &submission.id);
                return Ok(submission);
            }
        }
        state.serial += 1;
        let id = format!("{}-{}", self.cluster, state.serial);
        let inert = match self.mode {
            SubmitMode::TwoPhase | SubmitMode::Fenced => self.world.plan.flaw != Flaw::CreateStarts,
            SubmitMode::UniqueName | SubmitMode::AtMostOnce => false,
        };
        let by_engine = self.world.plan.time_limits == TimeLimits::ByEngine;
        let limit = job.spec.time_limit_seconds.filter(|_| by_engine).map(Duration::from_secs);
        let phase = if inert { Phase::Inert } else { Phase::Begun(now + run.queues) };
        let (tag, created, listed, discarded, released) = (job.tag, now, now + lag, false, false);
        let held = Held { tag, created, listed, limit, run, phase, discarded, released };
        state.held.insert(id.clone(), held);
        state.names.insert(tag, id.clone());
        drop(state);
        self.say("created", tag, &id);
        if !inert {
            self.ring_at_end(run);
        }
        Ok(submission(&id))
    }

    pub(crate) fn start(&self, tag: SubmissionTag, id: &str) -> EngineResult<()> {
        self.answers()?;
        let now = self.world.now();
        let mut state = lock(&self.state);
        let State { held, tokens, .. } = &mut *state;
        let Some(held) = held.get_mut(id).filter(|held| !held.discarded) else {
            return Err(EngineError::Refused(format!("there is no submission {id}")));
        };
        if held.phase != Phase::Inert {
            return Ok(());
        }
        if self.mode == SubmitMode::Fenced {
            let token = tokens.entry(tag).or_insert_with(|| Some(id.to_owned()));
            if token.as_deref() != Some(id) {
                held.phase = Phase::Over { began: None, at: now, end: End::FencedOff };
                return Ok(());
            }
        }
        held.phase = Phase::Begun(now + held.run.queues);
        let run = held.run;
        drop(state);
        self.say("started", tag, id);
        self.ring_at_end(run);
        Ok(())
    }

    fn ring_at_end(&self, run: Run) {
        if self.world.plan.stirs {
            let bell = self.bell.clone();
            self.world.outside.spawn("bell", async move {
                tokio::time::sleep(run.queues + run.length).await;
                bell.notify_waiters();
            });
        }
    }

    pub(crate) fn cancel(&self, tag: SubmissionTag, id: &str) -> EngineResult<()> {
        self.answers()?;
        let now = self.world.now();
        let mut state = lock(&self.state);
        if let Some(held) = state.held.get_mut(id) {
            held.follow(now);
            held.end_now(now);
        }
        drop(state);
        self.say("cancelled", tag, id);
        self.bell.notify_waiters();
        Ok(())
    }

    /// Where nothing is inert, what is not to run is ended; where something is, only that is removed.
    pub(crate) fn discard(&self, tag: SubmissionTag, id: Option<&str>) -> EngineResult<()> {
        self.answers()?;
        let now = self.world.now();
        let mut state = lock(&self.state);
        let State { held, tokens, names, .. } = &mut *state;
        for (known, held) in held.iter_mut().filter(|(_, held)| held.tag == tag) {
            if id.is_some_and(|id| id != known) {
                continue;
            }
            held.follow(now);
            match self.mode {
                SubmitMode::TwoPhase | SubmitMode::Fenced => {
                    if held.phase == Phase::Inert {
                        held.discarded = true;
                        if names.get(&tag) == Some(known) {
                            names.remove(&tag);
                        }
                    }
                }
                SubmitMode::UniqueName => held.end_now(now),
                SubmitMode::AtMostOnce if id.is_some() => held.end_now(now),
                // It cannot be found by its name.
                SubmitMode::AtMostOnce => {}
            }
        }
        match self.mode {
            SubmitMode::UniqueName => {
                tokens.insert(tag, None);
            }
            SubmitMode::Fenced if id.is_none() => {
                tokens.entry(tag).or_insert(None);
            }
            SubmitMode::Fenced | SubmitMode::TwoPhase | SubmitMode::AtMostOnce => {}
        }
        drop(state);
        self.say("discarded", tag, id.unwrap_or("by tag"));
        Ok(())
    }

    pub(crate) fn poll(&self, asked: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        self.answers()?;
        let now = self.world.now();
        Ok(asked.iter().map(|(_, submission)| self.look(&submission.id, now)).collect())
    }

    fn look(&self, id: &str, now: Duration) -> Sighting {
        let wall = |at: Duration| Some(self.wall(at, now));
        let mut state = lock(&self.state);
        let Some(held) = state.held.get_mut(id) else { return Sighting::Absent };
        held.follow(now);
        if !held.is_known(self.world.plan.has(Fault::Forgets), now) {
            self.world.struck(Fault::Forgets);
            return Sighting::Absent;
        }
        if now < held.listed || self.world.strikes(Fault::FalseAbsent) {
            return Sighting::Absent;
        }
        Sighting::Seen(match held.phase {
            Phase::Inert => return Sighting::Inert,
            Phase::Begun(at) if now < at => Observation::Pending { reason: Some("resources".to_owned()) },
            Phase::Begun(at) => Observation::Running { since: wall(at), reason: None },
            Phase::Over { end: End::Vanished, .. } => {
                self.world.struck(Fault::Vanishes);
                return Sighting::Gone { evidence: "its host restarted".to_owned() };
            }
            Phase::Over { began, at, end } => {
                let (ending, exit_code) = match end {
                    End::Exit(0) => (Ending::Finished, Some(0)),
                    End::Exit(code) => (Ending::Failed, Some(code)),
                    End::FencedOff => (Ending::Failed, Some(125)),
                    End::TimedOut => (Ending::TimedOut, None),
                    End::Canceled | End::Vanished => (Ending::Canceled, None),
                };
                let reason = exit_code.filter(|code| *code != 0).map(|code| format!("exit code {code}"));
                Observation::Ended { ending, exit_code, reason, began: began.and_then(wall), at: wall(at) }
            }
        })
    }

    /// The manager's own wall time of a moment of the run.
    fn wall(&self, at: Duration, now: Duration) -> DateTime<Utc> {
        self.clock.now() - now.saturating_sub(at)
    }

    pub(crate) fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.listed(|held, now| held.phase == Phase::Inert && now >= held.created + older_than)
    }

    pub(crate) fn ended(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.listed(|held, now| match held.phase {
            Phase::Over { at, .. } => now >= at + older_than,
            Phase::Inert | Phase::Begun(_) => false,
        })
    }

    fn listed(
        &self,
        wanted: impl Fn(&Held, Duration) -> bool,
    ) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.answers()?;
        let (now, forgetful) = (self.world.now(), self.world.plan.has(Fault::Forgets));
        let mut state = lock(&self.state);
        state.held.values_mut().for_each(|held| held.follow(now));
        let all = state.held.iter().filter(|(_, held)| held.is_known(forgetful, now) && now >= held.listed);
        Ok(all.filter(|(_, held)| wanted(held, now)).map(|(id, held)| (held.tag, submission(id))).collect())
    }

    pub(crate) fn read_log(&self, id: &str, offset: u64) -> EngineResult<LogChunk> {
        self.answers()?;
        let now = self.world.now();
        let mut state = lock(&self.state);
        let held = state.held.get_mut(id).filter(|held| !held.released && !held.discarded);
        let Some(held) = held else { return Err(EngineError::Refused("it is forgotten".to_owned())) };
        held.follow(now);
        let last = matches!(held.phase, Phase::Over { .. });
        let all = if held.began(now).is_some() { OUTPUT } else { &[] };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
        Ok(LogChunk { bytes: Bytes::from_static(&all[from..]), last })
    }

    pub(crate) fn forget(&self, tag: SubmissionTag, id: &str) -> EngineResult<()> {
        self.answers()?;
        let mut state = lock(&self.state);
        if let Some(held) = state.held.get_mut(id) {
            held.released = true;
            if self.mode == SubmitMode::TwoPhase {
                state.names.remove(&tag);
            }
        }
        drop(state);
        self.say("forgot", tag, id);
        Ok(())
    }
}

/// What the job at this place of the plan is called.
pub(crate) fn job_name(place: usize) -> String {
    format!("job-{place}")
}

/// The place in the plan of what is called so.
pub(crate) fn place_of(name: &str) -> Option<usize> {
    name.strip_prefix("job-")?.parse().ok()
}

fn submission(id: &str) -> Submission {
    Submission { id: id.to_owned(), detail: serde_json::Value::Null, reach: None }
}
