//! Which of the messages in flight arrived: decides, never waits or writes.
//!
//! The broker returns an unroutable message before it confirms it, in the order of publishing. The client library hands
//! each return to *whichever* confirm it completes next, and completes the confirms of one "multiple" ack in no order.
//! So a confirm says nothing about routing by itself. What does hold, because returns wait in one queue and every
//! completion takes one if there is any:
//!
//! * A confirm that came without a return was completed when no return waited: its own message's return, if there is
//!   one, is with a confirm completed earlier.
//! * Once nothing is in flight, no return waits.
//!
//! Completions are fed in rounds; a round holds everything completed before its last completion (the caller polls until
//! nothing more is ready). So a message whose confirm brought no return is judged at the end of its round, and one whose
//! confirm brought another message's return waits for a later confirm without one, or for the end.

use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// The place of a message among those published on one channel.
pub(super) type Seq = u64;

/// How one confirm was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// The broker took responsibility; with it came the return of this message, if any.
    Ack(Option<Uuid>),
    /// The broker did not take it; with it came the return of this message, if any.
    Nack(Option<Uuid>),
    /// The channel ended before.
    Lost,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// In a queue.
    Routed,
    /// Returned: there is no such queue.
    Unroutable,
    /// The broker said no.
    Refused,
    /// Nobody knows.
    Unknown,
}

#[derive(Debug)]
struct Message<W> {
    id: Uuid,
    waiter: W,
}

/// Messages published on one channel and not judged yet. `W` waits for the verdict.
#[derive(Debug)]
pub(super) struct Verdicts<W> {
    messages: BTreeMap<Seq, Message<W>>,
    /// Of those, published and not confirmed.
    in_flight: usize,
    /// Confirmed, by confirms that brought returns of other messages.
    held: Vec<Seq>,
    /// Returned, and not judged yet.
    returned: HashSet<Uuid>,
}

impl<W> Verdicts<W> {
    pub(super) fn new() -> Self {
        Self { messages: BTreeMap::new(), in_flight: 0, held: Vec::new(), returned: HashSet::new() }
    }

    /// A message is on its way.
    pub(super) fn sent(&mut self, seq: Seq, id: Uuid, waiter: W) {
        self.in_flight += 1;
        self.messages.insert(seq, Message { id, waiter });
    }

    /// Whether the message is not judged yet.
    pub(super) fn awaits(&self, seq: Seq) -> bool {
        self.messages.contains_key(&seq)
    }

    /// Those who wait for messages up to `seq`.
    pub(super) fn waiters_through(&mut self, seq: Seq) -> impl Iterator<Item = &mut W> {
        self.messages.range_mut(..=seq).map(|(_, message)| &mut message.waiter)
    }

    /// Takes in everything completed since the last round and tells what can be told now.
    pub(super) fn round(
        &mut self,
        completions: impl IntoIterator<Item = (Seq, Completion)>,
    ) -> Vec<(W, Verdict)> {
        let (mut judged, mut clear, mut ambiguous) = (Vec::new(), Vec::new(), Vec::new());
        let (mut none_waits, mut lost) = (false, false);
        for (seq, completion) in completions {
            self.in_flight -= 1;
            match completion {
                Completion::Ack(None) => {
                    none_waits = true;
                    clear.push(seq);
                }
                Completion::Ack(Some(returned)) => {
                    self.returned.insert(returned);
                    ambiguous.push(seq);
                }
                // Refused whether or not it could have been routed: nothing more to learn about it.
                Completion::Nack(returned) => {
                    self.returned.extend(returned);
                    judged.extend(self.judge(seq, Verdict::Refused));
                }
                Completion::Lost => {
                    lost = true;
                    judged.extend(self.judge(seq, Verdict::Unknown));
                }
            }
        }
        for seq in clear {
            judged.extend(self.judge(seq, Verdict::Routed));
        }
        // A confirm without a return in this round is later than every confirm of an earlier round.
        for seq in std::mem::take(&mut self.held) {
            judged.extend(self.judge_or_hold(seq, none_waits, lost));
        }
        for seq in ambiguous {
            judged.extend(self.judge_or_hold(seq, false, lost));
        }
        judged
    }

    fn judge_or_hold(&mut self, seq: Seq, none_waits: bool, lost: bool) -> Option<(W, Verdict)> {
        let returned = self.messages.get(&seq).is_some_and(|message| self.returned.contains(&message.id));
        if returned || none_waits {
            self.judge(seq, Verdict::Routed)
        } else if lost {
            // The channel's end took the returns that still waited with it.
            self.judge(seq, Verdict::Unknown)
        } else if self.in_flight == 0 {
            self.judge(seq, Verdict::Routed)
        } else {
            self.held.push(seq);
            None
        }
    }

    /// Forgets the message; a return of it overrules `Routed`.
    fn judge(&mut self, seq: Seq, verdict: Verdict) -> Option<(W, Verdict)> {
        let message = self.messages.remove(&seq)?;
        let returned = self.returned.remove(&message.id);
        let verdict = if returned && verdict == Verdict::Routed { Verdict::Unroutable } else { verdict };
        Some((message.waiter, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    fn id(seq: Seq) -> Uuid {
        Uuid::from_u128(u128::from(seq))
    }

    #[test]
    fn a_return_on_another_messages_confirm_is_not_that_messages() {
        let mut verdicts = Verdicts::new();
        for seq in 1..=2 {
            verdicts.sent(seq, id(seq), seq);
        }
        // 2 was returned; one ack for both completed 1 first.
        let judged = verdicts.round([(1, Completion::Ack(Some(id(2)))), (2, Completion::Ack(None))]);
        assert_eq!(judged, [(2, Verdict::Unroutable), (1, Verdict::Routed)]);
    }

    #[test]
    fn what_was_confirmed_with_anothers_return_waits_for_its_own() {
        let mut verdicts = Verdicts::new();
        for seq in 1..=3 {
            verdicts.sent(seq, id(seq), seq);
        }
        // 1 and 2 were returned, 2 confirmed first: it carries 1's return, and its own still waits.
        assert_eq!(verdicts.round([(2, Completion::Ack(Some(id(1))))]), []);
        let judged = verdicts.round([(1, Completion::Ack(Some(id(2))))]);
        assert_eq!(judged, [(2, Verdict::Unroutable), (1, Verdict::Unroutable)]);
        assert_eq!(verdicts.round([(3, Completion::Ack(None))]), [(3, Verdict::Routed)]);
    }

    #[test]
    fn a_lost_channel_leaves_nobody_waiting() {
        let mut verdicts = Verdicts::new();
        for seq in 1..=3 {
            verdicts.sent(seq, id(seq), seq);
        }
        assert_eq!(verdicts.round([(2, Completion::Ack(Some(id(1))))]), []);
        let mut judged = verdicts.round([(1, Completion::Lost), (3, Completion::Lost)]);
        judged.sort_by_key(|(seq, _)| *seq);
        assert_eq!(judged, [(1, Verdict::Unknown), (2, Verdict::Unknown), (3, Verdict::Unknown)]);
        assert!(verdicts.messages.is_empty() && verdicts.held.is_empty());
    }

    /// One message as the model broker treats it.
    #[derive(Debug, Clone)]
    struct Fate {
        unroutable: bool,
        nacked: bool,
        /// Decides its place among the confirms, and among those completed by one frame.
        order: u16,
        /// How many of the confirms before it have been completed when the publisher publishes it.
        behind: u8,
        /// Whether the publisher looks right after this confirm was completed.
        looked_at: bool,
    }

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let fate = (any::<bool>(), prop::bool::weighted(0.1), any::<u16>(), 0..4_u8, any::<bool>());
        let fate = fate.prop_map(|(unroutable, nacked, order, behind, looked_at)| Fate {
            unroutable,
            nacked,
            order,
            behind,
            looked_at,
        });
        prop::collection::vec(fate, 1..40)
    }

    proptest! {
        /// The library's queue of returns, played against every order of confirms the broker may choose.
        #[test]
        fn every_message_gets_its_own_verdict(fates in fates()) {
            let mut verdicts = Verdicts::new();
            let mut returns: VecDeque<Uuid> = VecDeque::new();
            let mut unconfirmed: Vec<Seq> = Vec::new();
            let mut completed: Vec<(Seq, Completion)> = Vec::new();
            let mut judged: HashMap<Seq, Verdict> = HashMap::new();
            let fate = |seq: Seq| &fates[usize::try_from(seq).unwrap()];

            for seq in 0..fates.len() as Seq {
                verdicts.sent(seq, id(seq), seq);
                if fate(seq).unroutable {
                    returns.push_back(id(seq));
                }
                unconfirmed.push(seq);
                unconfirmed.sort_by_key(|seq| fate(*seq).order);
                let last = seq + 1 == fates.len() as Seq;
                let confirms = if last { unconfirmed.len() } else { usize::from(fate(seq).behind) };
                for seq in unconfirmed.drain(..confirms.min(unconfirmed.len())).collect::<Vec<_>>() {
                    let with = returns.pop_front();
                    let nacked = fate(seq).nacked;
                    completed.push((seq, if nacked { Completion::Nack(with) } else { Completion::Ack(with) }));
                    if fate(seq).looked_at {
                        // In any order: the futures are woken, not asked in turn.
                        completed.sort_by_key(|(seq, _)| fate(*seq).order.reverse_bits());
                        judged.extend(verdicts.round(completed.drain(..)));
                    }
                }
            }
            judged.extend(verdicts.round(completed));
            for seq in 0..fates.len() as Seq {
                let Fate { unroutable, nacked, .. } = *fate(seq);
                let expected = match (nacked, unroutable) {
                    (true, _) => Verdict::Refused,
                    (false, true) => Verdict::Unroutable,
                    (false, false) => Verdict::Routed,
                };
                prop_assert_eq!(judged.get(&seq), Some(&expected), "{}", seq);
            }
            prop_assert!(verdicts.messages.is_empty());
            prop_assert!(verdicts.in_flight == 0);
        }
    }
}
