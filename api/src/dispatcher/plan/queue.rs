//! One cluster's queue: its window, what fits into it, and how jobs are put into messages.

use super::{FIRST_WINDOW, FRESH, Limits, PATIENCE, UNTOLD_LIFETIMES};
use jobgate_shared::{store::Due, wire::MAX_HINT};
use std::time::Duration;

/// What is known of one cluster's queue.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    /// Jobs that may be hinted at once.
    pub(super) window: u64,
    /// More was due than there was room for.
    pub(super) pressed: bool,
    pub(super) outstanding: u64,
    pub(super) expired: u64,
    /// Hints known to be lost and not yet published again.
    pub(super) lost: u64,
    /// When the broker was asked last.
    pub(super) asked: Option<Duration>,
    /// The broker told the length, then.
    pub(super) told: bool,
    pub(super) shrunk: Option<Duration>,
    /// When it last had a due job.
    pub(super) seen: Duration,
    /// How many jobs may be claimed, where that is limited.
    pub(super) claimable: Option<u64>,
    /// Room the round has left for acceptance.
    pub(super) left: u64,
    /// What the round asked for.
    pub(super) limit: u64,
}

impl Queue {
    pub(super) fn new(window: u64, now: Duration) -> Self {
        Self {
            window,
            pressed: false,
            outstanding: 0,
            expired: 0,
            lost: 0,
            asked: None,
            told: true,
            shrunk: None,
            seen: now,
            claimable: None,
            left: window,
            limit: 0,
        }
    }

    /// A look that does not name it.
    pub(super) fn nothing_due(&mut self) {
        (self.outstanding, self.expired, self.lost) = (0, 0, 0);
        self.left = self.window;
    }

    pub(super) fn see(&mut self, now: Duration, outstanding: u64, expired: u64, room: Option<u32>) {
        self.claimable = room.map(u64::from);
        (self.outstanding, self.expired) = (outstanding, expired);
        self.lost = self.lost.min(expired);
        self.seen = now;
    }

    /// Jobs with a hint, be it good or run out.
    pub(super) fn hinted(&self) -> u64 {
        self.outstanding + self.expired
    }

    pub(super) fn must_ask(&self, now: Duration) -> bool {
        self.expired > 0 && self.lost == 0 && self.asked.is_none_or(|at| now >= at + FRESH)
    }

    pub(super) fn resize(&mut self, now: Duration, limits: Limits) {
        let least = FIRST_WINDOW.min(limits.outstanding);
        let slow = self.expired > 0 && self.lost == 0;
        if slow && self.shrunk.is_none_or(|at| now >= at + limits.hint_ttl) {
            self.shrunk = Some(now);
            self.window = (self.window / 2).max(least);
        }
        if !slow && self.pressed && self.is_quick() {
            self.grow(limits);
        }
    }

    /// Workers have taken most of what was hinted.
    pub(super) fn is_quick(&self) -> bool {
        self.hinted() <= self.window / 2
    }

    pub(super) fn grow(&mut self, limits: Limits) {
        self.window = (self.window * 2).min(limits.outstanding);
    }

    /// How many jobs to fetch; sets what is left for acceptance.
    pub(super) fn room(&mut self, most: u64) -> u64 {
        let room = self.window_room(most);
        let Some(claimable) = self.claimable else { return room };
        let claimable = claimable.saturating_sub(self.outstanding);
        self.left = self.left.min(claimable);
        room.min(claimable)
    }

    fn window_room(&mut self, most: u64) -> u64 {
        if self.lost > 0 {
            // The queue is all but empty: put back what it held.
            self.left = 0;
            let room = self.window.max(self.hinted().min(most)).saturating_sub(self.outstanding);
            if room == 0 {
                self.lost = 0;
            }
            return room;
        }
        let room = self.window.saturating_sub(self.hinted());
        self.left = room;
        // In larger pieces, while workers have plenty to take.
        if room < self.window / 4 && self.hinted() > 0 { 0 } else { room }
    }

    pub(super) fn again_after(&self, hint_ttl: Duration) -> Duration {
        match (self.lost > 0, self.told) {
            (true, _) => Duration::ZERO,
            (false, true) => PATIENCE,
            (false, false) => hint_ttl * UNTOLD_LIFETIMES,
        }
    }
}

/// Splits jobs into messages, keeping their order: suspects alone, the others so that every worker finds some.
pub(super) fn messages(due: Vec<Due>, workers: u32) -> Vec<Vec<Due>> {
    let shared = due.iter().filter(|d| !d.suspect).count();
    let takers = 2 * workers.max(1) as usize;
    let size = shared.div_ceil(takers).clamp(1, MAX_HINT);
    let mut messages: Vec<Vec<Due>> = Vec::new();
    let mut open: Option<usize> = None;
    for job in due {
        if job.suspect {
            messages.push(vec![job]);
        } else if let Some(message) = open.and_then(|at| messages.get_mut(at)).filter(|m| m.len() < size) {
            message.push(job);
        } else {
            open = Some(messages.len());
            messages.push(vec![job]);
        }
    }
    messages
}
