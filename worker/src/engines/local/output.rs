//! What a job prints: carried from its pipe into a file up to a limit, read and dropped beyond it, so that a job is never
//! blocked, killed or allowed to fill the disk by its own output.

use rustix::{fs::OFlags, io::Errno};
use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// One stream on its way.
#[derive(Debug)]
pub(super) struct Pump {
    /// `None` once every writer has closed its end.
    from: Option<OwnedFd>,
    to: File,
    limit: u64,
    written: u64,
    dropped: u64,
    /// Why the file takes no more, if that is not the limit.
    broken: Option<io::Error>,
    at_line_start: bool,
}

/// What one turn carries at most, in pieces of the buffer: a flood on one stream must not keep the others waiting.
const PIECES_PER_TURN: u32 = 16;

impl Pump {
    pub(super) fn new(from: OwnedFd, to: File, limit: u64) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&from)?;
        rustix::fs::fcntl_setfl(&from, flags | OFlags::NONBLOCK)?;
        let (written, dropped) = (0, 0);
        Ok(Self { from: Some(from), to, limit, written, dropped, broken: None, at_line_start: true })
    }

    /// What to poll, until every writer has closed its end.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(AsFd::as_fd)
    }

    /// Carries what there is; whether there may be more at once.
    pub(super) fn carry(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..PIECES_PER_TURN {
            let Some(from) = &self.from else { return false };
            match rustix::io::read(from, &mut *buffer) {
                Ok(0) => self.from = None,
                Ok(n) => self.keep(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // A pipe has no other errors; should one come, nothing more will.
                Err(_) => self.from = None,
            }
        }
        true
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = if self.broken.is_some() { 0 } else { self.limit - self.written };
        let kept = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        if kept > 0 {
            match self.to.write_all(&bytes[..kept]) {
                Ok(()) => {
                    self.written += kept as u64;
                    self.at_line_start = bytes[kept - 1] == b'\n';
                }
                Err(error) => {
                    self.broken = Some(error);
                    self.dropped += kept as u64;
                }
            }
        }
        self.dropped += (bytes.len() - kept) as u64;
    }

    /// Says in a last line what is missing, if anything is.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.dropped == 0 {
            return Ok(());
        }
        let why = match &self.broken {
            Some(error) => format!("could not be written: {error}"),
            None => format!("dropped: more than {} bytes", self.limit),
        };
        let newline = if self.at_line_start { "" } else { "\n" };
        self.to.write_all(format!("{newline}[jobgate: {} bytes {why}]\n", self.dropped).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    /// What stands in the file after `pieces` went through.
    fn carried(limit: u64, pieces: &[&[u8]]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let (reader, mut writer) = io::pipe().unwrap();
        let mut pump = Pump::new(reader.into(), File::create_new(&path).unwrap(), limit).unwrap();
        let mut buffer = [0; 8];
        for piece in pieces {
            writer.write_all(piece).unwrap();
            while pump.carry(&mut buffer) {}
        }
        assert!(pump.source().is_some());
        drop(writer);
        // A process that another test is just forking holds the writer's end too, until it executes.
        while let Some(source) = pump.source() {
            let deadline = Timespec { tv_sec: 30, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&deadline)).unwrap();
            assert!(ready > 0, "the end of the stream never came");
            pump.carry(&mut buffer);
        }
        pump.finish().unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn output_within_the_limit_is_kept_as_it_is() {
        assert_eq!(carried(10, &[b"01234", b"56789"]), "0123456789");
        assert_eq!(carried(0, &[]), "");
    }

    #[test]
    fn output_beyond_the_limit_is_counted_in_a_line_of_its_own() {
        let last = "[jobgate: 25 bytes dropped: more than 5 bytes]\n";
        assert_eq!(carried(5, &[b"0123456789", b"01234567890123456789"]), format!("01234\n{last}"));
        assert_eq!(carried(5, &[b"0123\n", b"0123456789012345678901234"]), format!("0123\n{last}"));
    }

    #[test]
    fn output_that_cannot_be_written_is_still_read() {
        let (reader, mut writer) = io::pipe().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut pump = Pump::new(reader.into(), full, 100).unwrap();
        let mut buffer = [0; 8];
        for _ in 0..1000 {
            writer.write_all(&[b'x'; 1024]).unwrap();
            while pump.carry(&mut buffer) {}
        }
        assert_eq!((pump.written, pump.dropped), (0, 1_024_000));
        assert!(pump.broken.is_some());
    }
}
