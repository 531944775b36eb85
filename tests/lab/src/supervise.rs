//! Keeps a node powered over its own reboots: the hidden command `lab supervise`.
//!
//! User-Mode Linux reboots by executing itself anew and then cannot open its taps again, so it would be dead to the
//! network for ever. The supervisor reads the node's console, takes a rebooting node's power away and gives it back.
//! It ends when the node ends by itself. What it starts descends from it, so that faults reach both (see
//! [`crate::process::ProcessId`]).

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use crate::error::LabError;
use crate::process::ProcessId;
use crate::sys;

/// What a console says when its node reboots: by sysrq, in good order, and, should both have been missed, when the
/// new kernel misses its taps.
const REBOOTS: [&str; 3] =
    ["sysrq: Resetting", "reboot: Restarting system", "uml_tap: failed to select tap interface"];

/// What is written to the console for each new start.
pub const STARTED_AGAIN: &str = "lab: the node has rebooted: started again";

/// Between the end of a rebooting node and its new start, as a machine's firmware takes a moment.
const FIRMWARE: Duration = Duration::from_millis(500);

/// Runs `argv` until it ends by itself. `scratch` is removed before each start: User-Mode Linux refuses to start
/// while it names a process that happens to live again.
#[must_use]
pub fn run(scratch: &Path, argv: &[String]) -> ExitCode {
    loop {
        // It need not exist.
        let _ = fs::remove_dir_all(scratch);
        match once(argv) {
            Ok(true) => {
                thread::sleep(FIRMWARE);
                say(STARTED_AGAIN.as_bytes());
                say(b"\n");
            }
            Ok(false) => return ExitCode::SUCCESS,
            Err(e) => {
                say(format!("lab: {e}\n").as_bytes());
                return ExitCode::FAILURE;
            }
        }
    }
}

/// One life of the node; whether it ended in a reboot.
fn once(argv: &[String]) -> Result<bool, LabError> {
    let Some((program, args)) = argv.split_first() else { return Ok(false) };
    let failed = |e| LabError::io("start", program)(e);
    let (reader, writer) = io::pipe().map_err(failed)?;
    let mut child = {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
        // The command goes, and with it this side's ends for writing: the reader sees the end.
        sys::spawn(&mut command)?
    };
    let rebooted = follow(reader);
    if rebooted && let Some(id) = i32::try_from(child.id()).ok().and_then(ProcessId::of) {
        id.kill();
    }
    // Killed, or its output has ended; what it says no longer matters.
    let _ = child.wait();
    Ok(rebooted)
}

/// Copies the console to standard output until it says that the node reboots, or ends.
fn follow(mut console: impl Read) -> bool {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = console.read(&mut buffer) {
        let new = buffer.get(..n).unwrap_or_default();
        say(new);
        seen.extend_from_slice(new);
        if reboots(&seen) {
            return true;
        }
        // The beginning of a message may be there already.
        let kept = seen.len().min(80);
        seen.drain(..seen.len() - kept);
    }
    false
}

fn reboots(text: &[u8]) -> bool {
    REBOOTS.iter().any(|r| text.windows(r.len()).any(|w| w == r.as_bytes()))
}

/// The console's file is standard output. Nobody is left to be told when it cannot be written.
fn say(bytes: &[u8]) {
    let mut out = io::stdout();
    let _ = out.write_all(bytes);
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its pieces one per read.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_reboot_is_seen_though_its_message_comes_in_pieces() {
        assert!(follow(Pieces(vec![b"x\nsysrq: Res", b"etting\n", b"never read"])));
        assert!(!follow(Pieces(vec![b"reboot: ", b"not the message"])));
    }

    #[test]
    fn a_node_that_ends_by_itself_is_not_started_again() {
        let argv = ["sh", "-c", "echo done"].map(str::to_owned);
        assert!(!once(&argv).unwrap());
        let argv = ["sh", "-c", "echo 'reboot: Restarting system'; sleep 60"].map(str::to_owned);
        assert!(once(&argv).unwrap());
    }
}
