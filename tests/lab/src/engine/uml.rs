//! User-Mode Linux: the node is an ordinary process and its threads' stubs.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::Machine;
use crate::image::Image;
use crate::process::ProcessId;

/// The kernel's first message is there within this time, or it does not run here.
const PROBE: Duration = Duration::from_secs(5);

/// Tries whether the program gets as far as looking for its root file system. Some CPUs make it die before.
pub fn works(image: &Image) -> bool {
    let dir = std::env::temp_dir().join(format!("nasd-lab-probe-{}", std::process::id()));
    let mut command = Command::new(image.uml());
    command.args(["mem=64M", "seccomp=on", "root=/dev/none", "con=null", "con0=null,fd:1"]);
    command.arg(format!("uml_dir={}", dir.display())).arg("umid=probe");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let ok = reaches_root(command);
    // Best effort: an empty folder in the temporary folder harms nobody.
    let _ = fs::remove_dir_all(dir);
    ok
}

fn reaches_root(mut command: Command) -> bool {
    let Ok(mut child) = command.spawn() else { return false };
    let Some(mut out) = child.stdout.take() else { return false };
    let id = i32::try_from(child.id()).ok().and_then(ProcessId::of);
    let reader = thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = std::io::Read::read(&mut out, &mut buffer) {
            seen.extend_from_slice(buffer.get(..n).unwrap_or_default());
            if String::from_utf8_lossy(&seen).contains("Cannot open root device") {
                return true;
            }
        }
        false
    });
    let end = Instant::now() + PROBE;
    while !reader.is_finished() && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    if let Some(id) = id {
        id.kill();
    }
    // Killed, so its output ends and the reader with it.
    let _ = child.wait();
    reader.join().unwrap_or(false)
}

/// See [`super::Engine::command`].
pub fn command(m: &Machine<'_>) -> Command {
    let mut command = Command::new(m.image.uml());
    command.arg(format!("mem={}M", m.node.memory_mib()));
    // Cheaper system calls than with ptrace.
    command.arg("seccomp=on");
    // Control sockets of nodes with equal names in several labs must not meet.
    command.arg(format!("uml_dir={}", m.work.join("uml").display()));
    command.arg(format!("umid={}", m.node.name));
    command.arg(format!("ubd0={},{}", m.own("cow").display(), m.image.root().display()));
    for (i, disk) in m.data().iter().enumerate() {
        command.arg(format!("ubd{}={}", i + 1, disk.display()));
    }
    command.arg(format!("ubd3r={}", m.payload().display()));
    let nics = [(m.node.tap(), m.node.mac()), (m.node.management_tap(), m.node.management_mac())];
    for (i, (tap, mac)) in nics.iter().enumerate() {
        command.arg(format!("vec{i}:transport=tap,ifname={tap},depth=128,gro=1,mac={mac}"));
    }
    command.args(["root=/dev/ubda", "con=null", "con0=null,fd:1", "ssl=null"]);
    command.args(m.parameters());
    command
}
