//! A disk of its own for the spool, small enough to be filled. It is mounted where only this run sees it, if the harness may
//! start itself in a mount namespace of its own; where it may not, as below a chroot, the disk goes with the run all the same.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

const SIZE: &str = "size=32m,nr_inodes=16k,mode=700";

/// The disk.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    ballast: PathBuf,
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(&self.folder).output();
        if !done.as_ref().is_ok_and(|done| done.status.success()) {
            tracing::warn!(folder = %self.folder.display(), ?done, "the disk is still mounted");
        }
    }
}

impl Disk {
    /// Mounts one at `folder`, which it makes. An error says why it cannot be.
    pub fn mount(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "jobgate-torture"])
            .arg(folder)
            .output()?;
        ensure!(done.status.success(), "mount: {}", String::from_utf8_lossy(&done.stderr).trim());
        Ok(Self { folder: folder.to_owned(), ballast: folder.join("ballast") })
    }

    /// Leaves no room, neither for a byte nor for another file.
    pub fn fill(&self) -> Result<()> {
        fs::create_dir_all(&self.ballast)?;
        let mut file = File::create(self.ballast.join("bytes"))?;
        for size in [64 * 1024, 1024, 1] {
            let block = vec![0; size];
            until_full(|| file.write_all(&block))?;
        }
        let mut names = 0_u32..;
        until_full(|| File::create(self.ballast.join(names.next().unwrap_or(0).to_string())).map(drop))
    }

    /// Makes room again.
    pub fn free(&self) -> Result<()> {
        match fs::remove_dir_all(&self.ballast) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("free the disk"),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn until_full(mut write: impl FnMut() -> io::Result<()>) -> Result<()> {
    loop {
        match write() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).context("fill the disk"),
        }
    }
}
