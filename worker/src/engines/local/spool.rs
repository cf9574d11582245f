//! The spool: where attempts lie on disk, and every way they come and go.
//!
//! ```text
//! <root>/host-id            who may act on what lies here: the engine's reach
//! <root>/bell               opened and closed by a runner whose job has ended
//! <root>/cpus/<n>           locked by the runner whose job has processor n
//! <root>/new/<nonce>/       an attempt being made          <root>/trash/<nonce>/   one being removed
//! <root>/<tag>/<nonce>/     an attempt
//! ```
//!
//! An attempt appears and disappears by one rename each, so nothing half made and nothing half removed is ever found under
//! a tag. The nonce is what its submission id ends with: another life under the same tag is another path.

use super::{attempt::Attempt, records::RunSpec};
use anyhow::Context as _;
use jobgate_shared::{
    domain::{Submission, SubmissionTag},
    failpoint,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use uuid::Uuid;

/// The spool of one host.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    root: OwnedFd,
    host_id: String,
}

/// The random part of a submission id: which life under a tag is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Nonce(u64);

impl Nonce {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let nonce = u64::from_str_radix(text, 16).ok().map(Self);
        // One spelling only, or a stored id could name a path of its own choice.
        nonce.filter(|nonce| nonce.to_string() == text)
    }
}

impl std::fmt::Display for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One life under one tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tag: SubmissionTag,
    pub(super) nonce: Nonce,
}

impl Place {
    /// What the row records.
    pub(super) fn submission_id(self) -> String {
        format!("{}.{}", self.tag, self.nonce)
    }

    /// Where a submission lies; `None` for an id this engine never gave to the tag.
    pub(super) fn of(tag: SubmissionTag, submission: &Submission) -> Option<Self> {
        let (spelled, nonce) = submission.id.rsplit_once('.')?;
        let nonce = Nonce::parse(nonce)?;
        (spelled.parse() == Ok(tag)).then_some(Self { tag, nonce })
    }

    /// Relative to the root.
    pub(super) fn path(self) -> String {
        format!("{}/{}", self.tag, self.nonce)
    }
}

/// Filesystems that are not of one host: a lock, a FIFO or a rename there may mean something else, or nothing.
const SHARED_FILESYSTEMS: [(i64, &str); 9] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x517b, "SMB"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
];

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const PRIVATE_DIR: Mode = Mode::RWXU;

impl Spool {
    /// Opens the spool, making it when it is not there.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let metadata = fs::metadata(path)?;
        let me = rustix::process::geteuid().as_raw();
        anyhow::ensure!(metadata.uid() == me, "belongs to user {}, not to this one ({me})", metadata.uid());
        if metadata.permissions().mode() & 0o077 != 0 {
            rustix::fs::fchmod(&root, PRIVATE_DIR).context("cannot be made private")?;
        }
        let kind = i128::from(rustix::fs::fstatfs(&root)?.f_type) & 0xffff_ffff;
        if let Some((_, name)) = SHARED_FILESYSTEMS.iter().find(|(magic, _)| i128::from(*magic) == kind) {
            anyhow::bail!("lies on {name}; it must lie on a filesystem of this host alone");
        }
        for dir in ["new", "trash", "cpus"] {
            exists_already(rustix::fs::mkdirat(&root, dir, PRIVATE_DIR))?;
        }
        let bell = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        drop(rustix::fs::openat(&root, "bell", bell, Mode::RUSR | Mode::WUSR)?);
        let host_id = host_id(&root)?;
        Ok(Self { path: path.to_owned(), root, host_id })
    }

    /// Opens a spool that stands, as a runner does.
    pub(super) fn enter(path: &Path) -> anyhow::Result<Self> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let host_id = read_host_id(&root).context("host-id")?;
        Ok(Self { path: path.to_owned(), root, host_id })
    }

    pub(super) fn host_id(&self) -> &str {
        &self.host_id
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The spool is where it was: not unmounted, not replaced.
    pub(super) fn still_stands(&self) -> anyhow::Result<()> {
        let found = read_host_id(&self.root).context("host-id")?;
        anyhow::ensure!(found == self.host_id, "the spool {} was replaced", self.path.display());
        Ok(())
    }

    /// Makes an attempt that does not run, or finds the one that stands under the tag. What it returns survives the host.
    pub(super) fn create(&self, tag: SubmissionTag, spec: &RunSpec) -> io::Result<Place> {
        loop {
            if let Some(place) = self.under(tag)? {
                match self.attempt(place)? {
                    // A discard that got no further than its tombstone: the id it had is nobody's.
                    Some(attempt) if attempt.is_discarded()? => self.remove(place)?,
                    Some(_) => return Ok(place),
                    None => {}
                }
                continue;
            }
            if let Some(place) = self.make(tag, spec)? {
                return Ok(place);
            }
        }
    }

    /// `None`: another one was faster.
    fn make(&self, tag: SubmissionTag, spec: &RunSpec) -> io::Result<Option<Place>> {
        let place = Place { tag, nonce: Nonce(rand::random()) };
        let outer = format!("new/{}", place.nonce);
        let inner = format!("{outer}/{}", place.nonce);
        rustix::fs::mkdirat(&self.root, &outer, PRIVATE_DIR)?;
        rustix::fs::mkdirat(&self.root, &inner, PRIVATE_DIR)?;
        let attempt = Attempt::new(self.open_dir(&inner)?.ok_or(Errno::NOENT)?);
        attempt.prepare(spec)?;
        rustix::fs::fsync(self.open_dir(&outer)?.ok_or(Errno::NOENT)?)?;
        failpoint::pass("spool.prepared");
        match rustix::fs::renameat(&self.root, &outer, &self.root, tag.to_string()) {
            Ok(()) => {
                failpoint::pass("spool.named");
                rustix::fs::fsync(&self.root)?;
                Ok(Some(place))
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                remove_tree(&self.path.join(outer))?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What stands under a tag.
    pub(super) fn under(&self, tag: SubmissionTag) -> io::Result<Option<Place>> {
        let Some(dir) = self.open_dir(&tag.to_string())? else { return Ok(None) };
        for entry in rustix::fs::Dir::new(dir)? {
            if let Some(nonce) = entry?.file_name().to_str().ok().and_then(Nonce::parse) {
                return Ok(Some(Place { tag, nonce }));
            }
        }
        Ok(None)
    }

    /// An attempt by its place; `None` when it is not there (any more).
    pub(super) fn attempt(&self, place: Place) -> io::Result<Option<Attempt>> {
        Ok(self.open_dir(&place.path())?.map(Attempt::new))
    }

    /// `attempt` is still the one at `place`: it was not taken away to be removed.
    pub(super) fn holds(&self, place: Place, attempt: &Attempt) -> io::Result<bool> {
        match rustix::fs::statat(&self.root, place.path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => {
                let mine = rustix::fs::fstat(attempt.as_fd())?;
                Ok((found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino))
            }
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes an attempt away. Nobody may call this before its start token is taken: see the engine's head.
    pub(super) fn remove(&self, place: Place) -> io::Result<()> {
        let trash = format!("trash/{}", place.nonce);
        match rustix::fs::renameat(&self.root, place.path(), &self.root, &trash) {
            Ok(()) => failpoint::pass("spool.trashed"),
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.drop_empty(place.tag)?;
        remove_tree(&self.path.join(trash))
    }

    fn drop_empty(&self, tag: SubmissionTag) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.root, tag.to_string(), AtFlags::REMOVEDIR) {
            // Not empty: another life has begun under the tag.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Every tag that has, or had, an attempt.
    pub(super) fn tags(&self) -> io::Result<Vec<SubmissionTag>> {
        let mut tags = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.root)? {
            if let Some(tag) = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// Removes what was being made or removed when its worker died, `older_than` ago.
    pub(super) fn clear_debris(&self, now: SystemTime, older_than: Duration) -> io::Result<()> {
        for dir in ["new", "trash"] {
            for entry in fs::read_dir(self.path.join(dir))? {
                let entry = entry?;
                let changed = match entry.metadata().and_then(|metadata| metadata.modified()) {
                    Ok(changed) => changed,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if now.duration_since(changed).is_ok_and(|age| age >= older_than) {
                    remove_tree(&entry.path())?;
                }
            }
        }
        for tag in self.tags()? {
            if self.under(tag)?.is_none() {
                self.drop_empty(tag)?;
            }
        }
        Ok(())
    }

    /// Tells every worker that something has ended.
    pub(super) fn ring(&self) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.root, "bell", flags, Mode::empty())?;
        Ok(())
    }

    /// A descriptor that becomes readable when somebody rings.
    pub(super) fn listen(&self) -> io::Result<OwnedFd> {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let fd = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        add_watch(&fd, self.path.join("bell"), WatchFlags::CLOSE_WRITE)?;
        Ok(fd)
    }

    /// A lock file for processor `n`.
    pub(super) fn processor(&self, n: usize) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.root, format!("cpus/{n}"), flags, Mode::RUSR | Mode::WUSR)?)
    }

    fn open_dir(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), beneath) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn exists_already(answer: rustix::io::Result<()>) -> io::Result<()> {
    match answer {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The id of this spool: whoever links its own first wins, and everyone reads that one. Where it is there, nothing is
/// written: a worker can begin on a full disk.
fn host_id(root: &OwnedFd) -> anyhow::Result<String> {
    match rustix::fs::statat(root, "host-id", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => return read_host_id(root).context("host-id"),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error).context("host-id"),
    }
    let (mine, id) = (format!("new/{}", Uuid::new_v4()), Uuid::new_v4());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(root, &mine, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = fs::File::from(file);
    io::Write::write_all(&mut file, format!("{id}\n").as_bytes())?;
    file.sync_all()?;
    let linked = exists_already(rustix::fs::linkat(root, &mine, root, "host-id", AtFlags::empty()));
    rustix::fs::unlinkat(root, &mine, AtFlags::empty())?;
    linked.context("host-id")?;
    rustix::fs::fsync(root)?;
    read_host_id(root).context("host-id")
}

fn read_host_id(root: &OwnedFd) -> anyhow::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = fs::File::from(rustix::fs::openat(root, "host-id", flags, Mode::empty())?);
    let text = io::read_to_string(file)?;
    Ok(text.trim().parse::<Uuid>()?.to_string())
}

/// Removes a directory and all in it, though a job may have left directories nobody can enter.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_enterable(path)?;
            fs::remove_dir_all(path)
        }
        // Another worker removes it, too, or did.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

fn make_enterable(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_enterable(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_that_stands_is_opened_without_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let made = Spool::open(&path).unwrap();
        // Where a file that is being made would lie; its time tells of one, though it is gone.
        let touched = || fs::metadata(path.join("new")).unwrap().modified().unwrap();
        let before = touched();
        let found = Spool::open(&path).unwrap();
        assert_eq!((touched(), found.host_id()), (before, made.host_id()));
    }
}
