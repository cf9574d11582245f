//! How many hints this process may still publish without asking the store: what acceptance and the dispatcher share.
//!
//! The dispatcher sets the room of each cluster from what the store counts; acceptance takes from it before it inserts,
//! and publishes the hints it was granted itself. An estimate: several processes each have their own, so the bound on
//! hints is kept to within what they take between two looks at the store. Never a source of truth, never a wait.

use jobgate_shared::domain::ClusterName;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};
use tokio::sync::Notify;

/// The room for hints, by cluster. Grants nothing until the dispatcher has looked, and nothing while the broker is away.
#[derive(Debug, Default)]
pub struct HintBudget {
    room: Mutex<Room>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Room {
    /// What the dispatcher told of clusters it has seen, less what was taken since.
    clusters: BTreeMap<ClusterName, Share>,
    /// What a cluster the dispatcher has not seen may begin with.
    unseen: usize,
}

#[derive(Debug, Clone, Copy)]
struct Share {
    told: usize,
    left: usize,
    /// Taken since the look that the next [`HintBudget::set`] will tell of.
    taken: usize,
    /// Less than half was left, or less than was wanted, since the dispatcher last asked.
    low: bool,
}

impl Share {
    fn of(room: usize) -> Self {
        Self { told: room, left: room, taken: 0, low: false }
    }
}

impl HintBudget {
    /// Grants nothing until the first [`Self::set`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes room for up to `n` hints of `cluster` and answers how many were granted. Insert the jobs granted with
    /// `hinted`, publish their hints once that has committed; insert the others without, then call [`Self::wake`].
    pub fn try_take(&self, cluster: &ClusterName, n: usize) -> usize {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let unseen = room.unseen;
        let share = match room.clusters.get_mut(cluster) {
            Some(share) => share,
            None => room.clusters.entry(cluster.clone()).or_insert(Share::of(unseen)),
        };
        let granted = n.min(share.left);
        share.left -= granted;
        share.taken += granted;
        let low = share.left < share.told / 2;
        share.low |= low || granted < n;
        drop(room);
        if low {
            self.wanted.notify_one();
        }
        granted
    }

    /// Gives back room that was taken and not used: the insert failed, or the broker did not take the hint (then the
    /// jobs must be [un-hinted](jobgate_shared::store::Store::unhint) too).
    pub fn give_back(&self, cluster: &ClusterName, n: usize) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = room.clusters.get_mut(cluster) {
            share.left = share.told.min(share.left + n);
            share.taken = share.taken.saturating_sub(n);
        }
    }

    /// Tells the dispatcher that jobs are waiting for it; to be called after they are committed.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Completes when room runs low or [`Self::wake`] was called since the last time. Cancel safe.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Clusters of which less than half the room was left, or less than was wanted, since the last call.
    pub fn ran_low(&self) -> BTreeSet<ClusterName> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let shares = room.clusters.iter_mut();
        shares.filter_map(|(name, share)| std::mem::take(&mut share.low).then(|| name.clone())).collect()
    }

    /// A look at the store begins: what is taken from now on it may not see.
    pub fn look(&self) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.clusters.values_mut().for_each(|share| share.taken = 0);
    }

    /// What every cluster had room for at the last [`Self::look`]; `unseen` for those not named.
    pub fn set(&self, clusters: BTreeMap<ClusterName, usize>, unseen: usize) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut room.clusters);
        room.unseen = unseen;
        room.clusters = clusters.into_iter().map(|(name, told)| (name, Share::of(told))).collect();
        for (name, Share { taken, low, .. }) in before {
            let share = room.clusters.entry(name).or_insert(Share::of(unseen));
            share.left = share.left.saturating_sub(taken);
            (share.taken, share.low) = (taken, low);
        }
    }

    /// Grants nothing from now on.
    pub fn close(&self) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Room::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    #[test]
    fn nothing_is_granted_before_the_dispatcher_has_looked() {
        assert_eq!(HintBudget::new().try_take(&cluster("a"), 5), 0);
    }

    #[test]
    fn what_is_taken_is_gone_until_given_back_or_set_anew() {
        let budget = HintBudget::new();
        budget.set(BTreeMap::from([(cluster("a"), 10)]), 3);
        assert_eq!(budget.try_take(&cluster("a"), 8), 8);
        assert_eq!(budget.try_take(&cluster("a"), 8), 2);
        assert_eq!(budget.try_take(&cluster("a"), 1), 0);
        budget.give_back(&cluster("a"), 100);
        assert_eq!(budget.try_take(&cluster("a"), 100), 10, "never more than was told");
        assert_eq!(budget.try_take(&cluster("new"), 9), 3, "an unseen cluster has its own room");
        assert_eq!(budget.try_take(&cluster("new"), 9), 0);
        budget.close();
        assert_eq!(budget.try_take(&cluster("a"), 1) + budget.try_take(&cluster("newer"), 1), 0);
    }

    #[test]
    fn what_is_taken_while_the_dispatcher_looks_is_not_granted_twice() {
        let (budget, a) = (HintBudget::new(), cluster("a"));
        budget.set(BTreeMap::from([(a.clone(), 10)]), 4);
        assert_eq!(budget.try_take(&a, 5), 5, "committed, and seen by the look");
        budget.look();
        assert_eq!(budget.try_take(&a, 3), 3);
        assert_eq!(budget.try_take(&cluster("new"), 3), 3);
        budget.set(BTreeMap::from([(a.clone(), 5)]), 4);
        assert_eq!(budget.try_take(&a, 10), 2);
        assert_eq!(budget.try_take(&cluster("new"), 10), 1);
    }

    #[test]
    fn the_dispatcher_is_woken_when_room_runs_low_and_when_jobs_wait() {
        let budget = HintBudget::new();
        budget.set(BTreeMap::new(), 10);
        assert_eq!(budget.try_take(&cluster("a"), 4), 4);
        assert_eq!(budget.wanted().now_or_never(), None, "more than half is left");
        assert_eq!(budget.try_take(&cluster("a"), 2), 2);
        assert_eq!(budget.wanted().now_or_never(), Some(()));
        assert_eq!(budget.ran_low(), [cluster("a")].into());
        assert_eq!(budget.ran_low(), [].into(), "told once");
        assert_eq!(budget.try_take(&cluster("a"), 5), 4);
        budget.set(BTreeMap::from([(cluster("a"), 10)]), 10);
        assert_eq!(budget.ran_low(), [cluster("a")].into(), "not forgotten by an answer to an earlier look");
        budget.wake();
        assert_eq!(budget.wanted().now_or_never(), Some(()));
    }
}
