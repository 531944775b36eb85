//! Keeps a node powered over its own reboots: the hidden command `lab supervise`.
//!
//! User-Mode Linux reboots by executing itself anew and then cannot open its taps again, so it would be dead to the
//! network for ever. The supervisor reads the node's console, takes a rebooting node's power away and gives it back.
//! It ends when the node ends by itself. What it starts descends from it, so that a power cut reaches both (see
//! [`crate::process::ProcessId`]).
//!
//! It is the node's power switch as well, for fence agents: a listener in the management network that takes one word a
//! connection, `off`, `on` or `status`, and answers `done`, `on` or `off`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
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

/// Limit for one word at the power switch.
const WORD: Duration = Duration::from_secs(2);

/// The node's power.
#[derive(Default)]
struct Power {
    /// Switched off by a fence agent.
    off: bool,
    /// The node's process while it lives.
    machine: Option<ProcessId>,
}

type Shared = Arc<Mutex<Power>>;

fn with<T>(power: &Shared, look: impl FnOnce(&mut Power) -> T) -> T {
    look(&mut power.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `argv` until it ends by itself. `scratch` is removed before each start: User-Mode Linux refuses to start
/// while it names a process that happens to live again. The power switch listens at `switch`.
#[must_use]
pub fn run(scratch: &Path, switch: SocketAddr, argv: &[String]) -> ExitCode {
    let power = Shared::default();
    if let Err(e) = listen(switch, &power) {
        say(format!("lab: no power switch at {switch}: {e}\n").as_bytes());
    }
    loop {
        while with(&power, |p| p.off) {
            thread::sleep(Duration::from_millis(50));
        }
        // It need not exist.
        let _ = fs::remove_dir_all(scratch);
        let ended = once(argv, &power);
        match ended {
            Ok(_) if with(&power, |p| p.off) => say(b"lab: switched off\n"),
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

fn listen(at: SocketAddr, power: &Shared) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    let power = Arc::clone(power);
    thread::spawn(move || {
        for mut caller in listener.incoming().flatten() {
            // A caller that says nothing gets no answer.
            let _ = caller.set_read_timeout(Some(WORD));
            let mut word = String::new();
            if read_word(&caller, &mut word).is_ok() {
                let _ = caller.write_all(switch(&power, word.trim()).as_bytes());
            }
        }
    });
    Ok(())
}

fn read_word(caller: &TcpStream, word: &mut String) -> io::Result<usize> {
    BufReader::new(caller.take(64)).read_line(word)
}

/// Does what a fence agent asks for.
fn switch(power: &Shared, word: &str) -> &'static str {
    match word {
        "off" => {
            let machine = with(power, |p| {
                p.off = true;
                p.machine
            });
            // Off is off only once it is gone.
            if machine.is_none_or(ProcessId::kill) { "done\n" } else { "failed\n" }
        }
        "on" => {
            with(power, |p| p.off = false);
            "done\n"
        }
        "status" if with(power, |p| p.off && !p.machine.is_some_and(ProcessId::alive)) => "off\n",
        "status" => "on\n",
        _ => "unknown\n",
    }
}

/// One life of the node; whether it ended in a reboot.
fn once(argv: &[String], power: &Shared) -> Result<bool, LabError> {
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
    let machine = i32::try_from(child.id()).ok().and_then(ProcessId::of);
    with(power, |p| p.machine = machine);
    let rebooted = follow(reader);
    if rebooted && let Some(machine) = machine {
        machine.kill();
    }
    // Killed, or its output has ended; what it says no longer matters.
    let _ = child.wait();
    with(power, |p| p.machine = None);
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
        assert!(!once(&argv, &Shared::default()).unwrap());
        let argv = ["sh", "-c", "echo 'reboot: Restarting system'; sleep 60"].map(str::to_owned);
        assert!(once(&argv, &Shared::default()).unwrap());
    }

    #[test]
    fn switched_off_is_said_only_once_the_machine_is_gone() {
        let power = Shared::default();
        assert_eq!(switch(&power, "status"), "on\n");
        let argv = ["sh", "-c", "sleep 60"].map(str::to_owned);
        let running = Arc::clone(&power);
        let life = thread::spawn(move || once(&argv, &running).unwrap());
        while with(&power, |p| p.machine.is_none()) {
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(switch(&power, "off"), "done\n");
        assert!(!life.join().unwrap());
        assert_eq!((switch(&power, "status"), switch(&power, "x")), ("off\n", "unknown\n"));
        assert_eq!((switch(&power, "on"), switch(&power, "status")), ("done\n", "on\n"));
    }
}
