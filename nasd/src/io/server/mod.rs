//! The process's side of the socket: one thread per connection, one per request.

mod expire;
mod holders;
mod lanes;
mod listen;
mod mounts;
mod mounttable;
mod nfs;
mod unmount;
mod volume;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nasd_nfsd::netns::NetNs;

use super::{Answer, Marker, Op, Refusal, VERSION};
use lanes::Lanes;
use mounttable::MountTable;
use nfs::Nfs;

pub use listen::{ListenError, serve};

/// What this process is for; given on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Service.
    pub service: String,
    /// Path of its network namespace, as `/run/netns/NAME`.
    pub netns: PathBuf,
}

/// Everything that requests share.
pub struct Shared {
    identity: Identity,
    ns: NetNs,
    nfs: Mutex<Option<Arc<Nfs>>>,
    lanes: Lanes,
}

impl Shared {
    /// Opens the namespace.
    pub fn new(identity: Identity) -> nasd_nfsd::Result<Self> {
        let ns = NetNs::open(&identity.netns)?;
        Ok(Shared { identity, ns, nfs: Mutex::new(None), lanes: Lanes::default() })
    }

    fn nfs_slot(&self) -> MutexGuard<'_, Option<Arc<Nfs>>> {
        self.nfs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nfs(&self) -> Result<Arc<Nfs>, Refusal> {
        self.nfs_slot().clone().ok_or(Refusal::NotSetUp)
    }

    /// Carries one request out. May hang as long as the kernel does.
    fn carry_out(&self, op: Op) -> Result<Answer, Refusal> {
        let _place = self.lanes.enter(&op)?;
        match op {
            Op::Hello { service, netns, version } => self.hello(&service, &netns, version),
            Op::Mount { device, fstype, options, target } => {
                mounts::mount(&device, &fstype, &options, &target)
            }
            Op::Unmount { target, deadline_ms } => {
                self.records_must_be_closed()?;
                unmount::unmount(&target, Duration::from_millis(deadline_ms))
            }
            Op::SyncFs { target } => volume::sync_fs(&target),
            Op::Holders { target } => {
                Ok(Answer::Holders { holders: holders::find(&target, None)? })
            }
            Op::MountState { target } => {
                Ok(Answer::MountState { mount: MountTable::read()?.top(&target) })
            }
            Op::ReadMarker { target } => volume::read_marker(&target),
            Op::WriteMarker { target, marker } => volume::write_marker(&target, &marker),
            Op::Mend { target, marker } => self.mend(&target, &marker),
            Op::Canary { target } => volume::canary(&target),
            other => self.carry_out_server(other),
        }
    }

    fn mend(&self, target: &Path, marker: &Marker) -> Result<Answer, Refusal> {
        let mut what: Vec<_> = volume::mend_marker(target, marker)?.into_iter().collect();
        what.extend(self.nfs()?.mend_records()?);
        Ok(Answer::Mended { what })
    }

    fn carry_out_server(&self, op: Op) -> Result<Answer, Refusal> {
        match op {
            Op::ServerSetup(setup) => self.set_up(setup),
            Op::ServerStart { threads, exports, records_mount, allow_empty_new, known_clients } => {
                let wish =
                    nfs::Start { threads, exports, records_mount, allow_empty_new, known_clients };
                self.nfs()?.start(wish).map(Answer::Started)
            }
            Op::ExpireClients { names } => self.nfs()?.expire(&names),
            Op::ServerStop => Ok(Answer::Stopped { steps: self.nfs()?.stop()? }),
            Op::ServerStatus => self.nfs()?.status().map(|s| Answer::Status(Box::new(s))),
            Op::Probe { export, deadline_ms } => {
                self.nfs()?.probe(&export, Duration::from_millis(deadline_ms))
            }
            Op::Pulse { export, deadline_ms } => {
                self.nfs()?.pulse(&export, Duration::from_millis(deadline_ms))
            }
            Op::Progress => self.nfs()?.progress(),
            Op::Records => {
                let snapshot = self.nfs_slot().clone().and_then(|nfs| nfs.snapshot());
                Ok(Answer::Records { snapshot })
            }
            Op::IgnoreRemovals { ignore } => self.nfs()?.ignore_removals(ignore),
            Op::LetIn => self.nfs()?.let_in(),
            Op::Exit => self.may_exit().map(|()| Answer::Done),
            // Handled by the caller.
            _ => Err(Refusal::NotUnderstood { text: "no request for the server".into() }),
        }
    }

    fn hello(
        &self,
        service: &str,
        netns: &std::path::Path,
        version: u32,
    ) -> Result<Answer, Refusal> {
        let Identity { service: mine, netns: my_netns } = self.identity.clone();
        if mine != service || my_netns != netns || version != VERSION {
            return Err(Refusal::Stranger { service: mine, netns: my_netns, version: VERSION });
        }
        let set_up = self.nfs_slot().is_some();
        Ok(Answer::Hello { pid: std::process::id(), set_up })
    }

    fn set_up(&self, setup: super::Setup) -> Result<Answer, Refusal> {
        let present = self.nfs_slot().clone();
        let nfs = match present {
            Some(nfs) if *nfs.setup() == setup => nfs,
            Some(nfs) if nfs.is_running()? => return Err(Refusal::SetUpOtherwise),
            // The old tracker and answerer must be gone before new ones take their place.
            Some(nfs) => {
                nfs.give_way()?;
                *self.nfs_slot() = None;
                drop(nfs);
                Arc::new(Nfs::new(&self.ns, setup)?)
            }
            None => Arc::new(Nfs::new(&self.ns, setup)?),
        };
        *self.nfs_slot() = Some(Arc::clone(&nfs));
        nfs.configure().map(|()| Answer::Done)
    }

    fn records_must_be_closed(&self) -> Result<(), Refusal> {
        match self.nfs_slot().as_ref() {
            Some(nfs) if nfs.holds_records() => Err(Refusal::ServerRunning),
            _ => Ok(()),
        }
    }

    fn may_exit(&self) -> Result<(), Refusal> {
        match self.nfs_slot().clone() {
            Some(nfs) if nfs.is_running()? => Err(Refusal::ServerRunning),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let identity = Identity { service: "s".into(), netns: "/proc/thread-self/ns/net".into() };
        Shared::new(identity).unwrap()
    }

    #[test]
    fn hello_tells_a_stranger() {
        let hello = |service: &str, version| {
            let netns = "/proc/thread-self/ns/net".into();
            shared().carry_out(Op::Hello { service: service.into(), netns, version })
        };
        assert!(matches!(hello("s", VERSION), Ok(Answer::Hello { set_up: false, .. })));
        assert!(matches!(hello("t", VERSION), Err(Refusal::Stranger { .. })));
        assert!(matches!(hello("s", VERSION + 1), Err(Refusal::Stranger { .. })));
    }

    #[test]
    fn server_requests_before_set_up_are_refused() {
        let shared = shared();
        for op in [
            Op::ServerStop,
            Op::ServerStatus,
            Op::Probe { export: "vms".into(), deadline_ms: 1 },
            Op::Pulse { export: "vms".into(), deadline_ms: 1 },
            Op::Progress,
            Op::IgnoreRemovals { ignore: true },
            Op::ExpireClients { names: Vec::new() },
            Op::LetIn,
        ] {
            assert_eq!(shared.carry_out(op), Err(Refusal::NotSetUp));
        }
        assert_eq!(shared.carry_out(Op::Records), Ok(Answer::Records { snapshot: None }));
        assert_eq!(shared.carry_out(Op::Exit), Ok(Answer::Done));
    }
}
