//! How much a page of a listing holds: so many jobs, and so many bytes in memory, because a thousand jobs can be small or a
//! gigabyte. And how far is looked for them: so many candidates, whatever there is, because a filter may mean none of a million.

use super::{Filter, Page, PageRequest};
use crate::domain::Job;
use chrono::{DateTime, TimeDelta, Utc};
use std::iter;
use uuid::Uuid;

/// A page ends with the job that brings it to this weight; it then says where to go on, whether or not anything is there.
pub const PAGE_BYTES: usize = 16 * 1024 * 1024;

/// Most candidates looked at for one page, but for the last stride.
const MAX_EXAMINED: usize = 8_000;
/// Most candidates looked at at once.
const MAX_STRIDE: usize = 4_000;
/// How far the clock of an accepting process, which makes the ids, may be from the store's, which says when a job was
/// accepted. Only jobs accepted further off than that could be missed by a listing bounded in time.
const CLOCK_SLACK: TimeDelta = TimeDelta::days(1);

/// The lowest id a job made at this time can have.
pub(super) fn id_at(time: DateTime<Utc>) -> Uuid {
    let millis = u64::try_from(time.timestamp_millis().clamp(0, (1 << 48) - 1)).unwrap_or(0);
    Uuid::from_u128(u128::from(millis) << 80)
}

/// Between which ids the jobs of a page are: from the first on, below the second.
pub(super) fn span(filter: &Filter, page: PageRequest) -> (Uuid, Uuid) {
    let oldest = filter.created_after.map_or(Uuid::nil(), |from| id_at(from - CLOCK_SLACK));
    let below = page.after.map_or(Uuid::max(), |job| job.0);
    let newest = filter.created_before.map_or(Uuid::max(), |before| id_at(before + CLOCK_SLACK));
    (oldest, below.min(newest))
}

/// How many candidates to look at at once for a page of `limit` jobs: first so many, then more, because few of them are
/// meant. After the last the page is cut short.
pub(super) fn strides(limit: u32) -> impl Iterator<Item = usize> {
    let first = (limit as usize + 1).min(MAX_STRIDE);
    let strides = iter::successors(Some((first, first)), |(stride, examined)| {
        let next = (stride * 4).min(MAX_STRIDE);
        (*examined < MAX_EXAMINED).then_some((next, examined + next))
    });
    strides.map(|(stride, _)| stride)
}

/// A page being filled, newest job first.
#[derive(Debug)]
pub(super) struct Filling {
    jobs: Vec<Job>,
    limit: usize,
    weight: usize,
}

impl Filling {
    /// An empty one for so many jobs.
    pub(super) fn new(limit: u32) -> Self {
        Self { jobs: Vec::new(), limit: limit as usize, weight: 0 }
    }

    /// How many jobs more it takes by number.
    pub(super) fn room(&self) -> usize {
        self.limit - self.jobs.len()
    }

    /// It has reached its weight.
    pub(super) fn is_heavy(&self) -> bool {
        self.weight >= PAGE_BYTES
    }

    /// Takes the next job; false when there is no room for it, so that another page follows.
    pub(super) fn take(&mut self, job: Job) -> bool {
        if self.room() == 0 || self.is_heavy() {
            return false;
        }
        self.weight += job.weight();
        self.jobs.push(job);
        true
    }

    /// The page; `more` says that a job was seen behind it.
    pub(super) fn page(self, more: bool) -> Page {
        let next = self.jobs.last().map(|job| job.id).filter(|_| more || self.is_heavy());
        Page { jobs: self.jobs, next }
    }
}

/// Jobs as they are read, none behind the one that makes them as heavy as a page.
pub(super) fn up_to_a_page<E>(jobs: impl Iterator<Item = Result<Job, E>>) -> Result<Vec<Job>, E> {
    let (mut taken, mut weight) = (Vec::new(), 0);
    for job in jobs {
        let job = job?;
        weight += job.weight();
        taken.push(job);
        if weight >= PAGE_BYTES {
            break;
        }
    }
    Ok(taken)
}
