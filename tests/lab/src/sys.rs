//! Programs and files of this machine, with deadlines and errors that name them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use crate::error::LabError;

/// Limit for programs that should be done at once.
pub const SHORT: Duration = Duration::from_secs(20);

/// What a program said.
pub struct Said {
    /// Whether it exited with 0.
    pub ok: bool,
    /// Exit status for people.
    pub status: String,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

fn line(command: &Command) -> String {
    let args = command.get_args().map(|a| a.to_string_lossy().into_owned());
    std::iter::once(command.get_program().to_string_lossy().into_owned())
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

fn collect(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read before an error is still worth showing.
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Starts a program with no signals blocked. The lab program blocks some to clean up before it ends, and a program
/// would inherit that.
///
/// # Errors
/// If it cannot be started.
pub fn spawn(command: &mut Command) -> Result<Child, LabError> {
    let program = command.get_program().to_owned();
    let start = || {
        // A thread of its own: a signal mask belongs to a thread. Unblocking all signals cannot fail.
        let _ = SigSet::all().thread_unblock();
        command.spawn().map_err(LabError::io("start", program))
    };
    thread::scope(|scope| {
        let thread = scope.spawn(start);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// If it cannot be started, or overruns `limit`; then it has been killed.
pub fn ask(mut command: Command, limit: Duration) -> Result<Said, LabError> {
    let text = line(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let Some(status) = wait(&mut child, limit)? else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(LabError::ProgramTimeout { command: text, limit });
    };
    Ok(Said {
        ok: status.success(),
        status: status.to_string(),
        stdout: out.join().unwrap_or_default(),
        stderr: err.join().unwrap_or_default(),
    })
}

/// Runs a program that must succeed; its standard output.
///
/// # Errors
/// As [`ask`], and if it exits with anything but 0.
pub fn run(command: Command, limit: Duration) -> Result<String, LabError> {
    let text = line(&command);
    let said = ask(command, limit)?;
    if said.ok {
        return Ok(said.stdout);
    }
    let lines: Vec<_> = said.stderr.trim().lines().rev().take(12).collect();
    let stderr = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(LabError::Program { command: text, status: said.status, stderr })
}

/// Runs `program` with `args` under [`SHORT`].
///
/// # Errors
/// As [`run`].
pub fn quick(program: &str, args: &[&str]) -> Result<String, LabError> {
    let mut command = Command::new(program);
    command.args(args);
    run(command, SHORT)
}

/// Waits for a child; `None` when the time is over.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, LabError> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().map_err(LabError::io("wait for", "a child"))? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Writes a file with these permission bits, making its folder.
///
/// # Errors
/// [`LabError::Io`].
pub fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) -> Result<(), LabError> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    let mut file = fs::File::create(path).map_err(LabError::io("create", path))?;
    file.write_all(bytes.as_ref()).map_err(LabError::io("write", path))?;
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, mode).map_err(LabError::io("set permissions of", path))
}

/// Makes a folder and those above it.
///
/// # Errors
/// [`LabError::Io`].
pub fn make_dir(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(LabError::io("create folder", path))
}

/// A file of zeros that takes no space yet.
///
/// # Errors
/// [`LabError::Io`].
pub fn sparse(path: &Path, bytes: u64) -> Result<(), LabError> {
    let file = fs::File::create(path).map_err(LabError::io("create", path))?;
    file.set_len(bytes).map_err(LabError::io("resize", path))
}

/// Where `program` is, looking also where only root usually looks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let dirs = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    dirs.map(|d| Path::new(d).join(program)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut c = Command::new("sh");
        c.args(["-c", script]);
        c
    }

    #[test]
    fn a_failure_tells_what_the_program_said() {
        let e = run(sh("echo because >&2; exit 4"), SHORT).unwrap_err();
        let LabError::Program { status, stderr, .. } = e else { panic!("{e}") };
        assert!(status.contains('4') && stderr == "because");
    }

    #[test]
    fn an_overrun_is_killed() {
        let begin = Instant::now();
        let e = run(sh("exec sleep 60"), Duration::from_millis(100)).unwrap_err();
        assert!(matches!(e, LabError::ProgramTimeout { .. }));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
