//! What a seed means: which faults are on and how strong, who there is, what is asked for, and when something breaks.
//!
//! A swarm: each seed switches on a random part of the faults, so that some runs meet one fault often and others many at
//! once. Nothing here runs; the plan is a value.

use crate::dice::Dice;
use jobgate_shared::{domain::SubmissionTag, random::Stream};
use jobgate_worker::engine::{SubmitMode, TimeLimits};
use std::time::Duration;

macro_rules! counted {
    ($(#[$doc:meta])* $name:ident { $($(#[$one_doc:meta])* $one:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum $name { $($(#[$one_doc])* $one,)* }

        impl $name {
            /// Every one.
            pub(crate) const ALL: &[Self] = &[$(Self::$one,)*];
        }
    };
}

counted! {
    /// What may go wrong.
    Fault {
        /// A call never reaches the store.
        StoreCallLost,
        /// The store commits and the answer is lost.
        UnknownCommit,
        /// The store is said to be away, and commits later all the same.
        LateCommit,
        /// The store is away for everybody.
        StoreAway,
        /// A message never reaches the broker, and its sender is told so.
        PublishLost,
        /// The broker takes a message and the confirm is lost.
        ConfirmLost,
        /// A confirmed hint is lost.
        HintDropped,
        /// A hint comes twice.
        HintDoubled,
        /// A hint comes late, after younger ones.
        HintDelayed,
        /// Confirmed events are lost.
        EventsDropped,
        /// Events come twice.
        EventsDoubled,
        /// Events come late, after younger ones.
        EventsDelayed,
        /// A nudge is lost.
        NudgeDropped,
        /// The broker is away for everybody; what nobody settled comes again.
        BrokerAway,
        /// The broker takes no messages.
        BrokerBlocked,
        /// One process loses its connection to the broker and has another at once.
        Reconnect,
        /// A cluster's queue of hints is emptied.
        Purge,
        /// A call never reaches the resource manager.
        ManagerCallLost,
        /// The resource manager does as it is told and the answer is lost.
        ManagerReplyLost,
        /// The resource manager is said to be away, and does as it was told up to minutes later.
        LateSubmit,
        /// The resource manager is away for everybody.
        ManagerAway,
        /// A poll does not show what is there.
        FalseAbsent,
        /// What is new is not listed yet.
        ListingLag,
        /// The resource manager forgets what ended before anybody looked.
        Forgets,
        /// A job is gone without an end, and the manager can tell.
        Vanishes,
        /// A process is killed.
        Kill,
        /// A process stands still beyond its lease.
        Freeze,
        /// A process is cut off from the store.
        CutFromStore,
        /// A process is cut off from the broker.
        CutFromBroker,
        /// A process is cut off from the resource managers.
        CutFromManager,
        /// The wall clock of a process is wrong by minutes.
        Skew,
        /// A job kills every worker that is about to submit it.
        Poison,
    }
}

counted! {
    /// What should come of it now and then.
    Outcome {
        /// A job was taken over from somebody else.
        Adopted,
        /// A dispatcher found jobs of the dead.
        Rescued,
        /// A record was beaten by another, a cancel or an end.
        RecordLost,
        /// An event came too late to mean anything.
        StaleEvent,
        /// A job went back into the queue.
        HandedBack,
        /// A running job was given up in good order.
        HandedOver,
        /// An inert leftover was found that no row records.
        Swept,
        /// A job was retried by hand.
        RetriedByHand,
        /// A job was retried by its policy.
        RetriedByPolicy,
        /// A job was lost.
        Lost,
        /// A job was cancelled while it waited.
        CanceledWaiting,
        /// A job was cancelled before anything was recorded.
        CanceledClaimed,
        /// A job was cancelled at its resource manager.
        CanceledSubmitted,
        /// A job ended by itself although a cancel was asked for.
        FinishBeatCancel,
        /// A job ran out of time.
        TimedOut,
        /// A job was refused by its resource manager.
        CreateRefused,
        /// A job was given up because claims of it led to nothing.
        GivenUp,
        /// A worker heard that its lease is over.
        LeaseOver,
        /// A worker wrote events to the rows itself.
        AppliedDirectly,
        /// A submission was made twice under one key.
        KeyReplayed,
        /// A worker drained to its end.
        Drained,
        /// A job that would run for ever was ended by its cancel.
        EndedByCancel,
    }
}

/// A fake that is broken on purpose, so that the checks can be seen to bite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// None.
    None,
    /// The store says of every record that it won.
    EveryRecordWins,
    /// The store lets a late event replace an end.
    EventsReplaceEnds,
    /// The store grants a job that somebody alive has.
    ClaimsIgnoreOwners,
    /// The store calls a claimed job canceled before its worker has made sure.
    CancelsAtOnce,
    /// The manager runs what should be inert.
    CreateStarts,
    /// The manager forgets the names of what has ended.
    NamesAreForgotten,
    /// The broker takes a hint for done when it gives it out, and nobody dispatches.
    HintsAreLost,
    /// The store forgets to tell the feed of ends.
    EndsAreNotTold,
    /// The store knows of no worker that it has anything.
    NothingIsHeld,
}

/// Which role a process plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Accepts, dispatches, rescues.
    Api,
    /// Works.
    Worker,
    /// Records.
    Recorder,
}

/// Where a process reaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// The rows.
    Store,
    /// The bells.
    Broker,
    /// The resource managers.
    Manager,
}

/// Something that is done to the world from outside, at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Post the job at this place of the plan.
    Post(usize),
    /// Cancel some job.
    Cancel,
    /// Hold some job.
    Hold,
    /// Release some job.
    Release,
    /// Run some ended job again.
    Retry,
    /// Change the priority of some job.
    Prioritise,
    /// Set something on a cluster.
    Set(usize, Setting),
    /// Kill some process of a role, and start another after a while.
    Kill(Role, Duration),
    /// Let some process stand still.
    Freeze(Role, Duration),
    /// Cut some process off.
    Cut(Role, Link, Duration),
    /// Ask some worker to stop, and start another after a while.
    Drain(Duration),
    /// Start one more worker.
    AddWorker,
    /// The store is away.
    StoreAway(Duration),
    /// The broker is away.
    BrokerAway(Duration),
    /// The broker takes no messages.
    BrokerBlocked(Duration),
    /// A process connects to the broker anew.
    Reconnect(Role),
    /// A cluster's queue is emptied.
    Purge(usize),
    /// A resource manager is away.
    ManagerAway(usize, Duration),
}

/// What operators set on a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// No fresh job is claimed.
    Paused(bool),
    /// So many jobs are in flight at most.
    Limit(Option<u32>),
}

/// A job to post.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Where.
    pub(crate) cluster: usize,
    /// Starts held.
    pub(crate) hold: bool,
    /// How urgent.
    pub(crate) priority: i16,
    /// Attempts in all.
    pub(crate) max_attempts: u32,
    /// A lost attempt is followed by another, too.
    pub(crate) retry_lost: bool,
    /// Its time limit.
    pub(crate) time_limit: Option<u64>,
    /// Due so long after it is posted.
    pub(crate) delay: Duration,
    /// It would run for ever, so its user cancels it in the end.
    pub(crate) forever: bool,
}

/// What becomes of an attempt at its resource manager: the same whoever submits it, however often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// It is never taken.
    pub(crate) refused: bool,
    /// How long it waits for resources.
    pub(crate) queues: Duration,
    /// How long it runs.
    pub(crate) length: Duration,
    /// How it exits.
    pub(crate) exit: i32,
    /// It is gone without an end instead.
    pub(crate) vanishes: bool,
}

/// A whole plan.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "independent throws of the dice")]
pub(crate) struct Plan {
    /// What it follows from.
    pub(crate) seed: u64,
    /// What is broken on purpose.
    pub(crate) flaw: Flaw,
    /// How each cluster submits.
    pub(crate) modes: Vec<SubmitMode>,
    /// How many processes of each role there are.
    pub(crate) processes: [(Role, usize); 3],
    /// How often each fault strikes where it can, in a thousand.
    rates: Vec<u32>,
    /// The jobs.
    pub(crate) jobs: Vec<Wish>,
    /// What happens when.
    pub(crate) script: Vec<(Duration, Action)>,
    /// When everything is healed.
    pub(crate) chaos: Duration,
    /// How late a late landing may be.
    pub(crate) latest: Duration,
    /// How late a late commit may be.
    pub(crate) late_commit: Duration,
    /// Who ends a job whose time is up.
    pub(crate) time_limits: TimeLimits,
    /// A manager answers a second create under one tag with the first submission.
    pub(crate) finds_by_tag: bool,
    /// A manager says when jobs end.
    pub(crate) stirs: bool,
    /// The broker tells the length of its queues.
    pub(crate) tells_waiting: bool,
    /// Jobs print, and it is shipped.
    pub(crate) logs: bool,
    /// How many jobs a worker holds of a cluster.
    pub(crate) room: u32,
    /// The job that kills workers.
    pub(crate) poison: Option<usize>,
    /// How many calls a worker makes to a manager at once.
    pub(crate) calls: usize,
    /// How long a hint counts before another is given.
    pub(crate) hint_for: Duration,
}

/// Longer than any run.
const FOR_EVER: Duration = Duration::from_hours(24);
/// As long as a hint may count: longer than what gives each once may take to settle.
const HINTS_LAST: Duration = Duration::from_mins(5);

/// How often calls and messages are struck while their fault is on, from gentle to hard.
const RATES: [u32; 4] = [10, 40, 120, 300];

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(seed: u64, flaw: Flaw) -> Self {
        let dice = &mut Dice::new(seed);
        // One run in sixteen meets no fault at all.
        let calm = dice.below(16) == 0;
        let density = dice.pick(&[100, 300, 600]);
        let mut on = |_: &Fault| if !calm && dice.chance(density) { dice.pick(&RATES) } else { 0 };
        let mut rates: Vec<u32> = Fault::ALL.iter().map(&mut on).collect();
        // One in twelve gives no hint a second time, and nothing in it may cost one: not the death of a worker that holds it.
        let once = dice.below(12) == 0;
        if once {
            let kept =
                |fault: &Fault| matches!(fault, Fault::Kill | Fault::HintDoubled | Fault::StoreCallLost);
            let all = Fault::ALL.iter().zip(&mut rates);
            all.for_each(|(fault, rate)| *rate = if kept(fault) { 300 } else { 0 });
        }
        for fault in demanded(flaw) {
            rates[*fault as usize] = 300;
        }
        let chaos = dice.millis(10_000, 40_000);
        let clusters = 1 + usize::from(dice.chance(400));
        let modes = [
            SubmitMode::TwoPhase,
            SubmitMode::TwoPhase,
            SubmitMode::UniqueName,
            SubmitMode::Fenced,
            SubmitMode::AtMostOnce,
        ];
        let modes = (0..clusters).map(|_| forced(flaw).unwrap_or(dice.pick(&modes))).collect();
        let jobs = (0..4 + dice.below(12)).map(|_| wish(dice, clusters));
        let jobs: Vec<Wish> = jobs
            .map(|wish| if once { Wish { hold: false, delay: Duration::ZERO, ..wish } } else { wish })
            .collect();
        let processes = [
            (Role::Api, 1 + usize::from(dice.chance(300))),
            (Role::Worker, 2 + usize::from(dice.chance(400))),
            (Role::Recorder, 1 + usize::from(dice.chance(300))),
        ];
        let mut plan = Self {
            seed,
            flaw,
            modes,
            processes,
            rates,
            jobs,
            script: Vec::new(),
            chaos,
            late_commit: Duration::from_secs(if flaw == Flaw::EveryRecordWins { 20 } else { 3 }),
            latest: Duration::from_secs(dice.pick(&[5, 5, 20, 20, 20, 60, 150])),
            time_limits: dice.pick(&[TimeLimits::ByEngine, TimeLimits::ByWatcher]),
            // One that does gives every claim the same submission to record.
            finds_by_tag: dice.chance(500) && flaw != Flaw::EveryRecordWins,
            stirs: dice.chance(500),
            tells_waiting: dice.chance(700),
            logs: dice.chance(250),
            room: dice.pick(&[1, 2, 4, 100]),
            calls: dice.pick(&[1, 2, 16]),
            poison: None,
            hint_for: if once { HINTS_LAST } else { Duration::from_secs(2) },
        };
        // It takes its time, so few runs have one.
        plan.poison = (plan.has(Fault::Poison) && dice.chance(100)).then_some(0);
        plan.script = plan.write_script(dice);
        plan
    }

    /// How often this fault strikes where it can.
    pub(crate) fn rate(&self, fault: Fault) -> u32 {
        self.rates[fault as usize]
    }

    /// This fault is on.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.rate(fault) > 0
    }

    /// A hint is given once.
    pub(crate) fn hints_once(&self) -> bool {
        self.hint_for == HINTS_LAST
    }

    /// What becomes of an attempt.
    pub(crate) fn run(&self, tag: SubmissionTag, forever: bool) -> Run {
        let (high, low) = tag.job.0.as_u64_pair();
        let mut bits = Stream::new(self.seed ^ high ^ low.rotate_left(17) ^ u64::from(tag.attempt));
        let mut below = |n: u64| bits.bits() % n;
        Run {
            refused: below(25) == 0,
            queues: Duration::from_millis(if below(3) == 0 { below(4_000) } else { 0 }),
            length: match if below(3) == 0 { 0 } else { below(9_000) } {
                _ if forever => FOR_EVER,
                millis => Duration::from_millis(millis),
            },
            exit: if below(10) < 6 { 0 } else { 1 + i32::try_from(below(3)).unwrap_or(0) },
            vanishes: self.has(Fault::Vanishes) && below(8) == 0 && !forever,
        }
    }

    fn write_script(&self, dice: &mut Dice) -> Vec<(Duration, Action)> {
        let chaos = u64::try_from(self.chaos.as_millis()).unwrap_or(u64::MAX);
        let mut script = Vec::new();
        // Half of the runs post in one burst.
        let burst = dice.chance(500);
        for place in 0..self.jobs.len() {
            script.push((dice.millis(0, if burst { 200 } else { chaos / 2 }), Action::Post(place)));
        }
        let mut some = |dice: &mut Dice, most: u64, action: &mut dyn FnMut(&mut Dice) -> Action| {
            for _ in 0..dice.below(most + 1) {
                script.push((dice.millis(0, chaos), action(dice)));
            }
        };
        some(dice, 6, &mut |_| Action::Cancel);
        if self.hints_once() {
            for _ in 0..=dice.below(6) {
                // Cut off, a worker has a claim to make and a hint in hand for a while.
                let (at, long) = (dice.millis(0, chaos), dice.millis(200, 4_000));
                script.push((at, Action::Cut(Role::Worker, Link::Store, long)));
                let soon = dice.millis(0, 2_000);
                script.push((at + soon, Action::Kill(Role::Worker, long)));
            }
            script.sort_by_key(|(at, _)| *at);
            return script;
        }
        some(dice, 2, &mut |_| Action::Hold);
        some(dice, 2, &mut |_| Action::Release);
        some(dice, 4, &mut |_| Action::Retry);
        some(dice, 2, &mut |_| Action::Prioritise);
        some(dice, 1, &mut |_| Action::AddWorker);
        some(dice, 1, &mut |dice| Action::Drain(dice.millis(0, 8_000)));
        if dice.chance(200) {
            let cluster = usize::try_from(dice.below(self.modes.len() as u64)).unwrap_or(0);
            let at = dice.millis(0, chaos);
            script.push((at, Action::Set(cluster, Setting::Paused(true))));
            script.push((at + dice.millis(500, 8_000), Action::Set(cluster, Setting::Paused(false))));
        }
        self.write_faults(dice, &mut script);
        if dice.chance(200) {
            let cluster = usize::try_from(dice.below(self.modes.len() as u64)).unwrap_or(0);
            let (at, limit) = (dice.millis(0, chaos), u32::try_from(dice.below(4)).unwrap_or(0));
            script.push((at, Action::Set(cluster, Setting::Limit(Some(limit)))));
            script.push((at + dice.millis(500, 8_000), Action::Set(cluster, Setting::Limit(None))));
        }
        script.sort_by_key(|(at, _)| *at);
        script
    }

    fn write_faults(&self, dice: &mut Dice, script: &mut Vec<(Duration, Action)>) {
        let chaos = u64::try_from(self.chaos.as_millis()).unwrap_or(u64::MAX);
        let roles = [Role::Worker, Role::Worker, Role::Worker, Role::Api, Role::Recorder];
        for fault in Fault::ALL {
            let most = match self.rate(*fault) {
                0 => continue,
                rate if rate < 100 => 2,
                _ => 5,
            };
            for _ in 0..=dice.below(most) {
                let role = dice.pick(&roles);
                let (short, long) = (dice.millis(200, 5_000), dice.millis(3_000, 20_000));
                let cluster = usize::try_from(dice.below(self.modes.len() as u64)).unwrap_or(0);
                let action = match fault {
                    Fault::StoreAway => Action::StoreAway(dice.pick(&[short, long])),
                    Fault::BrokerAway => Action::BrokerAway(dice.pick(&[short, long])),
                    Fault::BrokerBlocked => Action::BrokerBlocked(dice.pick(&[short, long])),
                    Fault::Reconnect => Action::Reconnect(role),
                    Fault::Purge => Action::Purge(cluster),
                    Fault::ManagerAway => Action::ManagerAway(cluster, dice.pick(&[short, long])),
                    Fault::Kill => Action::Kill(role, dice.pick(&[short, long])),
                    Fault::Freeze => Action::Freeze(role, long),
                    Fault::CutFromStore => Action::Cut(role, Link::Store, dice.pick(&[short, long])),
                    Fault::CutFromBroker => Action::Cut(role, Link::Broker, dice.pick(&[short, long])),
                    Fault::CutFromManager => {
                        Action::Cut(Role::Worker, Link::Manager, dice.pick(&[short, long]))
                    }
                    // These strike calls, messages, submissions and clocks.
                    Fault::StoreCallLost
                    | Fault::UnknownCommit
                    | Fault::LateCommit
                    | Fault::PublishLost
                    | Fault::ConfirmLost
                    | Fault::HintDropped
                    | Fault::HintDoubled
                    | Fault::HintDelayed
                    | Fault::EventsDropped
                    | Fault::EventsDoubled
                    | Fault::EventsDelayed
                    | Fault::NudgeDropped
                    | Fault::ManagerCallLost
                    | Fault::ManagerReplyLost
                    | Fault::LateSubmit
                    | Fault::FalseAbsent
                    | Fault::ListingLag
                    | Fault::Forgets
                    | Fault::Vanishes
                    | Fault::Skew
                    | Fault::Poison => break,
                };
                script.push((dice.millis(0, chaos), action));
            }
        }
    }
}

/// The mode a flaw shows in.
fn forced(flaw: Flaw) -> Option<SubmitMode> {
    match flaw {
        Flaw::CreateStarts | Flaw::EveryRecordWins => Some(SubmitMode::TwoPhase),
        Flaw::NamesAreForgotten | Flaw::CancelsAtOnce => Some(SubmitMode::UniqueName),
        Flaw::ClaimsIgnoreOwners => Some(SubmitMode::AtMostOnce),
        Flaw::None
        | Flaw::EventsReplaceEnds
        | Flaw::HintsAreLost
        | Flaw::EndsAreNotTold
        | Flaw::NothingIsHeld => None,
    }
}

/// What a flaw needs to show.
fn demanded(flaw: Flaw) -> &'static [Fault] {
    match flaw {
        // A record that commits when its worker is long taken for dead, and the adopter has made another.
        Flaw::EveryRecordWins => &[Fault::LateCommit, Fault::Kill, Fault::Freeze, Fault::CutFromStore],
        Flaw::None
        | Flaw::EventsReplaceEnds
        | Flaw::ClaimsIgnoreOwners
        | Flaw::CancelsAtOnce
        | Flaw::CreateStarts
        | Flaw::NamesAreForgotten
        | Flaw::HintsAreLost
        | Flaw::EndsAreNotTold
        | Flaw::NothingIsHeld => &[],
    }
}

fn wish(dice: &mut Dice, clusters: usize) -> Wish {
    let forever = dice.chance(60);
    Wish {
        cluster: usize::try_from(dice.below(clusters as u64)).unwrap_or(0),
        hold: dice.chance(80),
        priority: dice.pick(&[0, 0, 0, 50, -50]),
        max_attempts: dice.pick(&[1, 1, 2, 3]),
        retry_lost: dice.chance(300),
        time_limit: dice.chance(150).then(|| 1 + dice.below(4)).filter(|_| !forever),
        delay: if dice.chance(100) { dice.millis(500, 8_000) } else { Duration::ZERO },
        forever,
    }
}
