//! The threads that look at the host: mounts, the kernel's log, sanlock. Each may wait for the kernel or a
//! daemon, and the agent's task never waits for them (S10). None of them touches a mount.

use std::io::{Read, Seek, SeekFrom};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use nasd_sanlock::{Client, Error, SOCKET};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::input::{Input, Pace};
use crate::config::Intervals;
use crate::mounts::host::{Files, look};
use crate::mounts::kmsg;
use crate::sanlock::Survey;

/// The kernel's log; each read is one record, and none is longer than this.
const KMSG: &str = "/dev/kmsg";
const LONGEST_RECORD: usize = 8192;
/// For one question to sanlock.
const SANLOCK_LIMIT: Duration = Duration::from_secs(2);
/// Stack of a thread. Parsing needs little of it.
const STACK: usize = 256 * 1024;

/// What is heard, by the agent's clock.
pub type Ears = mpsc::Sender<Input>;

/// Starts a named thread.
///
/// # Errors
/// The system has no room for it.
fn start(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    thread.spawn(body).map(drop)
}

/// `false`: the agent is gone. An agent that has fallen behind loses this look and gets the next.
fn tell(ears: &Ears, input: Input) -> bool {
    !matches!(ears.try_send(input), Err(TrySendError::Closed(_)))
}

/// Looks at the mounts until the agent is gone; the pace can be told.
///
/// # Errors
/// No thread could be started.
pub fn mounts(
    files: Files,
    intervals: Intervals,
    ears: Ears,
) -> std::io::Result<std_mpsc::Sender<Pace>> {
    let (tell_pace, pace) = std_mpsc::channel();
    start("hvagent-sample", move || sample(&files, intervals, &ears, &pace))?;
    Ok(tell_pace)
}

fn sample(files: &Files, intervals: Intervals, ears: &Ears, paces: &std_mpsc::Receiver<Pace>) {
    let mut pace = Pace::Rest;
    loop {
        let looked = look(files).map_err(|error| error.to_string());
        if !tell(ears, Input::Looked(looked)) {
            return;
        }
        let pause = match pace {
            Pace::Rest => intervals.rest,
            Pace::Busy => intervals.busy,
        };
        match paces.recv_timeout(pause) {
            Ok(other) => pace = paces.try_iter().last().unwrap_or(other),
            Err(std_mpsc::RecvTimeoutError::Timeout) => {}
            Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Reads the kernel's log from now on.
///
/// # Errors
/// No thread could be started.
pub fn kernel(ears: Ears) -> std::io::Result<()> {
    start("hvagent-kmsg", move || {
        let why = match listen(&ears) {
            Ok(()) => return,
            Err(error) => error,
        };
        tell(
            &ears,
            Input::KernelUnheard(format!(
                "the kernel's log cannot be read ({why}): lost locks would not be seen; run the agent as root"
            )),
        );
    })
}

fn listen(ears: &Ears) -> std::io::Result<()> {
    let mut log = std::fs::File::open(KMSG)?;
    log.seek(SeekFrom::End(0))?;
    let mut sequence = kmsg::Sequence::default();
    let mut buffer = vec![0; LONGEST_RECORD];
    loop {
        let read = match log.read(&mut buffer) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            // Overwritten before it was read: the gap in the numbers tells how many.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let Ok(record) = kmsg::record(buffer.get(..read).unwrap_or_default()) else { continue };
        let lost = sequence.take(record.sequence);
        let gap = (lost > 0).then(|| {
            let words =
                format!("{lost} lines of the kernel's log were lost: look for lost locks there");
            Input::KernelUnheard(words)
        });
        let event = kmsg::event(&record).map(Input::Kernel);
        // Lost locks must not be lost a second time: this thread may wait for the agent.
        if gap.into_iter().chain(event).any(|input| ears.blocking_send(input).is_err()) {
            return Ok(());
        }
    }
}

/// Asks sanlock, again and again.
///
/// # Errors
/// No thread could be started.
pub fn leases(origin: Instant, every: Duration, ears: Ears) -> std::io::Result<()> {
    start("hvagent-leases", move || {
        let client = Client::new(SOCKET, SANLOCK_LIMIT);
        while tell(&ears, Input::Leases(survey(&client, origin))) {
            std::thread::sleep(every);
        }
    })
}

fn survey(client: &Client, origin: Instant) -> Result<Option<Survey>, String> {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    match Survey::take(client, origin.elapsed()) {
        Ok(survey) => Ok(Some(survey)),
        Err(Error::Connect { source, .. })
            if matches!(source.kind(), NotFound | ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_looks_at_its_pace_and_ends_with_the_agent() {
        let (ears, mut heard) = mpsc::channel(64);
        let intervals = Intervals {
            rest: Duration::from_secs(60),
            busy: Duration::from_millis(5),
            ..Intervals::default()
        };
        let pace = mounts(Files::default(), intervals, ears).unwrap();
        assert!(matches!(heard.blocking_recv(), Some(Input::Looked(Ok(_)))));
        pace.send(Pace::Busy).unwrap();
        for _ in 0..3 {
            assert!(matches!(heard.blocking_recv(), Some(Input::Looked(Ok(_)))));
        }
        drop(pace);
        while heard.blocking_recv().is_some() {}
    }

    #[test]
    fn nobody_on_sanlocks_socket_is_no_lease_and_no_error() {
        let client = Client::new("/nonexistent/sanlock.sock", Duration::from_millis(100));
        assert_eq!(survey(&client, Instant::now()), Ok(None));
    }
}
