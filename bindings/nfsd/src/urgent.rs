//! Scheduling of two threads that race inside the kernel.
//!
//! While threads are being started the kernel makes the tracker pipe and looks at once whether
//! it has a reader; if not, it sleeps 100 ms before it looks again (`nfsd4_cld_tracking_init`),
//! in the middle of the stall. Making the pipe wakes the tracker (inotify). If the tracker
//! outranks the starting thread and both are bound to one processor, it runs and opens the pipe
//! before the kernel looks. Where this is not permitted, the 100 ms are simply lost.
#![allow(unsafe_code)]

use std::io;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Lowest real-time priority: above every ordinary thread.
const PRIORITY: libc::c_int = 1;

/// A processor that this process may use.
pub(crate) fn some_cpu() -> Option<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
}

/// Binds the calling thread to `cpu`.
pub(crate) fn bind_to(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Lets the calling thread run before every ordinary one. It must never spin.
pub(crate) fn outrank() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 names the calling thread, and `parameters` lives across the call, which only
    // reads it.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Second best where real time is refused (a kernel with real-time group scheduling gives none to
/// the groups that systemd makes): the highest ordinary priority of the calling thread.
///
/// # Errors
/// `CAP_SYS_NICE` is missing.
pub(crate) fn be_first() -> io::Result<()> {
    // SAFETY: takes three numbers; PRIO_PROCESS with 0 is the calling thread (setpriority(2)).
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_bound_and_its_parent_is_not() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpu = some_cpu().unwrap();
        let bound = std::thread::spawn(move || {
            bind_to(cpu).unwrap();
            sched_getaffinity(Pid::from_raw(0)).unwrap()
        });
        let bound = bound.join().unwrap();
        let count = (0..CpuSet::count()).filter(|c| bound.is_set(*c).unwrap()).count();
        assert_eq!((count, bound.is_set(cpu).unwrap()), (1, true));
        assert_eq!(before, sched_getaffinity(Pid::from_raw(0)).unwrap());
    }
}
