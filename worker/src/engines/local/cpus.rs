//! Which processors a job gets when it asks for some: those no other job has, as long as there are such.
//!
//! Every runner of a spool holds a lock on each processor it gave to its job. A lock ends with its holder, however that
//! ends, so there is no list to repair.

use super::spool::Spool;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use std::{io, os::fd::OwnedFd};

/// Processors given to one job, for as long as this lives.
#[derive(Debug)]
pub(super) struct Processors {
    chosen: Vec<usize>,
    _locks: Vec<OwnedFd>,
}

/// `wanted` processors out of those this process may use; `None` when that is all of them.
pub(super) fn take(spool: &Spool, wanted: u32) -> io::Result<Option<Processors>> {
    let allowed = sched_getaffinity(None)?;
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|n| allowed.is_set(*n)).collect();
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if wanted >= allowed.len() {
        return Ok(None);
    }
    let (mut chosen, mut locks, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    // From a random one on, so that jobs who must share do not all share the same.
    let first = rand::random_range(0..allowed.len());
    for n in allowed[first..].iter().chain(&allowed[..first]).copied() {
        if chosen.len() == wanted {
            break;
        }
        let lock = spool.processor(n)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                chosen.push(n);
                locks.push(lock);
            }
            Err(Errno::WOULDBLOCK) => busy.push(n),
            Err(error) => return Err(error.into()),
        }
    }
    busy.truncate(wanted - chosen.len());
    chosen.extend(busy);
    Ok(Some(Processors { chosen, _locks: locks }))
}

impl Processors {
    /// As an argument for the second stage.
    pub(super) fn to_argument(&self) -> String {
        self.chosen.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Stays on the processors of an argument; on none in particular for an empty one.
pub(super) fn stay_on(argument: &str) -> io::Result<()> {
    if argument.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for n in argument.split(',') {
        let n = n.parse().ok().filter(|n| *n < CpuSet::MAX_CPU);
        set.set(n.ok_or_else(|| io::Error::other("not a list of processors"))?);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_share_processors_only_when_there_are_not_enough() {
        let count = std::thread::available_parallelism().unwrap().get();
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool")).unwrap();
        assert!(take(&spool, u32::try_from(count).unwrap()).unwrap().is_none());
        if count < 2 {
            return;
        }
        let mut held: Vec<_> = (0..count).map(|_| take(&spool, 1).unwrap().unwrap()).collect();
        let mut chosen: Vec<_> = held.iter().map(|p| p.chosen[0]).collect();
        chosen.sort_unstable();
        chosen.dedup();
        assert_eq!(chosen.len(), count, "each has its own");
        let shared = take(&spool, 1).unwrap().unwrap();
        assert!(chosen.contains(&shared.chosen[0]));
        drop(shared);
        let freed = held.pop().unwrap();
        let free = freed.chosen.clone();
        drop(freed);
        assert_eq!(take(&spool, 1).unwrap().unwrap().chosen, free);
    }
}
