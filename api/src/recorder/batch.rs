//! What a batch of status events needs told, and what becomes of its messages.
//!
//! Sans-IO: no I/O, no clock, deterministic. [`conflate`] leaves out events that change nothing once those after them
//! are applied. [`Batch`] says what to apply next and, told how that went, halves what is refused until only the events
//! that are refused alone are left: their messages are dead letters, everything else is applied.

use jobgate_shared::domain::{Ending, JobId, Observation, StatusEvent};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// How often a lone refused event is tried. Nothing beside it succeeds, so it may be the store that is ill.
const LONE_TRIES: u32 = 5;

/// How an apply went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All of it is committed.
    Applied,
    /// Outcome unknown.
    Away,
    /// It never will be, and why.
    Refused(String),
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Todo<'a> {
    /// Apply these.
    Apply(&'a [StatusEvent]),
    /// Wait before [`Batch::rested`]: something is away, or ill.
    Rest,
    /// Reject these messages (by index) for these reasons, acknowledge all others.
    Settle(&'a BTreeMap<usize, String>),
}

/// Messages taken together.
#[derive(Debug, Clone)]
pub struct Batch {
    events: Vec<StatusEvent>,
    /// Which message each came in.
    message: Vec<usize>,
    merged: usize,
    /// Still to be applied, the next one last.
    todo: Vec<Range<usize>>,
    /// Refused alone, and why.
    refused: BTreeMap<usize, String>,
    applied: bool,
    tries: u32,
    resting: bool,
    rejected: BTreeMap<usize, String>,
}

impl Batch {
    /// The events of these messages, in order, less those that later ones make superfluous.
    pub fn new(messages: Vec<Vec<StatusEvent>>) -> Self {
        let all: usize = messages.iter().map(Vec::len).sum();
        let (message, events): (Vec<_>, Vec<_>) = conflate(messages).into_iter().unzip();
        let mut batch = Self {
            merged: all - events.len(),
            events,
            message,
            todo: Vec::new(),
            refused: BTreeMap::new(),
            applied: false,
            tries: 0,
            resting: false,
            rejected: BTreeMap::new(),
        };
        batch.begin();
        batch
    }

    /// Events left out.
    pub fn merged(&self) -> usize {
        self.merged
    }

    /// What to do next.
    pub fn todo(&self) -> Todo<'_> {
        match self.todo.last() {
            Some(_) if self.resting => Todo::Rest,
            Some(range) => Todo::Apply(&self.events[range.clone()]),
            None => Todo::Settle(&self.rejected),
        }
    }

    /// The rest is over.
    pub fn rested(&mut self) {
        self.resting = false;
    }

    /// Takes the answer to what [`Self::todo`] said to apply.
    pub fn step(&mut self, answer: Answer) {
        let Some(range) = self.todo.pop() else { return };
        match answer {
            Answer::Applied => self.applied = true,
            Answer::Away => {
                self.resting = true;
                self.todo.push(range);
            }
            Answer::Refused(why) if range.len() == 1 => {
                self.refused.insert(range.start, why);
            }
            Answer::Refused(_) => {
                let middle = range.start + range.len() / 2;
                self.todo.push(middle..range.end);
                self.todo.push(range.start..middle);
            }
        }
        if self.todo.is_empty() {
            self.judge();
        }
    }

    fn begin(&mut self) {
        if !self.events.is_empty() {
            self.todo.push(0..self.events.len());
        }
    }

    /// Refused while others passed: the event is to blame. Refused like all others: the store is, so far.
    fn judge(&mut self) {
        self.tries += 1;
        let alone = self.events.len() == 1 && self.tries >= LONE_TRIES;
        if self.refused.is_empty() || self.applied || alone {
            let refused = std::mem::take(&mut self.refused);
            self.rejected = refused.into_iter().map(|(event, why)| (self.message[event], why)).collect();
        } else {
            self.refused.clear();
            self.resting = true;
            self.begin();
        }
    }
}

/// The events of these messages, each with its message, less those the outcome of which a later one contains. The order
/// of one job's events stays.
fn conflate(messages: Vec<Vec<StatusEvent>>) -> Vec<(usize, StatusEvent)> {
    let mut kept: Vec<(usize, StatusEvent)> = Vec::new();
    let mut last: HashMap<JobId, usize> = HashMap::new();
    let events =
        messages.into_iter().enumerate().flat_map(|(m, events)| events.into_iter().map(move |e| (m, e)));
    for (message, event) in events {
        if let Some(before) = last.get(&event.job).and_then(|at| kept.get_mut(*at)) {
            match merge(&before.1, &event) {
                Merge::Both => {}
                Merge::First => continue,
                Merge::Second(event) => {
                    *before = (message, *event);
                    continue;
                }
            }
        }
        last.insert(event.job, kept.len());
        kept.push((message, event));
    }
    kept
}

/// Which of two consecutive events of a job are needed.
enum Merge {
    Both,
    First,
    Second(Box<StatusEvent>),
}

fn merge(first: &StatusEvent, second: &StatusEvent) -> Merge {
    let told_by = |event: &StatusEvent| (event.attempt, event.epoch, event.by);
    if told_by(first) != told_by(second) || first.submission != second.submission || first.seq >= second.seq {
        return Merge::Both;
    }
    match (&first.observation, &second.observation) {
        (Observation::Pending { .. }, Observation::Pending { .. } | Observation::Running { .. }) => {
            Merge::Second(Box::new(second.clone()))
        }
        // A `LOST` may be refused where the report before it is not.
        (Observation::Pending { .. }, Observation::Ended { ending, .. }) if *ending != Ending::Lost => {
            Merge::Second(Box::new(second.clone()))
        }
        (Observation::Running { since, .. }, Observation::Running { reason, .. }) => {
            let observation =
                Observation::Running { since: Some(since.unwrap_or(first.at)), reason: reason.clone() };
            Merge::Second(Box::new(StatusEvent { observation, ..second.clone() }))
        }
        // The same end told again until the row agrees.
        (Observation::Ended { .. }, Observation::Ended { .. }) if first.observation == second.observation => {
            Merge::First
        }
        // That it ran before it ended belongs to its history.
        (Observation::Running { .. }, Observation::Ended { .. })
        | (Observation::Pending { .. } | Observation::Ended { .. }, Observation::Ended { .. })
        | (Observation::Running { .. } | Observation::Ended { .. }, Observation::Pending { .. })
        | (Observation::Ended { .. }, Observation::Running { .. }) => Merge::Both,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, Utc};
    use jobgate_shared::domain::{
        Fact, JobState, Life, Outcome, RetryPolicy, Submission, WorkerId, transition,
    };
    use proptest::prelude::*;
    use std::time::Duration;
    use uuid::Uuid;

    fn job(n: u8) -> JobId {
        JobId(Uuid::from_u128(n.into()))
    }

    fn at(seconds: u32) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::from_secs(seconds.into())
    }

    fn event(n: u8, seq: u32, observation: Observation) -> StatusEvent {
        StatusEvent {
            job: job(n),
            attempt: 1,
            epoch: 1,
            seq,
            by: WorkerId(Uuid::from_u128(9)),
            submission: Some("7".to_owned()),
            observation,
            at: at(100 + seq),
        }
    }

    fn running(reason: Option<&str>) -> Observation {
        Observation::Running { since: None, reason: reason.map(str::to_owned) }
    }

    fn pending() -> Observation {
        Observation::Pending { reason: None }
    }

    fn ended(ending: Ending) -> Observation {
        Observation::Ended { ending, exit_code: Some(0), reason: None, began: None, at: None }
    }

    /// Applies as a store would that cannot bear events of these jobs; answers what became of each message.
    fn apply_all(messages: Vec<Vec<StatusEvent>>, unbearable: &[u8]) -> (Vec<StatusEvent>, Vec<usize>) {
        let mut batch = Batch::new(messages);
        let mut applied = Vec::new();
        for _ in 0..100_000 {
            let answer = match batch.todo() {
                Todo::Settle(rejected) => return (applied, rejected.keys().copied().collect()),
                Todo::Rest => {
                    batch.rested();
                    continue;
                }
                Todo::Apply(events) => {
                    if events.iter().any(|e| unbearable.iter().any(|n| e.job == job(*n))) {
                        Answer::Refused("unbearable".to_owned())
                    } else {
                        applied.extend_from_slice(events);
                        Answer::Applied
                    }
                }
            };
            batch.step(answer);
        }
        panic!("it never settles");
    }

    #[test]
    fn what_a_later_event_contains_is_left_out() {
        let messages = vec![
            vec![event(1, 1, pending()), event(2, 1, pending()), event(1, 2, running(None))],
            vec![event(1, 3, running(Some("requeued"))), event(1, 4, ended(Ending::Finished))],
            vec![event(1, 5, ended(Ending::Finished)), event(2, 2, ended(Ending::Failed))],
        ];
        let kept: Vec<(usize, u128, u32)> = conflate(messages.clone())
            .iter()
            .map(|(message, e)| (*message, e.job.0.as_u128(), e.seq))
            .collect();
        assert_eq!(kept, [(1, 1, 3), (2, 2, 2), (1, 1, 4)]);
        assert_eq!(Batch::new(messages.clone()).merged(), 4);
        let first_seen = Observation::Running { since: Some(at(102)), reason: Some("requeued".to_owned()) };
        assert_eq!(conflate(messages)[0].1.observation, first_seen);
    }

    #[test]
    fn events_of_another_claim_attempt_or_submission_are_never_merged() {
        let first = event(1, 1, pending());
        let second = event(1, 2, running(None));
        for other in [
            StatusEvent { epoch: 2, ..second.clone() },
            StatusEvent { attempt: 2, ..second.clone() },
            StatusEvent { submission: Some("8".to_owned()), ..second.clone() },
            StatusEvent { by: WorkerId(Uuid::from_u128(8)), ..second.clone() },
            StatusEvent { seq: 1, ..second.clone() },
        ] {
            assert_eq!(conflate(vec![vec![first.clone(), other]]).len(), 2);
        }
        assert_eq!(conflate(vec![vec![first, second]]).len(), 1);
    }

    #[test]
    fn a_report_before_an_end_that_only_the_owner_may_tell_is_kept() {
        let kept = |ending| conflate(vec![vec![event(1, 1, pending()), event(1, 2, ended(ending))]]).len();
        assert_eq!((kept(Ending::Finished), kept(Ending::Lost)), (1, 2));
    }

    #[test]
    fn a_poisonous_event_is_found_and_everything_else_is_applied() {
        let messages: Vec<Vec<StatusEvent>> =
            (0..10).map(|m| (0..10).map(|n| event(m * 10 + n, 1, running(None))).collect()).collect();
        let (mut applied, rejected) = apply_all(messages, &[37, 38, 99]);
        applied.sort_by_key(|e| e.job);
        applied.dedup();
        assert_eq!((applied.len(), rejected), (97, vec![3, 9]));
    }

    #[test]
    fn a_store_that_refuses_everything_is_not_believed() {
        let mut batch = Batch::new(vec![vec![event(1, 1, pending()), event(2, 1, pending())]]);
        let mut rests = 0;
        while rests < 50 {
            match batch.todo() {
                Todo::Apply(_) => batch.step(Answer::Refused("no such table".to_owned())),
                Todo::Rest => {
                    rests += 1;
                    batch.rested();
                }
                Todo::Settle(_) => panic!("it was believed"),
            }
        }
    }

    #[test]
    fn an_event_that_is_refused_with_nothing_beside_it_is_tried_a_few_times() {
        let mut batch = Batch::new(vec![vec![event(1, 1, pending())]]);
        let mut tries = 0;
        let rejected = loop {
            match batch.todo() {
                Todo::Apply(_) => {
                    tries += 1;
                    batch.step(Answer::Refused("unbearable".to_owned()));
                }
                Todo::Rest => batch.rested(),
                Todo::Settle(rejected) => break rejected.clone(),
            }
        };
        assert_eq!((tries, rejected), (LONE_TRIES, BTreeMap::from([(0, "unbearable".to_owned())])));
    }

    #[test]
    fn while_the_store_is_away_nothing_is_settled() {
        let mut batch = Batch::new(vec![vec![event(1, 1, pending())]]);
        for _ in 0..100 {
            assert!(matches!(batch.todo(), Todo::Apply(_)));
            batch.step(Answer::Away);
            assert_eq!(batch.todo(), Todo::Rest);
            batch.rested();
        }
        batch.step(Answer::Applied);
        assert_eq!(batch.todo(), Todo::Settle(&BTreeMap::new()));
    }

    #[test]
    fn a_batch_of_nothing_is_settled_at_once() {
        assert_eq!(Batch::new(vec![Vec::new()]).todo(), Todo::Settle(&BTreeMap::new()));
    }

    fn observation() -> impl Strategy<Value = Observation> {
        let reason = proptest::option::of("[ab]");
        let time = || proptest::option::of((0..300_u32).prop_map(at));
        let ending = prop_oneof![
            Just(Ending::Finished),
            Just(Ending::Failed),
            Just(Ending::Canceled),
            Just(Ending::Lost)
        ];
        prop_oneof![
            3 => reason.clone().prop_map(|reason| Observation::Pending { reason }),
            3 => (time(), reason.clone()).prop_map(|(since, reason)| Observation::Running { since, reason }),
            1 => (ending, reason, time(), time()).prop_map(|(ending, reason, began, at)| {
                Observation::Ended { ending, exit_code: None, reason, began, at }
            }),
        ]
    }

    /// A life, as far as conflation may not touch it. An event that agrees with the row leaves no trace in it, so a late
    /// report of another claim can still change the words of a state that goes on, and whether one agreed depends on what
    /// was left out before it.
    fn seen(life: &Life) -> Life {
        let reason = life.reason.clone().filter(|_| life.state.is_terminal());
        Life { last_event: (0, 0), reason, ..life.clone() }
    }

    fn fold(mut life: Life, max_attempts: u32, events: &[StatusEvent]) -> Life {
        for event in events {
            let outcome =
                transition(&life, max_attempts, &RetryPolicy::default(), &Fact::Event(event), at(500));
            match outcome {
                Outcome::Advanced { life: next, .. } => life = *next,
                Outcome::Duplicate | Outcome::Stale | Outcome::Refused(_) => {}
            }
        }
        life
    }

    proptest! {
        /// Whatever one watcher, its zombie and its heir tell in whatever order: leaving out what conflation leaves out
        /// changes nothing anybody can see.
        #[test]
        fn conflation_changes_no_outcome(
            told in proptest::collection::vec((1..3_u32, 0..6_u32, observation(), 0..4_usize), 0..12),
            state in prop_oneof![Just(JobState::Claimed), Just(JobState::Pending), Just(JobState::Running)],
            row_epoch in 1..3_u32,
            max_attempts in 1..3_u32,
            began in 0..300_u32,
        ) {
            let submission = Submission { id: "7".to_owned(), detail: serde_json::Value::Null, reach: None };
            let recorded = state != JobState::Claimed;
            let life = Life {
                state,
                epoch: row_epoch,
                owner: Some(WorkerId(Uuid::from_u128(9))),
                submission: recorded.then_some(submission),
                submitted_at: recorded.then_some(at(50)),
                started_at: (state == JobState::Running).then_some(at(began)),
                ..Life::begin(false, at(0))
            };
            let mut messages = vec![Vec::new(); 4];
            // Epoch and number name one event: the same again is the same event, delivered again.
            let mut named: HashMap<(u32, u32), Observation> = HashMap::new();
            for (epoch, seq, observation, message) in told {
                let observation = named.entry((epoch, seq)).or_insert(observation).clone();
                let by = WorkerId(Uuid::from_u128(epoch.into()));
                messages[message].push(StatusEvent { epoch, by, ..event(1, seq, observation) });
            }
            let all: Vec<StatusEvent> = messages.iter().flatten().cloned().collect();
            let kept: Vec<StatusEvent> = conflate(messages).into_iter().map(|(_, e)| e).collect();
            prop_assert!(kept.len() <= all.len());
            prop_assert_eq!(seen(&fold(life.clone(), max_attempts, &all)), seen(&fold(life, max_attempts, &kept)));
        }

        #[test]
        fn only_poisonous_events_are_rejected(
            jobs in proptest::collection::vec(0..40_u8, 1..60),
            unbearable in proptest::collection::vec(0..40_u8, 0..8),
        ) {
            let bearable = jobs.iter().filter(|n| !unbearable.contains(n)).count();
            prop_assume!(bearable > 0);
            let messages: Vec<Vec<StatusEvent>> =
                jobs.iter().map(|n| vec![event(*n, 1, ended(Ending::Finished))]).collect();
            let (applied, rejected) = apply_all(messages, &unbearable);
            for message in &rejected {
                prop_assert!(unbearable.contains(&jobs[*message]));
            }
            for n in jobs.iter().filter(|n| !unbearable.contains(n)) {
                prop_assert!(applied.iter().any(|e| e.job == job(*n)));
            }
        }
    }
}
