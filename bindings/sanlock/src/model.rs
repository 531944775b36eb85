//! What the daemon says, in plain types. All times are whole seconds of its `CLOCK_MONOTONIC`,
//! rounded down.

use std::fmt;

/// The daemon's version, from its version command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u8,
    /// Second number.
    pub minor: u8,
    /// Third number.
    pub patch: u8,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// One answer to the status command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The daemon itself.
    pub daemon: Daemon,
    /// Processes that registered (guests, mostly) and the daemon's own connections.
    pub holders: Vec<Holder>,
    /// Lockspaces, joined or on the way in or out.
    pub lockspaces: Vec<Lockspace>,
    /// Leases held or being given back; empty unless they were asked for.
    pub resources: Vec<Resource>,
}

/// The daemon's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// The name under which this host writes its leases.
    pub host_name: String,
    /// Whether a host that loses its lease is reset by a watchdog.
    pub use_watchdog: bool,
    /// `io_timeout` for lockspaces that do not set their own, in seconds. 3.8.5 does not tell it
    /// (its lockspaces do); later versions do.
    pub io_timeout: Option<u32>,
    /// Seconds from the watchdog's last ping to the reset. 3.8.5 does not tell it; later versions do.
    pub watchdog_fire_timeout: Option<u32>,
    /// Seconds between the first SIGTERM and SIGKILL.
    pub kill_grace: u32,
    /// When this answer was written.
    pub monotime: u64,
    /// Version as text.
    pub version: String,
}

/// A process with a connection to the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process; `None` for the daemon's own connections and for those that never registered.
    pub pid: Option<u32>,
    /// The name it gave itself; libvirt gives the guest's name.
    pub name: String,
    /// How often the daemon has signalled it because a lockspace died.
    pub kill_count: u32,
}

/// Where a lockspace is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being joined: the lease of this host is not held yet.
    Joining,
    /// Joined.
    Joined,
    /// Being left.
    Leaving,
}

/// The result of an attempt to renew a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(pub i32);

impl Outcome {
    /// `SANLK_OK`.
    pub const OK: Self = Self(1);

    /// Whether the lease was renewed.
    pub const fn is_ok(self) -> bool {
        self.0 == Self::OK.0
    }

    /// What the number means (`sanlock_rv.h`), if it is one of those a renewal can end with.
    pub const fn meaning(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "renewed",
            0 => "not tried yet",
            -202 => "the storage did not answer within io_timeout",
            -203 => "the watchdog daemon refused",
            -220 => "the lease area could not be read",
            -221 => "the lease area could not be written",
            -223 => "the lease area is not initialised or was overwritten",
            -224 => "the lease area has another format version",
            -225 => "the lease area has another sector size",
            -226 => "the lease area belongs to another lockspace",
            -229 => "the lease area's checksum is wrong",
            -260 => "another host owns this host's lease",
            -261 => "the lease on storage is not the one written last",
            -262 => "another host uses this host id",
            _ => return None,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => write!(f, "{meaning} ({})", self.0),
            None => write!(f, "result {}", self.0),
        }
    }
}

/// An area on storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// File or device.
    pub path: String,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// A lockspace as status tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lockspace {
    /// Its name.
    pub name: String,
    /// This host's number in it.
    pub host_id: u64,
    /// Where it lives.
    pub disk: Disk,
    /// Joining, joined, leaving.
    pub stage: Stage,
    /// Seconds one storage access may take.
    pub io_timeout: u32,
    /// The lease was lost: every process that uses it is being killed, and there is no way back
    /// but to leave and join again.
    pub dead: bool,
    /// Processes are being killed.
    pub killing: bool,
    /// Not zero: the lease on storage was found destroyed or taken.
    pub corrupt: Option<Outcome>,
    /// How the last attempt to renew ended.
    pub last_result: Outcome,
    /// When the last attempt began; zero before the first.
    pub last_attempt: u64,
    /// Time of the last good renewal, taken just before its write; zero before the first.
    pub last_success: u64,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its lockspace.
    pub lockspace: String,
    /// Its name.
    pub name: String,
    /// The process that holds it, if one does.
    pub pid: Option<u32>,
    /// Held together with others.
    pub shared: bool,
    /// Where it lives.
    pub disks: Vec<Disk>,
    /// The daemon's list: `held`, `add`, `rem`, `orphan` and the like.
    pub list: String,
}

/// A lockspace as the list command tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// This host's number in it.
    pub host_id: u64,
    /// Joining, joined, leaving.
    pub stage: Stage,
    /// Where it lives.
    pub disk: Disk,
}

/// What the daemon thinks of a host, from watching its lease. Of its own host it always says
/// [`HostState::Live`], even in a lockspace that is lost: look at [`Lockspace::dead`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    /// Its lease has not been watched long enough.
    Unknown,
    /// Nobody has that number.
    Free,
    /// It renews.
    Live,
    /// It has not renewed for 8 times its `io_timeout`.
    Failed,
    /// Its watchdog must have fired by now, *if it has one*.
    Dead,
}

/// A host of a lockspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Its number.
    pub id: u64,
    /// Counts how often it joined.
    pub generation: u64,
    /// Its last renewal, in seconds of **its own** clock: only a change of it means anything.
    pub timestamp: u64,
    /// Its `io_timeout`, in seconds.
    pub io_timeout: u32,
    /// What the daemon thinks of it.
    pub state: HostState,
}

/// One good renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// When, see [`Lockspace::last_success`].
    pub timestamp: u64,
    /// Milliseconds the lockspace took to be read. Zero for the entry of the join.
    pub read_ms: u32,
    /// Milliseconds the lease took to be written.
    pub write_ms: u32,
    /// How many attempts after this one timed out, before the next good one.
    pub next_timeouts: u32,
    /// How many attempts after this one failed otherwise.
    pub next_errors: u32,
}

/// The renewals the daemon remembers, oldest first (180 by default: an hour at an `io_timeout` of 10 s).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenewalHistory {
    /// The lockspace's `io_timeout` in seconds; `None` when the daemon keeps no history or has none yet.
    pub io_timeout: Option<u32>,
    /// Oldest first.
    pub renewals: Vec<Renewal>,
}
