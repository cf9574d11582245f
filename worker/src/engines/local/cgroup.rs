//! A control group (v2) of a job's own, below one that was delegated to the worker.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The group of one attempt.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

/// Checks a delegated group and lets its children limit memory, where the kernel can; whether it can.
pub(super) fn check_delegated(path: &Path) -> io::Result<bool> {
    let controllers = fs::read_to_string(path.join("cgroup.controllers"))?;
    let limits_memory = controllers.split_whitespace().any(|controller| controller == "memory");
    if limits_memory {
        fs::write(path.join("cgroup.subtree_control"), "+memory")?;
    }
    let trial = Cgroup::at(path, &format!("trial-{}", std::process::id()));
    fs::create_dir(&trial.path)?;
    trial.remove()?;
    Ok(limits_memory)
}

impl Cgroup {
    /// The group of this name, which need not exist.
    pub(super) fn at(delegated: &Path, name: &str) -> Self {
        Self { path: delegated.join(name) }
    }

    /// Makes it, with its limit.
    pub(super) fn make(&self, memory_bytes: Option<u64>) -> io::Result<()> {
        fs::create_dir(&self.path)?;
        if let Some(bytes) = memory_bytes.filter(|_| self.limits_memory()) {
            fs::write(self.path.join("memory.max"), bytes.to_string())?;
            // The job ends as a whole, not by losing one process; and it does not go on in swap.
            self.write_if_there("memory.oom.group", "1")?;
            self.write_if_there("memory.swap.max", "0")?;
        }
        Ok(())
    }

    /// The kernel limits memory by this group.
    pub(super) fn limits_memory(&self) -> bool {
        self.path.join("memory.max").exists()
    }

    /// This process and what it becomes belong to it.
    pub(super) fn join(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// A process of it was killed because the group was out of memory.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let Ok(events) = fs::read_to_string(self.path.join("memory.events")) else { return false };
        let kills = events.lines().filter_map(|line| line.strip_prefix("oom_kill "));
        kills.filter_map(|count| count.trim().parse::<u64>().ok()).any(|count| count > 0)
    }

    /// Kills all of it, waits `until` then for it to be gone, and removes it. Whether all is gone.
    pub(super) fn end(&self, until: Instant) -> io::Result<bool> {
        if !self.path.exists() {
            return Ok(true);
        }
        self.write_if_there("cgroup.kill", "1")?;
        loop {
            match self.remove() {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            answer => answer,
        }
    }

    /// An older kernel, or a controller that is not enabled, lacks the file.
    fn write_if_there(&self, file: &str, value: &str) -> io::Result<()> {
        match fs::write(self.path.join(file), value) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            answer => answer,
        }
    }
}
