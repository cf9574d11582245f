//! What `run` remembers of a file between runs: which generation of its jobs is under way.
//!
//! A run that was killed is resumed under the same idempotency keys: what was accepted is found again, what was not is
//! submitted now. A run whose jobs have all ended is over; the next one is a new generation.

use crate::data_dir::{DataDir, make_private};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    /// The file, for people who look here.
    file: String,
    /// Counts the runs of these jobs.
    generation: u32,
    /// Every job of the generation has ended.
    complete: bool,
}

/// The memory of one plan.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
    now: Remembered,
    resumed: bool,
}

impl Memory {
    /// Recalls the plan `digest`; a first run begins generation 1.
    pub(super) fn recall(data_dir: &DataDir, digest: &str, file: &Path) -> anyhow::Result<Self> {
        make_private(&data_dir.runs())?;
        let path = data_dir.runs().join(format!("{digest}.json"));
        let first = Remembered { file: file.display().to_string(), generation: 1, complete: false };
        let known: Option<Remembered> = match fs::read_to_string(&path) {
            Ok(text) => Some(
                serde_json::from_str(&text)
                    .with_context(|| format!("{} is damaged; remove it", path.display()))?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let resumed = known.as_ref().is_some_and(|known| !known.complete);
        Ok(Self { path, now: known.unwrap_or(first), resumed })
    }

    /// Which generation is under way.
    pub(super) fn generation(&self) -> u32 {
        self.now.generation
    }

    /// The generation was begun by a run before this one, which did not see its end.
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Begins this run: a new generation, unless one is unfinished. To be called before anything is submitted.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        if self.now.complete {
            self.now.generation += 1;
            self.now.complete = false;
        }
        self.write()
    }

    /// Every job of this generation has ended.
    pub(super) fn complete(&mut self) -> anyhow::Result<()> {
        self.now.complete = true;
        self.resumed = false;
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string(&self.now)?;
        let beside = self.path.with_extension("new");
        // A whole file or the old one, whenever this process is killed.
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, &self.path))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_run_keeps_its_generation_and_a_finished_one_ends_it() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = DataDir::at(place.path());
        let recall = || Memory::recall(&data_dir, "abc", Path::new("jobs.jsonl")).unwrap();
        let mut memory = recall();
        memory.begin().unwrap();
        assert_eq!(memory.generation(), 1);
        let mut after_a_kill = recall();
        after_a_kill.begin().unwrap();
        assert_eq!((after_a_kill.generation(), after_a_kill.is_resumed()), (1, true));
        after_a_kill.complete().unwrap();
        let mut next = recall();
        next.begin().unwrap();
        assert_eq!((next.generation(), next.is_resumed()), (2, false));
        assert_eq!(Memory::recall(&data_dir, "other", Path::new("x")).unwrap().generation(), 1);
    }
}
