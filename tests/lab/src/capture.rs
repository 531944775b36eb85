//! Packets of a node, taken from outside of it: at its tap, where its kernel cannot hide or delay any.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::LabError;
use crate::netns::Namespace;
use crate::process::MARK;
use crate::spec::Node;
use crate::sys::{self, SHORT};

/// Limit for the capture to begin and to end.
const PROMPT: Duration = Duration::from_secs(5);

/// Time for packets on their way to reach the file before the capture ends.
const SETTLE: Duration = Duration::from_millis(200);

/// A running capture. Ends when dropped.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Begins; when this returns, packets are being taken.
    pub(crate) fn begin(
        namespace: &Namespace,
        lab: &str,
        node: &Node,
        filter: &str,
        file: PathBuf,
    ) -> Result<Self, LabError> {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-i"]);
        command.arg(node.tap()).arg("-w").arg(&file).arg(filter);
        command.env(MARK, lab).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = namespace.enter(move || sys::spawn(&mut command))?;
        let mut capture = Self { child, file };
        capture.wait_listening()?;
        Ok(capture)
    }

    fn wait_listening(&mut self) -> Result<(), LabError> {
        let err = self.child.stderr.take();
        let (tx, rx) = channel();
        thread::spawn(move || {
            // Read to the end: it must never find its error output closed.
            for line in
                err.into_iter().flat_map(|e| BufReader::new(e).lines()).map_while(Result::ok)
            {
                let _ = tx.send(line);
            }
        });
        let end = Instant::now() + PROMPT;
        let mut said = Vec::new();
        while let Ok(line) = rx.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line.contains("listening on") {
                return Ok(());
            }
            said.push(line);
        }
        let (command, stderr) = ("tcpdump".to_owned(), said.join("\n"));
        Err(LabError::Program { command, status: "does not listen".to_owned(), stderr })
    }

    /// Ends; what was captured.
    ///
    /// # Errors
    /// If the program does not end or the file cannot be read.
    pub fn end(mut self) -> Result<Captured, LabError> {
        thread::sleep(SETTLE);
        self.stop();
        Captured::read(&self.file)
    }

    fn stop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Ends in good order; it may have ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        let end = Instant::now() + PROMPT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A finished capture.
#[derive(Clone, Debug)]
pub struct Captured {
    /// The whole file, in the format of pcap-savefile(5).
    pub pcap: Vec<u8>,
    /// One line per packet: seconds since the epoch, then tcpdump's words.
    pub lines: Vec<String>,
}

impl Captured {
    fn read(file: &Path) -> Result<Self, LabError> {
        let pcap = fs::read(file).map_err(LabError::io("read", file))?;
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-e", "-tt", "-r"]).arg(file);
        let text = sys::run(command, SHORT)?;
        Ok(Self { pcap, lines: text.lines().map(str::to_owned).collect() })
    }
}
