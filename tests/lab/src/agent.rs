//! The agent that runs in every node and does what the lab program asks over the management network.
//!
//! Commands may hang for ever in the kernel; the agent must not. Each connection has its own thread, a process that
//! overruns its limit is killed and no longer waited for, and a lab program that goes away takes its command with it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wire::{CHUNK, Frame, Reply, Request};

/// Folder in the node for the outputs of background jobs.
const JOB_DIR: &str = "/run/lab-agent";

/// After a process has ended, how long its descendants may still write to its outputs.
const LINGER: Duration = Duration::from_millis(500);

/// How often a running process is looked at; the lower, the less a command's end is late.
const POLL: Duration = Duration::from_millis(2);

/// Serves requests for ever.
///
/// # Errors
/// Only if the address cannot be listened on.
pub fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    fs::create_dir_all(JOB_DIR)?;
    let agent = Arc::new(Agent::new());
    for stream in listener.incoming() {
        // A failed accept concerns one peer only.
        let Ok(stream) = stream else { continue };
        let agent = Arc::clone(&agent);
        thread::spawn(move || agent.answer(&stream));
    }
    Ok(())
}

/// A background job, shared between the thread that reaps it and those that ask about it.
struct JobState {
    pid: u32,
    status: Mutex<Option<i32>>,
}

struct Agent {
    jobs: Mutex<HashMap<u64, Arc<JobState>>>,
    next: AtomicU64,
}

impl Agent {
    /// Numbers of jobs go on rising over a restart of the node: who holds an old one must not meet another's job.
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let first = u64::try_from(since.as_millis()).unwrap_or_default();
        Self { jobs: Mutex::default(), next: AtomicU64::new(first) }
    }

    fn answer(&self, stream: &TcpStream) {
        let mut reader = stream;
        let mut writer = stream;
        let Ok(Frame::Request(request)) = Frame::read(&mut reader) else { return };
        let reply = self.handle(request, stream).unwrap_or_else(|e| Reply::Failed(e.to_string()));
        // The asker may be gone; then nobody wants the answer.
        let _ = Frame::Done(reply).write(&mut writer);
    }

    fn handle(&self, request: Request, stream: &TcpStream) -> io::Result<Reply> {
        match request {
            Request::Ping => Ok(Reply::Ok),
            Request::Exec { argv, timeout_ms } => {
                exec(&argv, Duration::from_millis(timeout_ms), stream)
            }
            Request::Spawn { argv } => self.spawn(&argv),
            Request::Wait { job, timeout_ms } => {
                Ok(wait(&*self.job(job)?, Duration::from_millis(timeout_ms)))
            }
            Request::Kill { job, signal } => kill_job(&*self.job(job)?, signal),
            Request::Push { path, mode } => receive(Path::new(&path), mode, stream),
            Request::Pull { path } => send(Path::new(&path), stream),
        }
    }

    fn job(&self, job: u64) -> io::Result<Arc<JobState>> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.get(&job).cloned().ok_or_else(|| io::Error::other(format!("no job {job}")))
    }

    fn spawn(&self, argv: &[String]) -> io::Result<Reply> {
        let job = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let log = format!("{JOB_DIR}/{job}.log");
        let out = File::create(&log)?;
        let mut child = command(argv)?.stdout(out.try_clone()?).stderr(out).spawn()?;
        let state = Arc::new(JobState { pid: child.id(), status: Mutex::new(None) });
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.insert(job, Arc::clone(&state));
        drop(jobs);
        let pid = state.pid;
        thread::spawn(move || {
            let code = child.wait().map_or(255, code_of);
            *state.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(code);
        });
        Ok(Reply::Started { job, pid, log })
    }
}

fn wait(job: &JobState, limit: Duration) -> Reply {
    let deadline = Instant::now() + limit;
    loop {
        let status = *job.status.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = status {
            return Reply::Exited(code);
        }
        if Instant::now() >= deadline {
            return Reply::TimedOut;
        }
        thread::sleep(POLL * 5);
    }
}

fn kill_job(job: &JobState, signal: i32) -> io::Result<Reply> {
    let signal = Signal::try_from(signal)?;
    if job.status.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
        kill_group(job.pid, signal)?;
    }
    Ok(Reply::Ok)
}

fn kill_group(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    killpg(Pid::from_raw(pid), signal).map_err(io::Error::from)
}

/// A process group of its own, so that a kill reaches what the command has started.
fn command(argv: &[String]) -> io::Result<Command> {
    let [program, args @ ..] = argv else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "empty command"));
    };
    let mut command = Command::new(program);
    command.args(args).current_dir("/root").env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    command.stdin(Stdio::null()).process_group(0);
    Ok(command)
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(255)
}

/// One stream's end is a `None`.
type Chunk = Option<Frame>;

fn exec(argv: &[String], limit: Duration, stream: &TcpStream) -> io::Result<Reply> {
    let deadline = Instant::now() + limit;
    let mut child = command(argv)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let gone = watch_peer(stream)?;
    let (tx, rx) = channel();
    pump(child.stdout.take(), child.stderr.take(), &tx);
    drop(tx);
    let mut writer = stream;
    let reply = attend(&mut child, &rx, deadline, &gone, &mut writer);
    if !matches!(reply, Ok(Reply::Exited(_))) {
        // ESRCH: it ended meanwhile.
        let _ = kill_group(child.id(), Signal::SIGKILL);
        // Reaped without waiting here: it may be stuck in the kernel.
        thread::spawn(move || child.wait());
    }
    reply
}

/// Forwards output until the process has ended and its streams are empty, or the time is over.
fn attend(
    child: &mut Child,
    rx: &Receiver<Chunk>,
    deadline: Instant,
    gone: &AtomicBool,
    writer: &mut impl Write,
) -> io::Result<Reply> {
    let mut open = 2;
    let mut ended: Option<(i32, Instant)> = None;
    loop {
        match rx.recv_timeout(POLL) {
            Ok(Some(frame)) => frame.write(writer)?,
            Ok(None) => open -= 1,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(POLL),
        }
        if ended.is_none() {
            ended = child.try_wait()?.map(|s| (code_of(s), Instant::now() + LINGER));
        }
        if let Some((code, until)) = ended
            && (open == 0 || Instant::now() >= until)
        {
            return Ok(Reply::Exited(code));
        }
        if gone.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if ended.is_none() && Instant::now() >= deadline {
            return Ok(Reply::TimedOut);
        }
    }
}

/// Tells when the asker has closed its end.
fn watch_peer(stream: &TcpStream) -> io::Result<Arc<AtomicBool>> {
    let mut stream = stream.try_clone()?;
    let gone = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&gone);
    thread::spawn(move || {
        // Nothing more is expected from the asker: whatever ends this read means that it has gone.
        let _ = stream.read(&mut [0u8; 1]);
        flag.store(true, Ordering::Relaxed);
    });
    Ok(gone)
}

fn pump(out: Option<ChildStdout>, err: Option<ChildStderr>, tx: &Sender<Chunk>) {
    if let Some(out) = out {
        let tx = tx.clone();
        thread::spawn(move || copy(out, Frame::Stdout, &tx));
    }
    if let Some(err) = err {
        let tx = tx.clone();
        thread::spawn(move || copy(err, Frame::Stderr, &tx));
    }
}

fn copy(mut from: impl Read, wrap: fn(Vec<u8>) -> Frame, tx: &Sender<Chunk>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let bytes = buffer.get(..n).unwrap_or_default().to_vec();
        if tx.send(Some(wrap(bytes))).is_err() {
            return;
        }
    }
    let _ = tx.send(None);
}

/// Writes beside the target and renames: a running program can be replaced, and nobody sees half a file.
fn receive(path: &Path, mode: u32, mut stream: &TcpStream) -> io::Result<Reply> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lab-new");
    let new = Path::new(&name);
    let _ = fs::remove_file(new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(new)?;
    loop {
        match Frame::read(&mut stream)? {
            Frame::Data(bytes) => file.write_all(&bytes)?,
            Frame::Eof => break,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    fs::rename(new, path)?;
    Ok(Reply::Ok)
}

fn send(path: &Path, mut stream: &TcpStream) -> io::Result<Reply> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(Reply::Ok);
        }
        Frame::Data(buffer.get(..n).unwrap_or_default().to_vec()).write(&mut stream)?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// An agent on the loopback device, as in a node.
    fn agent() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let agent = Arc::new(Agent::new());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let agent = Arc::clone(&agent);
                thread::spawn(move || agent.answer(&stream.unwrap()));
            }
        });
        address
    }

    fn ask(request: Request) -> (Vec<Frame>, Reply, Duration) {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(agent()).unwrap();
        Frame::Request(request).write(&mut stream).unwrap();
        let mut frames = Vec::new();
        loop {
            match Frame::read(&mut stream).unwrap() {
                Frame::Done(reply) => return (frames, reply, begin.elapsed()),
                frame => frames.push(frame),
            }
        }
    }

    fn sh(script: &str, timeout_ms: u64) -> (Vec<Frame>, Reply, Duration) {
        let argv = ["sh", "-c", script].map(String::from).to_vec();
        ask(Request::Exec { argv, timeout_ms })
    }

    #[test]
    fn streams_and_code_come_back() {
        let (frames, reply, _) = sh("echo out; sleep 0.1; echo err >&2; exit 3", 5000);
        assert_eq!(frames, [Frame::Stdout(b"out\n".into()), Frame::Stderr(b"err\n".into())]);
        assert_eq!(reply, Reply::Exited(3));
    }

    #[test]
    fn a_hung_command_is_killed_with_its_children() {
        let (_, reply, took) = sh("sleep 71 & sleep 72", 300);
        assert_eq!(reply, Reply::TimedOut);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }

    #[test]
    fn a_descendant_that_keeps_the_streams_open_does_not_hold_the_answer_back() {
        let (frames, reply, took) = sh("setsid sleep 5 & echo done", 4000);
        assert_eq!(reply, Reply::Exited(0));
        assert_eq!(frames, [Frame::Stdout(b"done\n".into())]);
        assert!(took < Duration::from_secs(3), "{took:?}");
    }

    #[test]
    fn a_missing_program_is_an_answer() {
        let argv = vec!["/nonexistent/program".to_owned()];
        let (_, reply, _) = ask(Request::Exec { argv, timeout_ms: 100 });
        assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    }

    #[test]
    fn death_by_signal_is_told() {
        let (_, reply, _) = sh("kill -9 $$", 5000);
        assert_eq!(reply, Reply::Exited(137));
    }
}
