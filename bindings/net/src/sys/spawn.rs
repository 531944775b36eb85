//! Owns the hook that moves a child into a network namespace between fork and exec.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

/// Has the child of `command` enter the network namespace `namespace` before it executes.
pub(crate) fn enter_before_exec(command: &mut Command, namespace: Arc<OwnedFd>) {
    // SAFETY: the hook runs in the forked child, where only async-signal-safe calls are allowed.
    // It makes one system call (setns) on a descriptor that the closure keeps open, and turns an
    // errno into an `io::Error` without allocating.
    unsafe {
        command.pre_exec(move || {
            setns(&*namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| io::Error::from_raw_os_error(errno as i32))
        });
    }
}
