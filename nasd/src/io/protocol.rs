//! Requests and answers. Times in milliseconds.

use std::net::IpAddr;
use std::path::PathBuf;

use nasd_nfsd::cld::TrackerStatus;
use nasd_nfsd::control::ClientInfo;
use nasd_nfsd::exports::{AnswererStatus, Export};
use nasd_nfsd::records::Snapshot;
use serde::{Deserialize, Serialize};

use super::Refusal;

/// Version of this protocol; [`Op::Hello`] compares it.
pub const VERSION: u32 = 2;

/// One request; `id` comes back in the response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, unique on its connection.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
}

/// One response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Of the request.
    pub id: u64,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Success or refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Ok(Answer),
    /// Not done.
    Error(Refusal),
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Is this the process I expect?
    Hello {
        /// Service it must be for.
        service: String,
        /// Network namespace it must use.
        netns: PathBuf,
        /// Protocol version it must speak.
        version: u32,
    },
    /// Mounts a block device. Idempotent when that device is mounted there already.
    Mount {
        /// Block device.
        device: PathBuf,
        /// As `ext4` or `xfs`.
        fstype: String,
        /// As in fstab, one option each.
        options: Vec<String>,
        /// Mount point; made if it does not exist.
        target: PathBuf,
    },
    /// Unmounts, retrying while busy. Never lazily, never by force. Idempotent.
    Unmount {
        /// Mount point.
        target: PathBuf,
        /// How long to retry.
        deadline_ms: u64,
    },
    /// Writes back everything dirty on the volume.
    SyncFs {
        /// Mount point.
        target: PathBuf,
    },
    /// Who keeps the volume busy? Reads `/proc` and `/sys` only.
    Holders {
        /// Mount point.
        target: PathBuf,
    },
    /// What is mounted there? Reads the mount table only, never the volume.
    MountState {
        /// Mount point.
        target: PathBuf,
    },
    /// The volume's marker.
    ReadMarker {
        /// Mount point.
        target: PathBuf,
    },
    /// Replaces the volume's marker durably.
    WriteMarker {
        /// Mount point.
        target: PathBuf,
        /// New content.
        marker: Marker,
    },
    /// On a volume that is served: writes the marker, and the client records that this process has loaded, anew
    /// where somebody else has damaged them. A marker that fits, or is newer, is left alone.
    Mend {
        /// Mount point.
        target: PathBuf,
        /// What fits the record now.
        marker: Marker,
    },
    /// A small durable write: does the volume answer?
    Canary {
        /// Mount point.
        target: PathBuf,
    },
    /// Makes the NFS server ready to start. Touches no volume. Idempotent.
    ServerSetup(Setup),
    /// Starts the server on mounted volumes, or adopts one that runs. Removals of client records
    /// are ignored from here until [`Op::IgnoreRemovals`] says otherwise.
    ServerStart {
        /// Threads to run.
        threads: u32,
        /// What to export; every path must be a mount point.
        exports: Vec<Export>,
        /// Mount point of the volume that carries the client records.
        records_mount: PathBuf,
        /// First start ever on this volume: missing records may be made, empty.
        allow_empty_new: bool,
        /// Clients whose cache entries to make ahead.
        #[serde(default)]
        known_clients: Vec<IpAddr>,
    },
    /// Expires clients that are proven dead, so that no later grace waits for them (S7). Refused while grace
    /// runs, while removals of records are ignored, and when one of them is not known to be silent for
    /// longer than a lease. Idempotent. Hangs while such a client has a call in execution.
    ExpireClients {
        /// Their owner strings.
        names: Vec<Vec<u8>>,
    },
    /// Stops the server and closes the client records, so that the volumes can be unmounted.
    ServerStop,
    /// State of the server and of its records. Does not touch the volume.
    ServerStatus,
    /// Looks an export up through the server as a client would, and compares scope and UUID.
    Probe {
        /// Name below the root.
        export: String,
        /// For everything.
        deadline_ms: u64,
    },
    /// As [`Op::Probe`], for health: beside it, under another name at the server, so that one
    /// that hangs does not stand in an opening's way.
    Pulse {
        /// Name below the root.
        export: String,
        /// For everything.
        deadline_ms: u64,
    },
    /// Counters that move while the server makes progress. Touches neither the volume nor the
    /// lock that starting and stopping a server hold.
    Progress,
    /// The client records, for the peer's mirror.
    Records,
    /// Ignore removals of client records (gate closed, and for one lease after)?
    IgnoreRemovals {
        /// Yes or no.
        ignore: bool,
    },
    /// The gate is about to open for a server that was started: from here the end of grace voids the list
    /// of who may reclaim. Refused when grace has ended before. Idempotent.
    LetIn,
    /// End the process; refused while the server runs.
    Exit,
}

impl Op {
    /// Its name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Hello { .. } => "hello",
            Op::Mount { .. } => "mount",
            Op::Unmount { .. } => "unmount",
            Op::SyncFs { .. } => "sync_fs",
            Op::Holders { .. } => "holders",
            Op::MountState { .. } => "mount_state",
            Op::ReadMarker { .. } => "read_marker",
            Op::WriteMarker { .. } => "write_marker",
            Op::Mend { .. } => "mend",
            Op::Canary { .. } => "canary",
            Op::ServerSetup(_) => "server_setup",
            Op::ServerStart { .. } => "server_start",
            Op::ExpireClients { .. } => "expire_clients",
            Op::ServerStop => "server_stop",
            Op::ServerStatus => "server_status",
            Op::Probe { .. } => "probe",
            Op::Pulse { .. } => "pulse",
            Op::Progress => "progress",
            Op::Records => "records",
            Op::IgnoreRemovals { .. } => "ignore_removals",
            Op::LetIn => "let_in",
            Op::Exit => "exit",
        }
    }
}

/// Settings of the service's NFS server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Server scope and owner: same on both nodes, unlike any other service's.
    pub scope: String,
    /// Lease in seconds, 10 to 3600.
    pub lease_s: u32,
    /// Grace in seconds, 10 to 3600.
    pub grace_s: u32,
    /// TCP port, 2049.
    pub port: u16,
    /// Where to mount the control file system.
    pub control_dir: PathBuf,
    /// Where to mount the file system with the tracker pipe.
    pub pipefs_dir: PathBuf,
    /// The service's root directory, on the system's disk; exports are mounted below it.
    pub pseudo_root: PathBuf,
}

/// What came of a request that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// To [`Op::Hello`].
    Hello {
        /// Process id.
        pid: u32,
        /// Has [`Op::ServerSetup`] been carried out by this process?
        set_up: bool,
    },
    /// To [`Op::Mount`].
    Mounted {
        /// It was there before.
        already: bool,
        /// Duration.
        took_ms: u64,
    },
    /// To [`Op::Unmount`].
    Unmounted {
        /// It was not mounted.
        already: bool,
        /// How often it was busy first.
        retries: u32,
        /// Duration.
        took_ms: u64,
    },
    /// To [`Op::SyncFs`] and [`Op::Canary`].
    Took {
        /// Duration.
        took_ms: u64,
    },
    /// To [`Op::Holders`].
    Holders {
        /// Everyone found.
        holders: Vec<Holder>,
    },
    /// To [`Op::MountState`].
    MountState {
        /// What is mounted there, if anything.
        mount: Option<MountPoint>,
    },
    /// To [`Op::ReadMarker`].
    Marker {
        /// None on a volume that never had one.
        marker: Option<Marker>,
    },
    /// To [`Op::Mend`].
    Mended {
        /// What was damaged, and is not any more.
        what: Vec<String>,
    },
    /// To [`Op::ServerStart`].
    Started(StartReport),
    /// To [`Op::ServerStop`].
    Stopped {
        /// Duration of each step.
        steps: Vec<StepTime>,
    },
    /// To [`Op::ServerStatus`].
    Status(Box<ServerStatus>),
    /// To [`Op::ExpireClients`]: none of them is known or recorded any more.
    Expired {
        /// How many were known until now.
        clients: u32,
    },
    /// To [`Op::Progress`].
    Progress {
        /// Operations completed for clients, probes left out; wraps. Absent where the kernel does
        /// not count per namespace.
        operations: Option<u64>,
    },
    /// To [`Op::Probe`] and [`Op::Pulse`]: scope, UUID and kind are as they must be.
    Probed {
        /// Duration.
        took_ms: u64,
    },
    /// To [`Op::Records`].
    Records {
        /// None while no volume's records are loaded.
        snapshot: Option<Snapshot>,
    },
}

/// Which service's data, of which generation, a volume carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Service.
    pub service: String,
    /// Epoch of the record when it was written.
    pub epoch: u64,
    /// Generation of the data.
    pub generation: u64,
    /// Node that wrote it.
    pub node: String,
}

/// An entry of the mount table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// The kernel's id of the mount.
    pub id: u64,
    /// Device as the table names it.
    pub source: String,
    /// Type.
    pub fstype: String,
    /// Device number, `major:minor`.
    pub dev: String,
    /// Mounted read-only, or become so.
    pub read_only: bool,
}

/// Something that keeps a volume busy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// In which way.
    pub kind: HolderKind,
    /// Process, where it is one.
    pub pid: Option<u32>,
    /// Its name, or the device's.
    pub name: String,
    /// The path held, as far as known.
    pub path: String,
}

/// Ways to keep a volume busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderKind {
    /// Working directory.
    WorkingDirectory,
    /// Root directory.
    Root,
    /// Program file.
    Program,
    /// Open file.
    OpenFile,
    /// Mapped file.
    Mapping,
    /// Another mount of it, in this mount namespace.
    Mount,
    /// A mount of it in the process's own mount namespace.
    ForeignNamespace,
    /// A loop device over one of its files.
    LoopDevice,
    /// Swap on one of its files.
    Swap,
    /// A block device stacked on its device.
    StackedDevice,
}

/// Duration of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// Its name.
    pub step: String,
    /// Duration in milliseconds.
    pub took_ms: u64,
}

/// What a start found and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartReport {
    /// The server ran already; it was taken over as it was.
    pub adopted: bool,
    /// Clients that may reclaim.
    pub recorded_clients: usize,
    /// Grace runs (it does not when no client is recorded).
    pub in_grace: bool,
    /// Entries made ahead in the export caches.
    pub cache_entries: usize,
    /// Duration of each step.
    pub steps: Vec<StepTime>,
}

/// State of the NFS server and its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Threads that run; 0 is stopped.
    pub threads: u32,
    /// Is grace over? Means something only while threads run.
    pub grace_over: bool,
    /// Messages that arrived since the start: moves while the server makes progress.
    pub packets: u64,
    /// Calls in execution; absent where the kernel cannot tell or did not in time, which does
    /// not mean that there are none.
    #[serde(default)]
    pub in_flight: Option<u32>,
    /// Clients the server knows.
    pub clients: Vec<ClientInfo>,
    /// Clients that must be let in when the server is started from the records as they are.
    pub recorded: usize,
    /// Clients of the recovery set that have reclaimed; 0 outside grace.
    pub reclaimed: usize,
    /// Clients of the recovery set that have not: grace waits for them. 0 outside grace.
    pub awaited: usize,
    /// A volume's records are loaded.
    pub records_loaded: bool,
    /// Removals of client records are ignored: the gate is shut, or has not been open for one lease. So it is
    /// where a process of an older version does not tell (S12).
    #[serde(default = "not_told")]
    pub removals_ignored: bool,
    /// The client tracker.
    pub tracker: TrackerStatus,
    /// The answerer of the export caches.
    pub answerer: AnswererStatus,
}

fn not_told() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(request: &Request) -> String {
        let line = serde_json::to_string(request).unwrap();
        assert_eq!(&serde_json::from_str::<Request>(&line).unwrap(), request);
        line
    }

    #[test]
    fn requests_read_as_the_brief_form() {
        let op = Op::Unmount { target: "/srv/nasd/s/vms".into(), deadline_ms: 2000 };
        let line = round_trip(&Request { id: 7, op });
        assert_eq!(
            line,
            r#"{"id":7,"op":"unmount","target":"/srv/nasd/s/vms","deadline_ms":2000}"#
        );
        assert_eq!(round_trip(&Request { id: 8, op: Op::Exit }), r#"{"id":8,"op":"exit"}"#);
    }

    #[test]
    fn start_and_setup_read_back() {
        let export = serde_json::json!({
            "path": "/srv/nasd/s/vms", "uuid": "00112233-4455-6677-8899-aabbccddeeff",
            "clients": ["192.0.2.0/24"],
        });
        let start = Op::ServerStart {
            threads: 8,
            exports: vec![serde_json::from_value(export).unwrap()],
            records_mount: "/srv/nasd/s/vms".into(),
            allow_empty_new: false,
            known_clients: vec!["192.0.2.7".parse().unwrap()],
        };
        round_trip(&Request { id: 1, op: start });
        let setup = Setup {
            scope: "s".into(),
            lease_s: 15,
            grace_s: 90,
            port: 2049,
            control_dir: "/run/a".into(),
            pipefs_dir: "/run/b".into(),
            pseudo_root: "/srv/nasd/s".into(),
        };
        round_trip(&Request { id: 2, op: Op::ServerSetup(setup) });
    }

    #[test]
    fn responses_are_ok_or_error() {
        let ok = Response { id: 1, outcome: Outcome::Ok(Answer::Took { took_ms: 3 }) };
        let line = serde_json::to_string(&ok).unwrap();
        assert_eq!(line, r#"{"id":1,"ok":{"is":"took","took_ms":3}}"#);
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), ok);
        let error = Response { id: 2, outcome: Outcome::Error(Refusal::NotSetUp) };
        let line = serde_json::to_string(&error).unwrap();
        assert_eq!(line, r#"{"id":2,"error":{"why":"not_set_up"}}"#);
        assert_eq!(serde_json::from_str::<Response>(&line).unwrap(), error);
    }
}
