//! One state of everything, and each thing that can happen to it.

use crate::{
    Faults, Flaw, Protocol,
    coverage::{Coverage, of_input},
    late::{self, Told},
    promises::Promise,
    submissions::{Began, Id, Manager},
};
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{
        Agreement, ClusterName, Command, Document, Ending, Fact, Job, JobId, JobSpec, JobState, Life,
        Outcome, Project, RetryPolicy, Standing, StatusEvent, Submission, WorkerId,
    },
    store::{Recorded, ToHandBack, ToRecord},
};
use jobgate_worker::{
    core::{Core, Effect, Fault, Hold, Input, Moment, Serving},
    engine::{Capabilities, ExitCodes, MemoryLimits, Sighting, TimeLimits},
};
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher as _},
    time::Duration,
};
use uuid::Uuid;

/// A registered identity: one life of one process.
pub type Identity = u8;

/// Something that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A worker claims the job: a hint may reach any of them at any time.
    Claim(usize),
    /// A worker is granted the job by a claim that it takes for lost.
    ClaimUnheard(usize),
    /// A worker compares what it has with what the row says.
    Compare(usize),
    /// A request arrives, and its answer returns if somebody still waits for it.
    Land(usize),
    /// A request is given up by whoever waits; it may arrive yet.
    Unanswered(usize),
    /// The recorder applies an event, for the first or the n-th time.
    Apply(usize),
    /// An event is lost.
    Drop(usize),
    /// A worker looks at what it watches.
    Poll(usize),
    /// The manager's listing leaves out what a worker looks for.
    PollNothing(usize),
    /// A worker renews its lease, or learns that it has none.
    Heartbeat(usize),
    /// Time passes for a worker: until its next timer rings, if it has one.
    Tick(usize),
    /// A worker looks for inert leftovers.
    Sweep(usize),
    /// A worker has shipped the logs of what has ended.
    ShipLogs(usize),
    /// A worker is told to stop.
    Drain(usize),
    /// A drained worker ends, and another takes its place.
    Stop(usize),
    /// A worker dies at once, and another takes its place.
    Crash(usize),
    /// A lease ends.
    Expire(Identity),
    /// A user cancels.
    Cancel,
    /// A user retries.
    Retry,
    /// What runs ends.
    End(Id, Ending),
    /// What a start has put before the fence gets there.
    Pass(Id),
    /// The manager forgets what has ended.
    Forget(Id),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Call {
    Create(Hold, Option<Id>),
    Record(Hold, ToRecord),
    Start(Hold, Submission),
    Cancel(Hold, Submission),
    Discard(Hold, Option<Submission>),
    Sweep(u32, Id),
    HandBack(ToHandBack),
}

/// A request under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Request {
    from: Identity,
    /// Somebody waits for the answer. What nobody waits for arrives late, or never.
    heard: bool,
    call: Call,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Process {
    identity: Identity,
    core: Core,
    /// Moves by timers alone.
    now: Duration,
    shipping: Vec<Hold>,
}

/// One state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The store's row of the job.
    pub row: Life,
    /// The resource manager.
    pub manager: Manager,
    /// What began to run, in order.
    pub begun: Vec<Began>,
    /// Attempts the row has said to be canceled.
    pub canceled: BTreeSet<u32>,
    /// Promises broken amid steps.
    pub broken: BTreeSet<Promise>,
    processes: Vec<Process>,
    /// Identities whose lease runs.
    leased: BTreeSet<Identity>,
    identities: Identity,
    wire: Vec<Request>,
    told: Vec<StatusEvent>,
    left: Faults,
}

/// Processes at work at any time.
pub const PROCESSES: usize = 2;
const JOB: JobId = JobId(Uuid::from_u128(0xa));
/// Longer than anything a worker waits for without a timer.
const A_WHILE: Duration = Duration::from_secs(10);
pub(crate) const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

fn worker(identity: Identity) -> WorkerId {
    WorkerId(Uuid::from_u128(u128::from(identity) + 1))
}

pub(crate) fn submission(id: Id) -> Submission {
    Submission { id: id.to_string(), detail: serde_json::Value::Null, reach: None }
}

fn id_of(submission: &Submission) -> Id {
    submission.id.parse().unwrap_or(Id::MAX)
}

fn cluster() -> ClusterName {
    "c".parse().unwrap_or_else(|_| unreachable!("it is a name"))
}

/// Two of the same are the same.
pub(crate) fn digest(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Every time in a row is the same: the order of steps is what the search varies.
fn timeless(mut life: Life) -> Life {
    life.due_at = NOW;
    for time in [&mut life.claimed_at, &mut life.submitted_at, &mut life.started_at, &mut life.finished_at] {
        *time = time.map(|_| NOW);
    }
    life
}

impl Process {
    fn new(protocol: &Protocol, identity: Identity) -> Self {
        let capabilities = Capabilities {
            mode: protocol.manager.mode(),
            reach: None,
            commands: false,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: false,
            logs: protocol.logs,
            poll_interval: Duration::ZERO,
        };
        let serving = Serving {
            cluster: cluster(),
            capabilities,
            max_creates: 1,
            lost_after: Duration::ZERO,
            slow_after: Duration::MAX,
        };
        let core = Core::new(worker(identity), vec![serving]);
        Self { identity, core, now: Duration::ZERO, shipping: Vec::new() }
    }
}

impl World {
    /// A job accepted, and every worker idle.
    pub fn new(protocol: &Protocol) -> Self {
        let mut world = Self {
            row: Life::begin(false, NOW),
            manager: Manager::new(protocol.manager),
            begun: Vec::new(),
            canceled: BTreeSet::new(),
            broken: BTreeSet::new(),
            processes: Vec::new(),
            leased: BTreeSet::new(),
            identities: 0,
            wire: Vec::new(),
            told: Vec::new(),
            left: protocol.faults,
        };
        for _ in 0..PROCESSES {
            let process = world.register(protocol);
            world.processes.push(process);
        }
        world
    }

    fn register(&mut self, protocol: &Protocol) -> Process {
        let identity = self.identities;
        self.identities += 1;
        self.leased.insert(identity);
        Process::new(protocol, identity)
    }

    /// What can happen next; what would change nothing is left to the caller to find out.
    pub fn actions(&self, protocol: &Protocol, actions: &mut Vec<Action>) {
        for (p, process) in self.processes.iter().enumerate() {
            // Both are alike until one has claimed.
            if p == 0 || self.row.epoch > 0 {
                actions.push(Action::Claim(p));
                if self.left.losses > 0 {
                    actions.push(Action::ClaimUnheard(p));
                }
            }
            if self.is_unknown_to(process) {
                actions.push(Action::Compare(p));
            }
            if !process.core.watched(0).is_empty() {
                actions.push(Action::Poll(p));
                if self.left.losses > 0 {
                    actions.push(Action::PollNothing(p));
                }
            }
            actions.push(Action::Heartbeat(p));
            actions.push(Action::Sweep(p));
            if !process.shipping.is_empty() {
                actions.push(Action::ShipLogs(p));
            }
            if self.left.ticks > 0 && process.core.jobs() > 0 {
                actions.push(Action::Tick(p));
            }
            if self.has_stopped(p) {
                actions.push(Action::Stop(p));
            }
            // A worker that holds nothing is as good as the one that would follow it.
            if process.core.jobs() > 0 {
                if self.left.drains > 0 && !process.core.is_draining() {
                    actions.push(Action::Drain(p));
                }
                if self.left.crashes > 0 {
                    actions.push(Action::Crash(p));
                }
            }
        }
        for identity in &self.leased {
            let lives = self.processes.iter().any(|process| process.identity == *identity);
            let owns = self.row.owner == Some(worker(*identity)) && self.row.state.is_owned();
            if owns && (!lives || self.left.expiries > 0) {
                actions.push(Action::Expire(*identity));
            }
        }
        for (i, request) in self.wire.iter().enumerate() {
            actions.push(Action::Land(i));
            let answered = !matches!(request.call, Call::HandBack(_) | Call::Sweep(..));
            if request.heard && answered && self.left.losses > 0 {
                actions.push(Action::Unanswered(i));
            }
        }
        for i in 0..self.told.len() {
            actions.push(Action::Apply(i));
            if self.left.losses > 0 {
                actions.push(Action::Drop(i));
            }
        }
        for Began { id, .. } in self.manager.running() {
            actions.push(Action::End(id, Ending::Finished));
            if self.left.retries > 0 || protocol.max_attempts > 1 {
                actions.push(Action::End(id, Ending::Failed));
            }
        }
        actions.extend(self.manager.at_the_fence().into_iter().map(Action::Pass));
        if self.left.forgets > 0 {
            actions.extend(self.manager.known_ends().into_iter().map(Action::Forget));
        }
        if self.left.cancels > 0 {
            actions.push(Action::Cancel);
        }
        if self.left.retries > 0 && self.row.state.is_terminal() {
            actions.push(Action::Retry);
        }
    }

    /// Lets it happen.
    pub fn take(&mut self, protocol: &Protocol, action: Action) {
        match action {
            Action::Claim(p) => self.claim(protocol, p),
            Action::ClaimUnheard(p) => {
                self.left.losses -= 1;
                if self.is_granted(protocol, p) {
                    protocol.coverage.saw("granted unheard");
                }
            }
            Action::Compare(p) => {
                let held = if protocol.flaw == Flaw::NothingIsHeld { vec![] } else { vec![JOB] };
                for _ in 0..2 {
                    self.step(protocol, p, Input::Held(held.clone()));
                }
            }
            Action::Land(i) => {
                let request = self.wire.remove(i);
                self.land(protocol, request);
            }
            Action::Unanswered(i) => self.unanswered(protocol, i),
            Action::Apply(i) => self.apply(protocol, i),
            Action::Drop(i) => {
                self.left.losses -= 1;
                protocol.coverage.saw("event dropped");
                self.told.remove(i);
            }
            Action::Poll(p) => self.poll(protocol, p, Manager::look),
            Action::PollNothing(p) => {
                self.left.losses -= 1;
                self.poll(protocol, p, |_, _| Sighting::Absent);
            }
            Action::Heartbeat(p) => self.heartbeat(protocol, p),
            Action::Tick(p) => {
                self.left.ticks -= 1;
                self.tick(protocol, p);
            }
            Action::Sweep(p) => self.sweep(p),
            Action::ShipLogs(p) => {
                for hold in std::mem::take(&mut self.processes[p].shipping) {
                    self.step(protocol, p, Input::LogsShipped(hold));
                }
            }
            Action::Drain(p) => {
                self.left.drains -= 1;
                self.step(protocol, p, Input::Drain);
            }
            Action::Stop(p) => {
                self.leased.remove(&self.processes[p].identity);
                self.replace(protocol, p);
            }
            Action::Crash(p) => {
                self.left.crashes -= 1;
                self.replace(protocol, p);
            }
            Action::Expire(identity) => {
                if self.processes.iter().any(|process| process.identity == identity) {
                    self.left.expiries -= 1;
                }
                self.leased.remove(&identity);
            }
            Action::Cancel => {
                self.left.cancels -= 1;
                self.tell(protocol, &Fact::Command { command: Command::Cancel, by: "user" });
            }
            Action::Retry => {
                self.left.retries -= 1;
                protocol.coverage.saw("retried");
                self.tell(protocol, &Fact::Command { command: Command::Retry, by: "user" });
            }
            Action::End(id, ending) => self.manager.end(id, ending),
            Action::Pass(id) => self.passes(protocol, id),
            Action::Forget(id) => {
                self.left.forgets -= 1;
                protocol.coverage.saw("forgotten");
                self.manager.lose(id);
            }
        }
        self.simplify(protocol);
    }

    /// Makes worlds that cannot be told apart any more the same: requests and events under way have no order, and those
    /// that can never matter again are as good as gone. Whether they can is for the product to say: see [`crate::late`].
    fn simplify(&mut self, protocol: &Protocol) {
        let mut wire = std::mem::take(&mut self.wire);
        wire.retain(|request| request.heard || self.matters(protocol, request));
        wire.sort_by_cached_key(digest);
        self.wire = wire;
        let Self { row, told, .. } = self;
        told.retain(|event| Told::Event(event).may_act(protocol, row));
        told.sort_by_cached_key(digest);
        told.dedup();
    }

    /// What nobody waits for could still change something.
    fn matters(&self, protocol: &Protocol, Request { from, call, .. }: &Request) -> bool {
        match call {
            Call::Create(..) | Call::Discard(_, None) => true,
            Call::Record(_, item) => Told::Record(item).may_act(protocol, &self.row),
            Call::HandBack(item) => Told::HandBack(worker(*from), item).may_act(protocol, &self.row),
            Call::Start(_, submission) | Call::Cancel(_, submission) | Call::Discard(_, Some(submission)) => {
                self.manager.may_end(id_of(submission))
            }
            Call::Sweep(_, id) => self.manager.may_end(*id),
        }
    }

    /// The process is gone; another begins, under another identity.
    fn replace(&mut self, protocol: &Protocol, p: usize) {
        let gone = self.processes[p].identity;
        for request in self.wire.iter_mut().filter(|request| request.from == gone) {
            request.heard = false;
        }
        self.processes[p] = self.register(protocol);
    }

    fn has_stopped(&self, p: usize) -> bool {
        let Process { identity, core, .. } = &self.processes[p];
        let waits = self.wire.iter().any(|request| request.heard && request.from == *identity);
        core.is_draining() && core.jobs() == 0 && !waits
    }

    fn tell(&mut self, protocol: &Protocol, fact: &Fact<'_>) -> Outcome {
        let outcome = late::decide(protocol, &self.row, fact);
        if let Outcome::Advanced { life, change } = &outcome {
            let ended = self.row.state.is_terminal();
            if ended && !matches!(fact, Fact::Command { command: Command::Retry, .. }) {
                self.broken.insert(Promise::EndsStand);
            }
            let back = life.attempt == self.row.attempt && life.state.phase() < self.row.state.phase();
            if back && !(self.row.state == JobState::Claimed && matches!(fact, Fact::HandBack { .. })) {
                self.broken.insert(Promise::RowsGoForward);
            }
            if matches!(fact, Fact::Record { .. }) && self.row.cancel_requested {
                self.broken.insert(Promise::NothingIsRecordedCanceled);
            }
            if change.entry.to == JobState::Canceled {
                self.canceled.insert(self.row.attempt);
            }
            self.row = timeless((**life).clone());
        }
        outcome
    }

    fn job(&self, protocol: &Protocol) -> Job {
        Job {
            id: JOB,
            project: Project::default_project(),
            name: String::new(),
            cluster: cluster(),
            spec: JobSpec { command: vec!["true".to_owned()], ..JobSpec::default() },
            labels: Vec::new(),
            priority: 0,
            inputs: Document::new(),
            outputs: Document::new(),
            report: None,
            max_attempts: protocol.max_attempts,
            retry: RetryPolicy::default(),
            created_by: String::new(),
            created_at: NOW,
            run_at: None,
            life: self.row.clone(),
        }
    }

    fn is_alive(&self, owner: Option<WorkerId>) -> bool {
        self.leased.iter().any(|identity| Some(worker(*identity)) == owner)
    }

    /// It has the job by the row, and does not know.
    fn is_unknown_to(&self, Process { identity, core, .. }: &Process) -> bool {
        core.jobs() == 0 && self.row.holder() == Some(worker(*identity))
    }

    fn claim(&mut self, protocol: &Protocol, p: usize) {
        if self.is_granted(protocol, p) {
            let job = Box::new(self.job(protocol));
            self.step(protocol, p, Input::Granted(job));
        }
    }

    /// What the row says to a claim.
    fn is_granted(&mut self, protocol: &Protocol, p: usize) -> bool {
        let Process { identity, core, .. } = &self.processes[p];
        if core.is_draining() {
            return false;
        }
        let me = worker(*identity);
        let standing = Standing {
            claimer_alive: self.leased.contains(identity),
            owner_alive: self.is_alive(self.row.owner),
            cluster_paused: false,
            room: None,
        };
        let fact = Fact::Claim { worker: me, reach: None, alone: true, standing };
        let granted = matches!(self.tell(protocol, &fact), Outcome::Advanced { .. } | Outcome::Duplicate);
        granted && self.row.holder() == Some(me)
    }

    /// One input of one worker, with all that follows at once.
    fn step(&mut self, protocol: &Protocol, p: usize, input: Input) {
        protocol.coverage.saw(of_input(&input));
        let Process { identity, core, now, .. } = &mut self.processes[p];
        let (mut effects, from, mut unheard) = (Vec::new(), *identity, false);
        core.step(Moment { since_start: *now, wall: NOW }, input, &mut effects);
        for effect in effects {
            let call = match effect {
                Effect::Create(hold, job) => {
                    let looks = protocol.manager == crate::submissions::Kind::LookupFirst;
                    let found = self.manager.look_up(job.tag.attempt).filter(|_| looks);
                    Call::Create(hold, found)
                }
                Effect::Record(hold, item) => Call::Record(hold, item),
                Effect::Start(hold, submission) => Call::Start(hold, submission),
                Effect::Cancel(hold, submission) => Call::Cancel(hold, submission),
                Effect::Discard(hold, submission) => Call::Discard(hold, submission),
                Effect::HandBack(item) => Call::HandBack(item),
                Effect::Publish(event) => {
                    self.told.push(event);
                    continue;
                }
                Effect::ShipLogs(hold, _) => {
                    self.processes[p].shipping.push(hold);
                    continue;
                }
                Effect::Forget(hold, submission) => {
                    protocol.coverage.saw("forget");
                    let over = self.row.attempt > hold.tag.attempt || self.row.state.is_terminal();
                    if !over {
                        self.broken.insert(Promise::TheNeededIsKept);
                    }
                    self.manager.forget(id_of(&submission));
                    continue;
                }
                Effect::ClaimAgain(_) => {
                    unheard = true;
                    continue;
                }
            };
            self.wire.push(Request { from, heard: true, call });
        }
        if unheard {
            self.claim(protocol, p);
        }
    }

    fn waiting(&self, request: &Request) -> Option<usize> {
        self.processes.iter().position(|process| request.heard && process.identity == request.from)
    }

    fn land(&mut self, protocol: &Protocol, request: Request) {
        let waiting = self.waiting(&request);
        if waiting.is_none() {
            protocol.coverage.saw("late landing");
        }
        let answer = match request.call {
            Call::Create(hold, found) => {
                let (id, began) = self.manager.create(hold.tag.attempt, found);
                self.began(began);
                let refused = || Fault::Refused("the name is not to be used any more".to_owned());
                Input::Created(hold, id.map(submission).ok_or_else(refused))
            }
            Call::Record(hold, item) => Input::Recorded(hold, Some(self.record(protocol, &item))),
            Call::Start(hold, submission) => {
                let answer = self.manager.start(id_of(&submission));
                self.began(answer.as_ref().ok().copied().flatten());
                Input::Started(hold, answer.map(drop))
            }
            Call::Cancel(hold, submission) => {
                self.manager.cancel(id_of(&submission));
                Input::CancelTaken(hold, Ok(()))
            }
            Call::Discard(hold, submission) => {
                self.manager.discard(hold.tag.attempt, submission.as_ref().map(id_of));
                Input::Discarded(hold, Ok(()))
            }
            Call::Sweep(attempt, id) => {
                protocol.coverage.saw("swept");
                self.manager.discard(attempt, Some(id));
                return;
            }
            Call::HandBack(item) => {
                protocol.coverage.saw("hand back");
                self.tell(protocol, &Told::HandBack(worker(request.from), &item).fact());
                return;
            }
        };
        if let Some(p) = waiting {
            self.step(protocol, p, answer);
        }
    }

    fn record(&mut self, protocol: &Protocol, item: &ToRecord) -> Recorded {
        match self.tell(protocol, &Told::Record(item).fact()) {
            Outcome::Advanced { .. } | Outcome::Duplicate => Recorded::Won,
            Outcome::Stale | Outcome::Refused(_) => {
                Recorded::Lost { current: Some(Box::new(self.job(protocol))) }
            }
        }
    }

    fn passes(&mut self, protocol: &Protocol, id: Id) {
        protocol.coverage.saw("passed the fence");
        let began = self.manager.pass(id);
        self.began(began);
    }

    fn began(&mut self, began: Option<Began>) {
        let Some(began) = began else { return };
        if self.begun.iter().any(|earlier| earlier.attempt == began.attempt) {
            self.broken.insert(Promise::BeginsOnce);
        }
        if self.canceled.contains(&began.attempt) {
            self.broken.insert(Promise::NothingBeginsCanceled);
        }
        self.begun.push(began);
    }

    fn unanswered(&mut self, protocol: &Protocol, i: usize) {
        self.left.losses -= 1;
        let request = &mut self.wire[i];
        request.heard = false;
        let (from, away) = (request.from, || Fault::Away("no answer".to_owned()));
        let answer = match &request.call {
            Call::Create(hold, _) => Input::Created(*hold, Err(away())),
            Call::Record(hold, _) => Input::Recorded(*hold, None),
            Call::Start(hold, _) => Input::Started(*hold, Err(away())),
            Call::Cancel(hold, _) => Input::CancelTaken(*hold, Err(away())),
            Call::Discard(hold, _) => Input::Discarded(*hold, Err(away())),
            Call::Sweep(..) | Call::HandBack(_) => return,
        };
        if let Some(p) = self.processes.iter().position(|process| process.identity == from) {
            self.step(protocol, p, answer);
        }
    }

    fn apply(&mut self, protocol: &Protocol, i: usize) {
        let event = self.told[i].clone();
        self.tell(protocol, &Told::Event(&event).fact());
    }

    fn poll(&mut self, protocol: &Protocol, p: usize, look: impl Fn(&Manager, Id) -> Sighting) {
        self.step(protocol, p, Input::Answered(0, Ok(Duration::ZERO)));
        for (hold, submission) in self.processes[p].core.watched(0) {
            let sighting = look(&self.manager, id_of(&submission));
            self.step(protocol, p, Input::Sighted(hold, sighting));
        }
    }

    fn heartbeat(&mut self, protocol: &Protocol, p: usize) {
        let Process { identity, core, .. } = &self.processes[p];
        let me = worker(*identity);
        if !self.leased.contains(identity) {
            protocol.coverage.saw("lease over");
            self.replace(protocol, p);
            return;
        }
        let mut news = Vec::new();
        if self.row.owner == Some(me) && self.row.state.is_owned() && self.row.cancel_requested {
            news.push(Input::CancelRequested(JOB));
        }
        for (job, attempt, epoch) in core.unsettled() {
            match self.row.agreement(me, attempt, epoch) {
                Agreement::Settled => news.push(Input::Settled(job)),
                Agreement::Lost => news.push(Input::Lost(job)),
                Agreement::Open => {}
            }
        }
        for input in news {
            self.step(protocol, p, input);
        }
    }

    fn tick(&mut self, protocol: &Protocol, p: usize) {
        let Process { core, now, .. } = &mut self.processes[p];
        *now = core.next_timer().map_or(*now + A_WHILE, |at| at.max(*now));
        self.step(protocol, p, Input::Tick);
    }

    fn sweep(&mut self, p: usize) {
        let from = self.processes[p].identity;
        for (attempt, id) in self.manager.inert() {
            let call = Call::Sweep(attempt, id);
            let known = self.wire.iter().any(|request| request.heard && request.call == call);
            if !known && !self.row.may_start(attempt, &id.to_string()) {
                self.wire.push(Request { from, heard: true, call });
            }
        }
    }

    /// Nobody waits for an answer: what follows from here is not already on its way.
    pub(crate) fn rests(&self) -> bool {
        self.wire.iter().all(|request| self.waiting(request).is_none())
    }

    /// What happens when no fault happens any more. `Err` tells what never came to rest.
    pub(crate) fn settle(&self, protocol: &Protocol) -> Result<Self, &'static str> {
        let mut world = self.clone();
        // A world of its own: what happens here is not what the search has seen.
        let protocol = Protocol { coverage: std::sync::Arc::new(Coverage::default()), ..protocol.clone() };
        for _ in 0..24 {
            if world.is_settled() {
                return Ok(world);
            }
            world.pass(&protocol);
        }
        Err(if world.row.state.is_terminal() {
            "a worker or the manager holds on to it"
        } else {
            "the job never ends"
        })
    }

    fn is_settled(&self) -> bool {
        let held = self.processes.iter().any(|process| process.core.jobs() > 0);
        self.row.state.is_terminal()
            && !held
            && self.manager.inert().is_empty()
            && self.manager.running().is_empty()
    }

    /// One round of everything that happens by itself.
    fn pass(&mut self, protocol: &Protocol) {
        let lives: Vec<Identity> = self.processes.iter().map(|process| process.identity).collect();
        self.leased.retain(|identity| lives.contains(identity));
        for p in 0..PROCESSES {
            if self.has_stopped(p) {
                self.take(protocol, Action::Stop(p));
            }
            self.heartbeat(protocol, p);
            // Nobody hints what somebody alive has.
            if !self.row.state.is_owned() || !self.is_alive(self.row.owner) {
                self.claim(protocol, p);
            }
            if self.is_unknown_to(&self.processes[p]) {
                self.take(protocol, Action::Compare(p));
            }
            self.arrive(protocol);
            self.poll(protocol, p, Manager::look);
            self.arrive(protocol);
            for hold in std::mem::take(&mut self.processes[p].shipping) {
                self.step(protocol, p, Input::LogsShipped(hold));
            }
            self.sweep(p);
            self.tick(protocol, p);
            self.arrive(protocol);
        }
        for id in self.manager.at_the_fence() {
            self.passes(protocol, id);
        }
        for Began { id, .. } in self.manager.running() {
            self.manager.end(id, Ending::Finished);
        }
    }

    /// Everything somebody waits for arrives, and everything told is applied.
    fn arrive(&mut self, protocol: &Protocol) {
        while let Some(i) = self.wire.iter().position(|request| self.waiting(request).is_some()) {
            let request = self.wire.remove(i);
            self.land(protocol, request);
        }
        for i in 0..self.told.len() {
            self.apply(protocol, i);
        }
        self.told.clear();
    }

    /// Which submission the row names.
    pub(crate) fn recorded(&self) -> Option<Id> {
        self.row.submission.as_ref().map(id_of)
    }
}
