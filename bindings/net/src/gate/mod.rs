//! Owns the gate: the kernel's enforcement of the right to serve (rules S4, S5, S12).
//!
//! A classifier of fourteen instructions sits on clsact ingress and egress of the service's
//! interface, first in line, and drops **everything** (ARP, neighbour advertisements,
//! retransmissions) once `CLOCK_MONOTONIC` has reached an absolute deadline. There is one deadline
//! per direction in a map, so that a cut can silence inbound first, let replies drain, and then
//! silence outbound. No process has to run for the gate to shut.
//!
//! **Why absolute (C3).** nasd may be stopped between proving its right and writing it down, and
//! go on a minute later. A *relative* lifetime written then would open the door a minute late;
//! a deadline counted from when the right was *requested* is then past, and opens nothing. This
//! module therefore has no call that takes a lifetime: a [`Deadline`] is made from the instant of
//! the request and the grant's TTL.
//!
//! **Crash-only (S9).** The map is pinned in bpffs. A new process adopts map and filters by
//! [`Gate::install_or_adopt`], traffic undisturbed; it verifies that the filters on *that*
//! interface run *this* program on *this* map, else it shuts the gate and attaches anew. Dropping
//! a [`Gate`] changes nothing.
//!
//! **What it does not see.** `AF_PACKET` senders with `PACKET_QDISC_BYPASS`, XDP and tcx programs
//! that redirect before it, and the loopback interface. Put nothing of the kind into the
//! service's namespace. The address's kernel lifetime ([`crate::addr`]) is the second belt.
//!
//! Needs `CAP_BPF` and `CAP_NET_ADMIN`, `CAP_SYS_ADMIN` for adopting and for mounting bpffs.

mod pin;
mod program;
mod tc;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::netlink::{Failure, Place};
use crate::sys::bpf;
use crate::{MonotonicInstant, NetError, NetnsWorker, Result, link};
use tc::{Control, Found};

/// One direction of the gate, as seen from the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Ingress,
    Egress,
}

impl Side {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn slot(self) -> u32 {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }

    const fn program_name(self) -> &'static str {
        match self {
            Self::Ingress => "nasd_gate_in",
            Self::Egress => "nasd_gate_out",
        }
    }
}

/// Slots of the map.
const SLOTS: u32 = 2;

/// Which directions a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// From the network to the service.
    Ingress,
    /// From the service to the network.
    Egress,
    /// Both, one after the other: inbound is the last to open and the first to shut (S5).
    Both,
}

/// Absolute `CLOCK_MONOTONIC` nanoseconds at which a direction shuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(u64);

impl Deadline {
    /// Always past: shut.
    pub const PAST: Self = Self(0);
    /// Never passes. Only for an owner that is alone in `current`, whose right does not expire.
    pub const NEVER: Self = Self(u64::MAX);

    /// When a right of `ttl`, *requested* at that instant, ends. Never [`Deadline::NEVER`],
    /// whatever the TTL.
    pub fn after(requested_at: MonotonicInstant, ttl: Duration) -> Self {
        Self(requested_at.saturating_add(ttl).as_nanos().min(u64::MAX - 1))
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whether packets pass at `now`: the comparison the kernel program makes.
    pub const fn allows(self, now: MonotonicInstant) -> bool {
        self.0 > now.as_nanos()
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PAST => f.write_str("shut"),
            Self::NEVER => f.write_str("never"),
            Self(nanos) => fmt::Display::fmt(&MonotonicInstant::from_nanos(nanos), f),
        }
    }
}

/// What the map says, and the clock at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateState {
    /// Deadline of inbound packets.
    pub ingress: Deadline,
    /// Deadline of outbound packets.
    pub egress: Deadline,
    /// When it was read.
    pub now: MonotonicInstant,
}

impl GateState {
    /// Inbound packets passed when it was read.
    pub const fn ingress_open(&self) -> bool {
        self.ingress.allows(self.now)
    }

    /// Outbound packets passed when it was read.
    pub const fn egress_open(&self) -> bool {
        self.egress.allows(self.now)
    }
}

/// How a gate came to be in this process's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was pinned: made anew, shut.
    Installed,
    /// Map and both filters were in place; deadlines untouched.
    Adopted,
    /// The map was pinned, a filter was missing or not ours: shut, then attached anew. The
    /// interface **was not gated** before; treat what was served since as unproven.
    Repaired,
}

/// The gate of one interface. Cheap to share; every call on it is one short system call.
#[derive(Clone, Debug)]
pub struct Gate {
    map: Arc<OwnedFd>,
    origin: Origin,
}

impl Gate {
    /// Puts the gate on `interface` in the worker's namespace, or adopts the one that is there,
    /// with its map pinned at `pin` (for example `/sys/fs/bpf/nasd/<service>`; bpffs is mounted
    /// at `/sys/fs/bpf` if it is not). A new gate is shut. Call it while the interface is down.
    ///
    /// # Errors
    /// [`NetError::ForeignFilter`], [`NetError::ForeignPin`], [`NetError::NotBpffs`],
    /// [`NetError::Pin`], [`NetError::Bpf`], [`NetError::InterfaceMissing`],
    /// [`NetError::GateUnverified`], [`NetError::Timeout`]. After any of them assume that the
    /// interface is **not** gated.
    pub fn install_or_adopt(
        worker: &NetnsWorker,
        interface: &str,
        pin: &Path,
        limit: Duration,
    ) -> Result<Self> {
        link::check_name(interface)?;
        let site = Site {
            namespace: worker.netns().name().to_owned(),
            interface: interface.to_owned(),
            limit,
        };
        let pin = pin.to_owned();
        worker.call("install the gate", limit, move |until| {
            let (map, fresh) = pin::open_or_create(&pin)?;
            site.settle(map, fresh, until)
        })
    }

    /// How this process came by the gate.
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Writes an absolute deadline. One that is past by now opens nothing (C3).
    ///
    /// # Errors
    /// [`NetError::Bpf`]; the deadlines are then as before, or only one of two was written.
    pub fn set(&self, which: Which, deadline: Deadline) -> Result<()> {
        let order: &[Side] = match which {
            Which::Ingress => &[Side::Ingress],
            Which::Egress => &[Side::Egress],
            // A request must not get in while its answer cannot get out.
            Which::Both if deadline == Deadline::PAST => &[Side::Ingress, Side::Egress],
            Which::Both => &[Side::Egress, Side::Ingress],
        };
        order.iter().try_for_each(|side| write(&self.map, *side, deadline))
    }

    /// Shuts at once.
    ///
    /// # Errors
    /// As [`Gate::set`].
    pub fn close(&self, which: Which) -> Result<()> {
        self.set(which, Deadline::PAST)
    }

    /// Reads both deadlines and the clock.
    ///
    /// # Errors
    /// [`NetError::Bpf`].
    pub fn read(&self) -> Result<GateState> {
        let slot = |side: Side| {
            bpf::lookup(&self.map, side.slot())
                .map(Deadline)
                .map_err(|source| NetError::Bpf { action: "read a gate deadline", source })
        };
        let (ingress, egress) = (slot(Side::Ingress)?, slot(Side::Egress)?);
        Ok(GateState { ingress, egress, now: MonotonicInstant::now() })
    }

    /// Whether both filters are still attached to the interface and run on this gate's map.
    ///
    /// # Errors
    /// [`NetError::Bpf`], [`NetError::InterfaceMissing`], [`NetError::Timeout`].
    pub fn verify(&self, worker: &NetnsWorker, interface: &str, limit: Duration) -> Result<bool> {
        link::check_name(interface)?;
        let site = Site {
            namespace: worker.netns().name().to_owned(),
            interface: interface.to_owned(),
            limit,
        };
        let map = Arc::clone(&self.map);
        worker.call("verify the gate", limit, move |until| {
            let mut control = site.control(until)?;
            for side in Side::ALL {
                let wanted = Wanted::load(&map, side)?;
                let found = control.inspect(side).map_err(|failure| site.error(failure))?;
                if !wanted.is(&found)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Takes the gate away for good: filters first, then the pin. The interface is then **open**;
    /// delete it or set it down before.
    ///
    /// # Errors
    /// [`NetError::Pin`], [`NetError::InterfaceMissing`], [`NetError::Timeout`].
    pub fn uninstall(
        worker: &NetnsWorker,
        interface: &str,
        pin: &Path,
        limit: Duration,
    ) -> Result<()> {
        link::check_name(interface)?;
        let site = Site {
            namespace: worker.netns().name().to_owned(),
            interface: interface.to_owned(),
            limit,
        };
        let pin = pin.to_owned();
        worker.call("remove the gate", limit, move |until| {
            let mut control = site.control(until)?;
            for side in Side::ALL {
                control.detach(side).map_err(|failure| site.error(failure))?;
            }
            pin::remove(&pin)
        })
    }
}

fn write(map: &OwnedFd, side: Side, deadline: Deadline) -> Result<()> {
    bpf::update(map, side.slot(), deadline.0)
        .map_err(|source| NetError::Bpf { action: "write a gate deadline", source })
}

/// The interface a gate goes on.
struct Site {
    namespace: String,
    interface: String,
    limit: Duration,
}

impl Site {
    fn error(&self, failure: Failure) -> NetError {
        failure.at(&Place {
            namespace: &self.namespace,
            action: "gate interface",
            object: &self.interface,
            limit: self.limit,
        })
    }

    fn control(&self, until: Instant) -> Result<Control> {
        let index =
            link::query(&self.interface, until).map_err(|failure| self.error(failure))?.index;
        Control::open(index, until).map_err(|failure| self.error(failure))
    }

    fn foreign(&self, found: String) -> NetError {
        NetError::ForeignFilter {
            namespace: self.namespace.clone(),
            interface: self.interface.clone(),
            found,
        }
    }

    /// Brings the interface and the map together.
    fn settle(&self, map: OwnedFd, fresh: bool, until: Instant) -> Result<Gate> {
        let mut control = self.control(until)?;
        if let Some(kind) = control.ensure_clsact().map_err(|failure| self.error(failure))? {
            return Err(self.foreign(format!("{kind} queueing discipline")));
        }
        let mut missing = Vec::new();
        for side in Side::ALL {
            let wanted = Wanted::load(&map, side)?;
            let found = control.inspect(side).map_err(|failure| self.error(failure))?;
            if let Found::Foreign(what) = found {
                return Err(self.foreign(what));
            }
            if !wanted.is(&found)? {
                missing.push(wanted);
            }
        }
        let origin = match (fresh, missing.is_empty()) {
            (true, _) => Origin::Installed,
            (false, true) => Origin::Adopted,
            (false, false) => Origin::Repaired,
        };
        self.attach(&map, &missing, &mut control)?;
        Ok(Gate { map: Arc::new(map), origin })
    }

    /// Attaches what is missing, shut (S12: an ungated interface proves nothing), and reads back.
    fn attach(&self, map: &OwnedFd, missing: &[Wanted], control: &mut Control) -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        for side in Side::ALL {
            write(map, side, Deadline::PAST)?;
        }
        for wanted in missing {
            let name = wanted.side.program_name();
            control
                .attach(wanted.side, &wanted.program, name)
                .map_err(|failure| self.error(failure))?;
            let found = control.inspect(wanted.side).map_err(|failure| self.error(failure))?;
            if !wanted.is(&found)? {
                return Err(NetError::GateUnverified {
                    namespace: self.namespace.clone(),
                    interface: self.interface.clone(),
                });
            }
        }
        Ok(())
    }
}

/// The program a side should run, freshly loaded: what this kernel makes of it is the measure for
/// what is attached.
struct Wanted {
    side: Side,
    program: OwnedFd,
    info: bpf::ProgramInfo,
}

impl Wanted {
    fn load(map: &OwnedFd, side: Side) -> Result<Self> {
        let code = program::assemble(map.as_raw_fd(), side.slot());
        let program = bpf::load_classifier(side.program_name(), &code, program::LICENSE)
            .map_err(|source| NetError::Bpf { action: "load the gate's program", source })?;
        let info = bpf::program_info(&program)
            .map_err(|source| NetError::Bpf { action: "examine the gate's program", source })?;
        Ok(Self { side, program, info })
    }

    /// Whether what is attached has the same instructions and the same map.
    fn is(&self, found: &Found) -> Result<bool> {
        let Found::Program(id) = found else { return Ok(false) };
        let examine = || bpf::program_info(&bpf::program_by_id(*id)?);
        match examine() {
            Ok(info) => Ok(info == self.info),
            // Replaced between listing and looking.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(NetError::Bpf { action: "examine an attached program", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// C3: a deadline made from an old request is past, however long after it is written.
        #[test]
        fn c3_a_late_write_of_an_old_right_is_past(requested in any::<u64>(), ttl in any::<u64>(), delay in any::<u64>()) {
            let at = MonotonicInstant::from_nanos(requested);
            let deadline = Deadline::after(at, Duration::from_nanos(ttl));
            let later = at.saturating_add(Duration::from_nanos(ttl)).saturating_add(Duration::from_nanos(delay));
            prop_assert!(!deadline.allows(later));
            prop_assert_ne!(deadline, Deadline::NEVER);
        }

        #[test]
        fn a_right_allows_within_its_ttl(requested in 0..u64::MAX / 4, ttl in 1..u64::MAX / 4) {
            let at = MonotonicInstant::from_nanos(requested);
            let deadline = Deadline::after(at, Duration::from_nanos(ttl));
            prop_assert!(deadline.allows(at.saturating_add(Duration::from_nanos(ttl - 1))));
        }

        #[test]
        fn never_and_past_are_what_they_say(now in 0..u64::MAX) {
            prop_assert!(Deadline::NEVER.allows(MonotonicInstant::from_nanos(now)));
            prop_assert!(!Deadline::PAST.allows(MonotonicInstant::from_nanos(now)));
        }
    }

    #[test]
    fn not_even_the_longest_ttl_is_never() {
        let last = MonotonicInstant::from_nanos(u64::MAX);
        assert_ne!(Deadline::after(last, Duration::MAX), Deadline::NEVER);
    }
}
