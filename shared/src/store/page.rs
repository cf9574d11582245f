//! How much a page of a listing holds: so many jobs, and so many bytes, because a thousand jobs can be small or a gigabyte.

use super::Page;
use crate::domain::Job;

/// A page ends with the job that brings it to this weight; it then says where to go on, whether or not anything is there.
pub const PAGE_BYTES: usize = 16 * 1024 * 1024;

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
