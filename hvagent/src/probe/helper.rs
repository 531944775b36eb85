//! The helper's side: the only code of the agent that touches a mount. Blocking, single-threaded,
//! without state worth keeping: it may be killed at any moment.
//!
//! The fresh open asks for a name that has never existed. A server in grace refuses every new open
//! before it looks for the name, and the client retries until grace is over; after it, the answer
//! is «no such file». No open state, delegation or cached name can answer in the server's place,
//! and nothing is written to the share. The read goes past the page cache (`O_DIRECT`).

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::protocol::{self, LONGEST_LINE, Outcome, Reply, Request, What};

/// Name of the probe file in the root of the mount.
pub const FILE: &str = ".hvagent-probe";

/// Size of the probe file and of a read. The largest alignment that `O_DIRECT` asks for anywhere.
const BLOCK: usize = 4096;

/// What a helper probes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The mount point.
    pub mount: PathBuf,
    /// Device of the file system that is expected there (mountinfo's third field): a mount point
    /// that has lost its mount must not answer for it.
    pub device: (u32, u32),
    /// Read past the cache. Only tests on other file systems do without.
    pub direct: bool,
}

/// What is kept.
struct Held {
    root: OwnedFd,
    file: File,
}

/// The helper.
pub struct Helper {
    target: Target,
    held: Option<Held>,
    /// Makes every asked name new: process, start, count.
    salt: u128,
    opens: u64,
}

impl Helper {
    /// For a mount that is not touched yet.
    #[must_use]
    pub fn new(target: Target) -> Self {
        let salt = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Self { target, held: None, salt, opens: 0 }
    }

    /// Answers requests until the input ends, which it does when the agent is gone.
    ///
    /// # Errors
    /// Input or output failed, or a request was not understood: the helper ends.
    pub fn serve(
        &mut self,
        mut input: impl BufRead,
        mut output: impl Write,
    ) -> std::io::Result<()> {
        loop {
            let mut line = Vec::new();
            let limit = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX).saturating_add(1);
            if input.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let request =
                protocol::parse::<Request>(line.trim_ascii_end()).map_err(std::io::Error::other)?;
            let reply = self.answer(request);
            output.write_all(&protocol::line(&reply).map_err(std::io::Error::other)?)?;
            output.flush()?;
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        let begin = Instant::now();
        let done = match request.what {
            What::Prepare => self.prepare(),
            What::Hold => self.hold(),
            What::Read => self.read(),
            What::Open => self.open(),
            What::Drop => {
                self.held = None;
                Ok(())
            }
            What::Visit => self.visit(),
        };
        let took_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let outcome = match done {
            Ok(()) => Outcome::Good,
            Err(errno) => Outcome::Error { errno: errno.raw_os_error() },
        };
        Reply { id: request.id, outcome, took_us }
    }

    /// The root of the expected file system, or EXDEV if another one is there.
    fn root(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.target.mount, flags, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        let found = (rustix::fs::major(device), rustix::fs::minor(device));
        if found == self.target.device { Ok(root) } else { Err(Errno::XDEV) }
    }

    fn prepare(&self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let mut file = File::from(rustix::fs::openat(self.root()?, FILE, flags, mode)?);
        let size = file.metadata().map_err(number)?.len();
        if size < u64::try_from(BLOCK).unwrap_or(u64::MAX) {
            file.write_all(&[0; BLOCK]).and_then(|()| file.sync_all()).map_err(number)?;
        }
        Ok(())
    }

    fn hold(&mut self) -> Result<(), Errno> {
        let direct = if self.target.direct { OFlags::DIRECT } else { OFlags::empty() };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | direct;
        let root = self.root()?;
        let file = File::from(rustix::fs::openat(&root, FILE, flags, Mode::empty())?);
        self.held = Some(Held { root, file });
        Ok(())
    }

    /// Nothing read is nothing proven: ENODATA.
    fn read(&self) -> Result<(), Errno> {
        let held = self.held.as_ref().ok_or(Errno::BADF)?;
        let mut room = vec![0_u8; 2 * BLOCK];
        let skip = room.as_ptr().align_offset(BLOCK);
        let block = room.get_mut(skip..skip.saturating_add(BLOCK)).ok_or(Errno::INVAL)?;
        match held.file.read_at(block, 0).map_err(number)? {
            0 => Err(Errno::NODATA),
            _ => Ok(()),
        }
    }

    fn open(&mut self) -> Result<(), Errno> {
        let name = self.fresh_name();
        open_fresh(&self.held.as_ref().ok_or(Errno::BADF)?.root, &name)
    }

    fn visit(&mut self) -> Result<(), Errno> {
        let name = self.fresh_name();
        open_fresh(&self.root()?, &name)
    }

    fn fresh_name(&mut self) -> String {
        self.opens = self.opens.saturating_add(1);
        format!(".hvagent-fresh-{}-{:x}-{}", std::process::id(), self.salt, self.opens)
    }
}

fn open_fresh(root: &OwnedFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(root, name, flags, Mode::empty()) {
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(other) => Err(other),
    }
}

fn number(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(dir: &std::path::Path) -> Target {
        use std::os::unix::fs::MetadataExt;
        let device = std::fs::metadata(dir).unwrap().dev();
        let device = (rustix::fs::major(device), rustix::fs::minor(device));
        Target { mount: dir.to_owned(), device, direct: false }
    }

    fn ask(helper: &mut Helper, all: &[What]) -> Vec<Outcome> {
        let requests = all.iter().zip(1..).map(|(what, id)| Request { id, what: *what });
        let input: Vec<u8> = requests.flat_map(|r| protocol::line(&r).unwrap()).collect();
        let mut output = Vec::new();
        helper.serve(&input[..], &mut output).unwrap();
        let replies = output.split_inclusive(|b| *b == b'\n');
        replies.map(|l| protocol::parse::<Reply>(l).unwrap().outcome).collect()
    }

    const fn errno(errno: i32) -> Outcome {
        Outcome::Error { errno }
    }

    #[test]
    fn all_goes_well() {
        let dir = tempfile::tempdir().unwrap();
        let mut h = Helper::new(target(dir.path()));
        let all = [What::Prepare, What::Hold, What::Read, What::Open, What::Open, What::Read];
        assert_eq!(ask(&mut h, &all), [Outcome::Good; 6]);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "only the probe file is there");
        assert_eq!(ask(&mut h, &[What::Prepare]), [Outcome::Good], "and may be there already");
    }

    #[test]
    fn a_visit_keeps_nothing_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut h = Helper::new(target(dir.path()));
        let kept = [What::Prepare, What::Visit, What::Hold, What::Read];
        assert_eq!(ask(&mut h, &kept), [Outcome::Good; 4]);
        assert_eq!(ask(&mut h, &[What::Drop, What::Visit]), [Outcome::Good; 2]);
        assert!(h.held.is_none());
        assert_eq!(ask(&mut h, &[What::Read, What::Open]), [errno(9), errno(9)]);
    }

    #[test]
    fn past_the_cache_where_the_file_system_can() {
        let dir = tempfile::tempdir().unwrap();
        let mut h = Helper::new(Target { direct: true, ..target(dir.path()) });
        let outcomes = ask(&mut h, &[What::Prepare, What::Hold, What::Read]);
        if outcomes[1] == errno(22) {
            eprintln!("skipped: no O_DIRECT below {}", dir.path().display());
            return;
        }
        assert_eq!(outcomes, [Outcome::Good; 3]);
    }

    #[test]
    fn another_file_system_is_not_taken_for_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let mut h = Helper::new(Target { device: (0, 0xfffff), ..target(dir.path()) });
        let all = [What::Prepare, What::Hold, What::Read, What::Open];
        assert_eq!(ask(&mut h, &all), [errno(18), errno(18), errno(9), errno(9)]);
    }

    #[test]
    fn nothing_read_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"").unwrap();
        let mut h = Helper::new(target(dir.path()));
        assert_eq!(ask(&mut h, &[What::Hold, What::Read]), [Outcome::Good, errno(61)]);
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(FILE)).unwrap();
        let mut h = Helper::new(target(dir.path()));
        assert_eq!(ask(&mut h, &[What::Prepare, What::Hold]), [errno(40), errno(40)]);
    }

    #[test]
    fn nonsense_ends_the_helper() {
        let dir = tempfile::tempdir().unwrap();
        let mut h = Helper::new(target(dir.path()));
        assert!(h.serve(&b"hello\n"[..], Vec::new()).is_err());
        assert!(h.serve(&vec![b' '; 10_000][..], Vec::new()).is_err());
        assert!(h.serve(&b""[..], Vec::new()).is_ok());
    }
}
