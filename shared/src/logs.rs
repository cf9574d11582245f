//! The log store: what jobs print, as immutable chunks in an object store that workers write and any API instance reads.
//!
//! A chunk is `<job>/<attempt>/<stream>/<offset>`, the offset zero-padded so that names sort as numbers; a marker beside
//! the chunks tells the stream's length once nothing will follow. The bytes of a stream are the same whoever ships them,
//! so a zombie and its adopter may both write: a chunk is never replaced, and a reader takes what reaches furthest.
//!
//! Whoever removes rows notes beforehand whose logs go with them (`doomed/<time>-<random>`, a job a line), so that a crash
//! in between leaves none for ever.
//!
//! Nothing here knows rows or engines; who may read a log, and when it may go, is decided elsewhere.

use crate::{domain::JobId, random};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _, future::ready, stream::BoxStream};
use object_store::{
    Error as ObjectError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, local::LocalFileSystem,
    memory::InMemory, path::Path,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs::DirBuilder, io, os::unix::fs::DirBuilderExt as _, path::Path as FilePath, str::FromStr,
    sync::Arc, time::Duration,
};

/// Longest chunk in bytes; a longer append becomes several. A chunk that holds an offset begins at most so far before
/// it, which bounds what a reader has to look at.
pub const MAX_CHUNK: usize = 1024 * 1024;

/// So long after a job's end nobody is expected to ship any more of what it printed.
pub const ALL_SHIPPED_AFTER: Duration = Duration::from_hours(24);

/// Name of the marker; sorts behind every offset.
const END: &str = "end";

/// Beside the jobs: notes of whose logs are to go.
const DOOMED: &str = "doomed";

/// One of a job's two output streams.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The name users see, and the one in object names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for LogStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogStream {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|stream| stream.as_str() == s).ok_or(())
    }
}

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogPiece {
    /// What stands from the offset asked for; empty when nothing does yet.
    pub bytes: Bytes,
    /// Where to go on reading.
    pub next_offset: u64,
    /// Nothing will follow these bytes.
    pub complete: bool,
}

/// Why the log store did not do what it was asked. Every call can be made again with the same arguments.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Writing a chunk or a marker.
    #[error("cannot write a log")]
    Write(#[source] ObjectError),
    /// Looking for chunks.
    #[error("cannot list a log")]
    List(#[source] ObjectError),
    /// Reading a chunk or a marker.
    #[error("cannot read a log")]
    Read(#[source] ObjectError),
    /// Removing the logs of jobs.
    #[error("cannot remove logs")]
    Remove(#[source] ObjectError),
}

/// The logs of every job.
#[derive(Debug, Clone)]
pub struct LogStore {
    objects: Arc<dyn ObjectStore>,
}

/// A note of whose logs are to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doom(Path);

/// The chunks of one stream, as listed: (first byte, byte after the last), by first byte.
#[derive(Debug, Default)]
struct Listing {
    chunks: Vec<(u64, u64)>,
    ended: bool,
}

impl Listing {
    /// The chunk holding `offset` that reaches furthest.
    fn holding(&self, offset: u64) -> Option<(u64, u64)> {
        let held = self.chunks.iter().filter(|(first, end)| *first <= offset && offset < *end);
        held.copied().max_by_key(|(_, end)| *end)
    }

    /// The end of what follows `offset` without a hole.
    fn contiguous_from(&self, mut offset: u64) -> u64 {
        for (first, end) in &self.chunks {
            if *first > offset {
                break;
            }
            offset = offset.max(*end);
        }
        offset
    }

    /// Where the first chunk behind `offset` begins.
    fn first_behind(&self, offset: u64) -> Option<u64> {
        self.chunks.iter().map(|(first, _)| *first).find(|first| *first > offset)
    }
}

impl LogStore {
    /// Logs in any object store.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects }
    }

    /// Logs that live and die with the process. For tests.
    pub fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()))
    }

    /// Logs in a local directory, made if it is not there and readable by its owner only. What is written is on the disk
    /// when the call returns: the worker forgets its own copy then.
    pub fn directory(path: &FilePath) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let files = LocalFileSystem::new_with_prefix(path)?.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self::new(Arc::new(files)))
    }

    /// Stores what a stream holds from `offset`; answers where it goes on. Writing the same bytes again, or bytes another
    /// writer has stored, changes nothing.
    pub async fn append(
        &self,
        job: JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        bytes: Bytes,
    ) -> Result<u64, LogError> {
        let end = offset + bytes.len() as u64;
        let mut at = offset;
        while at < end {
            let rest = bytes.slice(usize::try_from(at - offset).unwrap_or(bytes.len())..);
            let chunk = rest.slice(..rest.len().min(MAX_CHUNK));
            let name = chunk_name(job, attempt, stream, at);
            let length = chunk.len() as u64;
            // Never replaced: a shorter chunk put in the place of a longer one would make a hole.
            let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.objects.put_opts(&name, chunk.into(), create).await {
                Ok(_) => at += length,
                Err(ObjectError::AlreadyExists { .. }) => {
                    let there = self.objects.head(&name).await.map_err(LogError::Write)?.size;
                    // Nobody writes an empty chunk; should one be there, this must still come to an end.
                    at += there.max(1);
                }
                Err(error) => return Err(LogError::Write(error)),
            }
        }
        Ok(at.max(end))
    }

    /// Where whoever takes a stream over goes on: the end of what is stored without a hole.
    pub async fn resume(&self, job: JobId, attempt: u32, stream: LogStream) -> Result<u64, LogError> {
        Ok(self.list(job, attempt, stream, None).await?.contiguous_from(0))
    }

    /// Tells that a stream is `length` bytes long and nothing will follow.
    pub async fn finish(
        &self,
        job: JobId,
        attempt: u32,
        stream: LogStream,
        length: u64,
    ) -> Result<(), LogError> {
        let marker = Bytes::from(length.to_string());
        self.objects.put(&marker_name(job, attempt, stream), marker.into()).await.map_err(LogError::Write)?;
        Ok(())
    }

    /// How far a stream can be read from `offset`, and whether that is all there will ever be.
    pub async fn extent(
        &self,
        job: JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
    ) -> Result<(u64, bool), LogError> {
        let listing = self.list(job, attempt, stream, None).await?;
        let length = if listing.ended { self.length(job, attempt, stream).await? } else { None };
        Ok(match length {
            // Holes are read over, so what counts is where the last chunk ends.
            Some(length) => {
                let last = listing.chunks.iter().map(|(_, end)| *end).max();
                (length.max(last.unwrap_or(0)).max(offset), true)
            }
            None => (listing.contiguous_from(offset), false),
        })
    }

    /// Up to `limit` bytes from `offset`. Bytes nobody stored before the marker was set are left out: `next_offset` then
    /// stands behind them.
    pub async fn read(
        &self,
        job: JobId,
        attempt: u32,
        stream: LogStream,
        offset: u64,
        limit: usize,
    ) -> Result<LogPiece, LogError> {
        let begin = offset.checked_sub(MAX_CHUNK as u64).map(|from| chunk_name(job, attempt, stream, from));
        let mut listing = self.list(job, attempt, stream, begin.as_ref()).await?;
        let mut end = None;
        if listing.ended {
            end = self.length(job, attempt, stream).await?;
            if listing.contiguous_from(offset) < end.unwrap_or(0) {
                // A listing made while chunks are written may show the marker and miss a chunk written before it; the
                // next one shows them all.
                listing = self.list(job, attempt, stream, begin.as_ref()).await?;
            }
        }
        let mut at = offset;
        let mut read = BytesMut::new();
        while read.len() < limit {
            if let Some((first, behind)) = listing.holding(at) {
                let until = behind.min(at + (limit - read.len()) as u64);
                let name = chunk_name(job, attempt, stream, first);
                let bytes = self.objects.get_range(&name, at - first..until - first).await;
                let bytes = bytes.map_err(LogError::Read)?;
                at += bytes.len() as u64;
                read.extend_from_slice(&bytes);
                continue;
            }
            // A hole is passed over only at the beginning of a read, so that bytes on both sides never look adjacent.
            match listing.first_behind(at).or(end) {
                Some(next) if end.is_some() && read.is_empty() && next > at => at = next,
                Some(_) | None => break,
            }
        }
        let more = listing.holding(at).is_some() || listing.first_behind(at).is_some();
        let complete = end.is_some_and(|end| at >= end) && !more;
        Ok(LogPiece { bytes: read.freeze(), next_offset: at, complete })
    }

    /// Removes everything stored for these jobs.
    pub async fn remove(&self, jobs: &[JobId]) -> Result<(), LogError> {
        for job in jobs {
            let found = self.objects.list(Some(&Path::from(job.to_string())));
            let names = found.map_ok(|object| object.location).boxed();
            let mut removed = self.objects.delete_stream(names);
            while let Some(outcome) = removed.next().await {
                match outcome {
                    // Two removers may meet; gone already is what was wanted.
                    Ok(_) | Err(ObjectError::NotFound { .. }) => {}
                    Err(error) => return Err(LogError::Remove(error)),
                }
            }
        }
        Ok(())
    }

    /// Notes that the logs of these jobs are to go with their rows, durably; by whom it is seen to is decided elsewhere.
    /// No jobs, no note. Each note is its own: striking it out takes nobody else's.
    pub async fn doom(&self, jobs: &[JobId], now: DateTime<Utc>) -> Result<Option<Doom>, LogError> {
        if jobs.is_empty() {
            return Ok(None);
        }
        let name = Path::from(format!("{DOOMED}/{:015}-{}", now.timestamp_millis(), random::uuid().simple()));
        let lines: Vec<String> = jobs.iter().map(JobId::to_string).collect();
        self.objects.put(&name, lines.join("\n").into()).await.map_err(LogError::Write)?;
        Ok(Some(Doom(name)))
    }

    /// The notes made before `before`, in any order and one by one: there may be many.
    pub fn dooms(&self, before: DateTime<Utc>) -> BoxStream<'static, Result<Doom, LogError>> {
        let made_before = move |name: &Path| {
            let millis = name.filename().and_then(|name| name.split('-').next()?.parse::<i64>().ok());
            millis.is_some_and(|millis| millis < before.timestamp_millis())
        };
        let found = self.objects.list(Some(&Path::from(DOOMED))).map_err(LogError::List);
        let notes = found.map_ok(|object| object.location).try_filter(move |name| ready(made_before(name)));
        notes.map_ok(Doom).boxed()
    }

    /// Whom a note is about; absent when another has struck it out.
    pub async fn doomed(&self, note: &Doom) -> Result<Option<Vec<JobId>>, LogError> {
        let text = match self.objects.get(&note.0).await {
            Ok(text) => text.bytes().await.map_err(LogError::Read)?,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(LogError::Read(error)),
        };
        Ok(Some(String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect()))
    }

    /// Strikes a note out.
    pub async fn strike_out(&self, note: Doom) -> Result<(), LogError> {
        match self.objects.delete(&note.0).await {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(LogError::Remove(error)),
        }
    }

    async fn list(
        &self,
        job: JobId,
        attempt: u32,
        stream: LogStream,
        behind: Option<&Path>,
    ) -> Result<Listing, LogError> {
        let folder = folder(job, attempt, stream);
        let mut objects = match behind {
            Some(name) => self.objects.list_with_offset(Some(&folder), name),
            None => self.objects.list(Some(&folder)),
        };
        let mut listing = Listing::default();
        while let Some(object) = objects.try_next().await.map_err(LogError::List)? {
            match object.location.filename() {
                Some(END) => listing.ended = true,
                Some(name) => {
                    if let Ok(first) = name.parse::<u64>() {
                        listing.chunks.push((first, first + object.size));
                    }
                }
                None => {}
            }
        }
        listing.chunks.sort_unstable();
        Ok(listing)
    }

    /// The length the marker tells, if there is one. A marker nobody can read counts as one that tells nothing.
    async fn length(&self, job: JobId, attempt: u32, stream: LogStream) -> Result<Option<u64>, LogError> {
        let marker = match self.objects.get(&marker_name(job, attempt, stream)).await {
            Ok(marker) => marker.bytes().await.map_err(LogError::Read)?,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(LogError::Read(error)),
        };
        Ok(Some(std::str::from_utf8(&marker).ok().and_then(|text| text.parse().ok()).unwrap_or(0)))
    }
}

fn folder(job: JobId, attempt: u32, stream: LogStream) -> Path {
    Path::from(format!("{job}/{attempt}/{stream}"))
}

fn chunk_name(job: JobId, attempt: u32, stream: LogStream, offset: u64) -> Path {
    // Twenty digits hold any u64.
    Path::from(format!("{job}/{attempt}/{stream}/{offset:020}"))
}

fn marker_name(job: JobId, attempt: u32, stream: LogStream) -> Path {
    Path::from(format!("{job}/{attempt}/{stream}/{END}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OUT: LogStream = LogStream::Stdout;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    /// Everything readable from `offset`, in reads of `limit`, and whether it ended.
    async fn read_all(logs: &LogStore, job: JobId, mut offset: u64, limit: usize) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        loop {
            let piece = logs.read(job, 1, OUT, offset, limit).await.unwrap();
            assert!(piece.bytes.len() <= limit);
            all.extend_from_slice(&piece.bytes);
            if piece.complete || piece.next_offset == offset {
                return (all, piece.complete);
            }
            offset = piece.next_offset;
        }
    }

    #[tokio::test]
    async fn a_stream_reads_back_as_written_and_ends_at_its_marker() {
        let root = tempfile::tempdir().unwrap();
        let on_disk = LogStore::directory(&root.path().join("made/here")).unwrap();
        for logs in [LogStore::in_memory(), on_disk] {
            let job = JobId::generate();
            let nothing = logs.read(job, 1, OUT, 0, 100).await.unwrap();
            assert_eq!(nothing, LogPiece::default());
            assert_eq!(logs.append(job, 1, OUT, 0, bytes("hello ")).await.unwrap(), 6);
            assert_eq!(logs.append(job, 1, OUT, 6, bytes("world")).await.unwrap(), 11);
            let piece = logs.read(job, 1, OUT, 4, 4).await.unwrap();
            assert_eq!((&piece.bytes[..], piece.next_offset, piece.complete), (&b"o wo"[..], 8, false));
            assert_eq!(read_all(&logs, job, 0, 100).await, (b"hello world".to_vec(), false));
            logs.finish(job, 1, OUT, 11).await.unwrap();
            assert_eq!(read_all(&logs, job, 0, 3).await, (b"hello world".to_vec(), true));
            let past = logs.read(job, 1, OUT, 40, 100).await.unwrap();
            assert_eq!((past.bytes.len(), past.next_offset, past.complete), (0, 40, true));
            // Other attempts and streams are other logs.
            assert_eq!(logs.read(job, 2, OUT, 0, 100).await.unwrap(), LogPiece::default());
            assert_eq!(logs.resume(job, 1, LogStream::Stderr).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn an_empty_stream_is_complete_once_marked() {
        let (logs, job) = (LogStore::in_memory(), JobId::generate());
        logs.finish(job, 1, OUT, 0).await.unwrap();
        let piece = logs.read(job, 1, OUT, 0, 100).await.unwrap();
        assert_eq!(piece, LogPiece { complete: true, ..LogPiece::default() });
    }

    #[tokio::test]
    async fn an_adopter_goes_on_where_the_stored_bytes_end() {
        let (logs, job) = (LogStore::in_memory(), JobId::generate());
        logs.append(job, 1, OUT, 0, bytes("abc")).await.unwrap();
        logs.append(job, 1, OUT, 3, bytes("def")).await.unwrap();
        assert_eq!(logs.resume(job, 1, OUT).await.unwrap(), 6);
    }

    #[tokio::test]
    async fn a_late_short_chunk_of_a_zombie_takes_nothing_from_its_adopters() {
        let (logs, job) = (LogStore::in_memory(), JobId::generate());
        logs.append(job, 1, OUT, 0, bytes("abcdefgh")).await.unwrap();
        // The zombie read the stream when it was shorter, and writes only now.
        assert_eq!(logs.append(job, 1, OUT, 0, bytes("abc")).await.unwrap(), 8);
        logs.append(job, 1, OUT, 8, bytes("ij")).await.unwrap();
        assert_eq!(logs.append(job, 1, OUT, 3, bytes("def")).await.unwrap(), 6);
        assert_eq!(read_all(&logs, job, 0, 2).await.0, b"abcdefghij");
        // And the other way round: the short chunk came first, the longer one is stored behind it.
        let job = JobId::generate();
        logs.append(job, 1, OUT, 0, bytes("abc")).await.unwrap();
        assert_eq!(logs.append(job, 1, OUT, 0, bytes("abcdefgh")).await.unwrap(), 8);
        assert_eq!(read_all(&logs, job, 0, 100).await.0, b"abcdefgh");
    }

    #[tokio::test]
    async fn a_hole_is_waited_for_until_the_marker_says_nothing_follows() {
        let (logs, job) = (LogStore::in_memory(), JobId::generate());
        logs.append(job, 1, OUT, 0, bytes("head")).await.unwrap();
        logs.append(job, 1, OUT, 100, bytes("tail")).await.unwrap();
        let waiting = logs.read(job, 1, OUT, 4, 100).await.unwrap();
        assert_eq!(waiting, LogPiece { next_offset: 4, ..LogPiece::default() });
        assert_eq!(logs.extent(job, 1, OUT, 0).await.unwrap(), (4, false));
        logs.finish(job, 1, OUT, 104).await.unwrap();
        assert_eq!(logs.extent(job, 1, OUT, 0).await.unwrap(), (104, true));
        let head = logs.read(job, 1, OUT, 0, 100).await.unwrap();
        assert_eq!((&head.bytes[..], head.next_offset, head.complete), (&b"head"[..], 4, false));
        let tail = logs.read(job, 1, OUT, 4, 100).await.unwrap();
        assert_eq!((&tail.bytes[..], tail.next_offset, tail.complete), (&b"tail"[..], 104, true));
    }

    #[tokio::test]
    async fn a_long_append_becomes_chunks_that_can_be_read_from_anywhere() {
        let (logs, job) = (LogStore::in_memory(), JobId::generate());
        let text: Vec<u8> = (0..3 * MAX_CHUNK + 17).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let end = logs.append(job, 1, OUT, 0, text.clone().into()).await.unwrap();
        assert_eq!(end, text.len() as u64);
        for from in [0, 1, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK + 16] {
            let (read, _) = read_all(&logs, job, from as u64, MAX_CHUNK / 2).await;
            assert!(read == text[from..], "from {from}");
        }
    }

    #[tokio::test]
    async fn removing_a_job_leaves_no_trace_of_it_and_touches_no_other() {
        let root = tempfile::tempdir().unwrap();
        let logs = LogStore::directory(root.path()).unwrap();
        let (gone, kept) = (JobId::generate(), JobId::generate());
        for job in [gone, kept] {
            for stream in LogStream::ALL {
                logs.append(job, 1, stream, 0, bytes("x")).await.unwrap();
                logs.finish(job, 1, stream, 1).await.unwrap();
            }
        }
        logs.remove(&[gone, JobId::generate()]).await.unwrap();
        logs.remove(&[gone]).await.unwrap();
        assert_eq!(logs.read(gone, 1, OUT, 0, 10).await.unwrap(), LogPiece::default());
        assert_eq!(read_all(&logs, kept, 0, 10).await, (b"x".to_vec(), true));
        let left: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [std::ffi::OsString::from(kept.to_string())]);
    }

    #[tokio::test]
    async fn a_note_of_what_is_to_go_stays_until_it_is_struck_out() {
        let root = tempfile::tempdir().unwrap();
        let at = |millis| DateTime::from_timestamp_millis(millis).unwrap();
        for logs in [LogStore::in_memory(), LogStore::directory(root.path()).unwrap()] {
            let jobs: Vec<JobId> = (0..3).map(|_| JobId::generate()).collect();
            logs.append(jobs[0], 1, OUT, 0, bytes("x")).await.unwrap();
            let made_before = |millis| logs.dooms(at(millis)).try_collect::<Vec<Doom>>();
            assert_eq!(logs.doom(&[], at(0)).await.unwrap(), None);
            let late = logs.doom(&jobs[1..], at(2_000)).await.unwrap().unwrap();
            let early = logs.doom(&jobs[..1], at(999)).await.unwrap().unwrap();
            // Another remover, of the same job in the same moment.
            let twin = logs.doom(&jobs[..1], at(999)).await.unwrap().unwrap();
            logs.strike_out(twin).await.unwrap();
            assert_eq!(made_before(999).await.unwrap(), []);
            assert_eq!(made_before(1_000).await.unwrap(), std::slice::from_ref(&early));
            assert_eq!(made_before(2_001).await.unwrap().len(), 2);
            for (note, about) in [(early, &jobs[..1]), (late, &jobs[1..])] {
                assert_eq!(logs.doomed(&note).await.unwrap().unwrap(), about);
                logs.strike_out(note.clone()).await.unwrap();
                logs.strike_out(note.clone()).await.unwrap();
                assert_eq!(logs.doomed(&note).await.unwrap(), None);
            }
            assert_eq!(made_before(9_999).await.unwrap(), []);
            assert_eq!(logs.resume(jobs[0], 1, OUT).await.unwrap(), 1, "a note removes nothing");
        }
    }

    proptest! {
        /// Two writers ship the same stream, each in pieces of its own, interleaved at will; each may stop anywhere.
        #[test]
        fn any_two_writers_of_one_stream_read_back_as_that_stream(
            cuts in prop::collection::vec((any::<bool>(), 1usize..40), 1..30),
            limit in 1usize..50,
        ) {
            let text: Vec<u8> = (0..200u8).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (logs, job) = (LogStore::in_memory(), JobId::generate());
                let mut at = [0usize; 2];
                for (writer, length) in cuts {
                    let at = &mut at[usize::from(writer)];
                    let end = (*at + length).min(text.len());
                    if *at < end {
                        let piece = Bytes::copy_from_slice(&text[*at..end]);
                        let next = logs.append(job, 1, OUT, *at as u64, piece).await.unwrap();
                        assert!(next >= end as u64);
                        *at = usize::try_from(next).unwrap();
                    }
                }
                let furthest = at[0].max(at[1]);
                assert_eq!(logs.resume(job, 1, OUT).await.unwrap(), furthest as u64);
                logs.finish(job, 1, OUT, furthest as u64).await.unwrap();
                assert_eq!(read_all(&logs, job, 0, limit).await, (text[..furthest].to_vec(), true));
            });
        }
    }
}
