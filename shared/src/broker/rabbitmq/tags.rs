//! Which delivery tags of one channel are out, and which acknowledgements settle them: decides, never writes.
//!
//! The broker closes a channel that acknowledges a tag twice, and a "multiple" acknowledgement settles every lower tag,
//! whether its message was looked at or not. So each tag is settled once, and one that is still on its way to the dead
//! letters is never settled with others.

use std::collections::BTreeSet;

/// The broker's number of a delivery on its channel.
pub(super) type Tag = u64;

/// An acknowledgement to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: Tag,
    pub(super) multiple: bool,
}

/// The tags of one channel, from the moment they are handed out.
#[derive(Debug, Default)]
pub(super) struct Tags {
    out: BTreeSet<Tag>,
    /// On their way to the dead letters.
    parked: BTreeSet<Tag>,
}

impl Tags {
    /// Messages that are with us, parked ones included.
    pub(super) fn len(&self) -> usize {
        self.out.len() + self.parked.len()
    }

    pub(super) fn hand_out(&mut self, tag: Tag) {
        self.out.insert(tag);
    }

    /// Whether the tag is to be settled by itself now; it counts as settled from here on. Parked ones are not.
    pub(super) fn settle(&mut self, tag: Tag) -> bool {
        self.out.remove(&tag)
    }

    /// Whether the parked tag is to be settled now; it counts as settled from here on.
    pub(super) fn unpark(&mut self, tag: Tag) -> bool {
        self.parked.remove(&tag)
    }

    /// Keeps the tag until its message is among the dead letters; false if it is settled already.
    pub(super) fn park(&mut self, tag: Tag) -> bool {
        self.out.remove(&tag) && self.parked.insert(tag)
    }

    /// The acknowledgements that settle the tag and every lower one that was handed out.
    pub(super) fn settle_through(&mut self, tag: Tag) -> Vec<Ack> {
        if !self.out.contains(&tag) {
            return Vec::new();
        }
        let later = self.out.split_off(&(tag + 1));
        let settled = std::mem::replace(&mut self.out, later);
        // "Multiple" only as far as nothing parked is below it.
        let reach = self.parked.first().copied().unwrap_or(Tag::MAX);
        let together = settled.range(..reach).next_back().map(|tag| Ack { tag: *tag, multiple: true });
        let alone = settled.range(reach..).map(|tag| Ack { tag: *tag, multiple: false });
        together.into_iter().chain(alone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_parked_message_is_not_settled_with_those_above_it() {
        let mut tags = Tags::default();
        for tag in 1..=5 {
            tags.hand_out(tag);
        }
        assert!(tags.park(3));
        let acks = tags.settle_through(5);
        let (multiple, single) = (|tag| Ack { tag, multiple: true }, |tag| Ack { tag, multiple: false });
        assert_eq!(acks, [multiple(2), single(4), single(5)]);
        assert_eq!(tags.len(), 1);
        assert!(!tags.settle(3) && tags.unpark(3) && !tags.unpark(3));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Deliver,
        Settle(u64),
        Through(u64),
        Park(u64),
        Unpark(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Deliver),
            1 => (1..20_u64).prop_map(Step::Settle),
            1 => (1..20_u64).prop_map(Step::Through),
            1 => (1..20_u64).prop_map(Step::Park),
            1 => (1..20_u64).prop_map(Step::Unpark),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// The broker's view: what it has not been told about yet.
        #[test]
        fn the_broker_never_hears_of_a_tag_it_does_not_wait_for(steps in steps()) {
            let (mut tags, mut unacked, mut parked, mut last) =
                (Tags::default(), BTreeSet::new(), BTreeSet::new(), 0);
            for step in steps {
                match step {
                    Step::Deliver => {
                        last += 1;
                        unacked.insert(last);
                        tags.hand_out(last);
                    }
                    Step::Settle(tag) => {
                        if tags.settle(tag) {
                            prop_assert!(unacked.remove(&tag), "{tag} is unknown to the broker");
                            prop_assert!(!parked.contains(&tag), "{tag} is parked");
                        }
                    }
                    Step::Unpark(tag) => {
                        if tags.unpark(tag) {
                            prop_assert!(unacked.remove(&tag), "{tag} is unknown to the broker");
                            prop_assert!(parked.remove(&tag), "{tag} is not parked");
                        }
                    }
                    Step::Park(tag) => {
                        if tags.park(tag) {
                            prop_assert!(unacked.contains(&tag));
                            parked.insert(tag);
                        }
                    }
                    Step::Through(tag) => {
                        let expected: BTreeSet<_> = if unacked.contains(&tag) && !parked.contains(&tag) {
                            unacked.iter().filter(|t| **t > tag || parked.contains(*t)).copied().collect()
                        } else {
                            unacked.clone()
                        };
                        for ack in tags.settle_through(tag) {
                            prop_assert!(unacked.contains(&ack.tag), "{ack:?} is unknown to the broker");
                            unacked.retain(|t| *t != ack.tag && !(ack.multiple && *t < ack.tag));
                        }
                        prop_assert_eq!(&unacked, &expected);
                    }
                }
                prop_assert_eq!(tags.len(), unacked.len());
            }
        }
    }
}
