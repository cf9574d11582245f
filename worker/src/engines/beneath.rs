//! Reading files a job may have put anything in the place of.

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt as _},
};

/// Nothing but what lies below the directory itself.
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens a plain file for reading: a link is not followed, a FIFO does not block, and what is no plain file is not there.
pub(super) fn open_plain(dir: impl AsFd, name: &str) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH) {
        Ok(fd) => {
            let plain = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_file();
            Ok(plain.then(|| File::from(fd)))
        }
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ISDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Up to `limit` bytes from `offset`, and whether they reach the file's present end.
pub(super) fn read_at(file: &File, offset: u64, limit: usize) -> io::Result<(Vec<u8>, bool)> {
    let left = file.metadata()?.len().saturating_sub(offset);
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(limit)];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    let at_end = filled as u64 >= left;
    Ok((bytes, at_end))
}
