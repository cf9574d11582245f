//! What watchers tell: events of any attempt, in any order, once or again.

use super::{
    pair::Pair,
    working::{Claim, Remembered, SUBMISSIONS},
};
use anyhow::Result;
use jobgate_shared::domain::{Ending, JobState, Observation, StatusEvent, WorkerId};
use proptest::{collection::vec, option, prelude::*, sample::select};

const ENDINGS: &[Ending] =
    &[Ending::Finished, Ending::Failed, Ending::Canceled, Ending::TimedOut, Ending::Lost];

/// Events applied in one call.
#[derive(Debug, Clone)]
pub(super) struct Telling(Vec<Report>);

#[derive(Debug, Clone)]
pub(super) enum Report {
    New {
        of: Claim,
        seq: u32,
        about: About,
        seen: Seen,
        at: i64,
    },
    /// One told before.
    Again(u8),
}

/// Which submission an event names.
#[derive(Debug, Clone, Copy)]
pub(super) enum About {
    Recorded,
    Other(&'static str),
    None,
}

/// An observation; times are seconds from when it is told.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    Waits {
        reason: Option<&'static str>,
    },
    Runs {
        since: Option<i64>,
        reason: Option<&'static str>,
    },
    Ended {
        ending: Ending,
        exit_code: Option<i32>,
        reason: Option<&'static str>,
        began: Option<i64>,
        at: Option<i64>,
    },
}

/// Two clocks meet in what managers tell.
fn moment() -> impl Strategy<Value = Option<i64>> {
    option::weighted(0.4, select(&[-7_200, -5, 0, 5][..]))
}

impl Seen {
    fn any() -> impl Strategy<Value = Self> {
        let reason = || option::weighted(0.5, select(&["priority", "no room; ä"][..]));
        let end = (select(ENDINGS), option::of(-1..3), reason(), moment(), moment());
        prop_oneof![
            2 => reason().prop_map(|reason| Self::Waits { reason }),
            4 => (moment(), reason()).prop_map(|(since, reason)| Self::Runs { since, reason }),
            4 => end.prop_map(|(ending, exit_code, reason, began, at)| Self::Ended {
                ending, exit_code, reason, began, at
            }),
        ]
    }

    fn observation(&self, pair: &Pair<'_>) -> Observation {
        let when = |seconds: Option<i64>| seconds.map(|seconds| pair.at(seconds));
        let why = |reason: Option<&str>| reason.map(str::to_owned);
        match self {
            Self::Waits { reason } => Observation::Pending { reason: why(*reason) },
            Self::Runs { since, reason } => {
                Observation::Running { since: when(*since), reason: why(*reason) }
            }
            Self::Ended { ending, exit_code, reason, began, at } => Observation::Ended {
                ending: *ending,
                exit_code: *exit_code,
                reason: why(*reason),
                began: when(*began),
                at: when(*at),
            },
        }
    }
}

impl Report {
    fn any() -> impl Strategy<Value = Self> {
        let about = prop_oneof![
            12 => Just(About::Recorded),
            1 => select(SUBMISSIONS).prop_map(About::Other),
            2 => Just(About::None),
        ];
        let new = (Claim::any(), 0..5_u32, about, Seen::any(), select(&[-60, 0, 0, 60][..]));
        prop_oneof![
            6 => new.prop_map(|(of, seq, about, seen, at)| Self::New { of, seq, about, seen, at }),
            1 => any::<u8>().prop_map(Self::Again),
        ]
    }

    async fn event(&self, pair: &Pair<'_>) -> Result<Option<StatusEvent>> {
        Ok(match self {
            Self::New { of, seq, about, seen, at } => {
                let likely: &[JobState] = match about {
                    About::Recorded | About::Other(_) => &[JobState::Pending, JobState::Running],
                    About::None => &[JobState::Claimed],
                };
                let Remembered { job, attempt, epoch, owner, submission } = of.remember(pair, likely).await?;
                let submission = match about {
                    About::Recorded => submission,
                    About::Other(id) => Some((*id).to_owned()),
                    About::None => None,
                };
                Some(StatusEvent {
                    job,
                    attempt,
                    epoch,
                    seq: *seq,
                    by: owner.unwrap_or(WorkerId::NOBODY),
                    submission,
                    observation: seen.observation(pair),
                    at: pair.at(*at),
                })
            }
            Self::Again(nth) => pair.told.get(usize::from(*nth) % pair.told.len().max(1)).cloned(),
        })
    }
}

impl Telling {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        vec(Report::any(), 0..7).prop_map(Self)
    }

    pub(super) async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        let mut events = Vec::new();
        for report in &self.0 {
            events.extend(report.event(pair).await?);
        }
        pair.both(async |store| store.apply(&events).await).await?;
        pair.told.extend(events);
        Ok(())
    }
}
