//! The order of the connection's commands against a scripted kernel, and the evidence after them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};

use nasd_drbd::{Abi, Outcome, PeerDevice, Refusal, ReplState, ReturnCode, Suspended};

use super::*;

/// A resource with one volume, as the kernel would show it.
pub(in crate::drive) fn status(
    role: Role,
    state: Option<ConnState>,
    disk: DiskState,
) -> ResourceStatus {
    let connected = state == Some(ConnState::Connected);
    let peer = PeerDevice {
        repl: if connected { ReplState::Established } else { ReplState::Off },
        disk: if connected { DiskState::UpToDate } else { DiskState::DUnknown },
        out_of_sync_bytes: Some(0),
        resync_total_bytes: None,
        bitmap_uuid: Some(0x51),
        resync_suspended: false,
    };
    let device = Device {
        minor: 3,
        disk,
        size: Some(1 << 20),
        current_uuid: Some(0x40),
        primary_mark: false,
        history_uuids: vec![0x30, 0x21],
        upper_pending: None,
        lower_pending: None,
        has_quorum: None,
        is_open: None,
        options: None,
    };
    let connection = state.map(|state| Connection {
        key: ConnKey::Only,
        name: None,
        my_addr: None,
        peer_addr: None,
        state,
        peer_role: if connected { Role::Secondary } else { Role::Unspecified },
        peer_devices: BTreeMap::from([(0, peer)]),
        options: None,
    });
    ResourceStatus {
        abi: Abi::V84,
        name: "r0".into(),
        role,
        suspended: Suspended::default(),
        fail_io: false,
        devices: BTreeMap::from([(0, device)]),
        connections: connection.into_iter().collect(),
        options: None,
    }
}

fn frozen(state: Option<ConnState>) -> ResourceStatus {
    let mut status = status(Role::Primary, state, DiskState::UpToDate);
    status.suspended.fencing = true;
    status
}

/// A kernel of 8.4: a disconnect forgets the connection, a connect makes a new one.
struct Kernel {
    now: RefCell<ResourceStatus>,
    asked: RefCell<Vec<&'static str>>,
    known: Vec<ConnectSpec>,
    /// Answers before it obeys.
    refusals: RefCell<VecDeque<CommandError>>,
    /// A disconnect is answered, and has no effect.
    deaf: bool,
    /// Looks after a connect until its receiver runs.
    starting: Cell<u32>,
}

impl Kernel {
    fn new(now: ResourceStatus) -> Self {
        Self {
            now: RefCell::new(now),
            asked: RefCell::default(),
            known: vec![ConnectSpec::V9 { peer_node_id: 1 }],
            refusals: RefCell::default(),
            deaf: false,
            starting: Cell::new(0),
        }
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.borrow().clone()
    }

    fn obey(&self, what: &'static str) -> CommandResult {
        self.asked.borrow_mut().push(what);
        match self.refusals.borrow_mut().pop_front() {
            Some(error) => Err(error),
            None => Ok(Outcome::default()),
        }
    }
}

impl Line for Kernel {
    fn name(&self) -> &'static str {
        "r0"
    }

    fn look(&self) -> Result<ResourceStatus, DrbdError> {
        let mut now = self.now.borrow().clone();
        let connecting = now.connections.first().is_some_and(|c| c.state == ConnState::Connecting);
        if connecting && self.starting.get() > 0 {
            self.starting.set(self.starting.get() - 1);
            now.connections[0].state = ConnState::Unconnected;
        }
        Ok(now)
    }

    fn known(&self) -> Vec<ConnectSpec> {
        self.known.clone()
    }

    fn disconnect(&self, _: ConnKey, _: Duration) -> CommandResult {
        assert_eq!(self.starting.get(), 0, "no receiver would end");
        let done = self.obey("disconnect")?;
        if !self.deaf {
            self.now.borrow_mut().connections.clear();
        }
        Ok(done)
    }

    fn join(&self, _: ConnectSpec, _: Duration) -> CommandResult {
        let done = self.obey("connect")?;
        let connecting = status(Role::Secondary, Some(ConnState::Connecting), DiskState::UpToDate);
        self.now.borrow_mut().connections = connecting.connections;
        Ok(done)
    }
}

fn refused() -> CommandError {
    CommandError::Refused {
        command: "connect",
        volume: None,
        reason: Refusal::Unknown,
        code: ReturnCode(102),
        info: Vec::new(),
    }
}

const LIMIT: Duration = Duration::from_millis(200);

#[test]
fn s1_only_stand_alone_with_complete_disks_is_frozen() {
    let alone = |disk| status(Role::Secondary, None, disk);
    assert_eq!(against_frozen(&alone(DiskState::UpToDate)), None);
    assert_eq!(against_frozen(&alone(DiskState::Consistent)), None);
    for disk in [
        DiskState::Outdated,
        DiskState::Inconsistent,
        DiskState::Diskless,
        DiskState::Failed,
        DiskState::Attaching,
        DiskState::Negotiating,
        DiskState::DUnknown,
        DiskState::Unknown(99),
    ] {
        assert!(against_frozen(&alone(disk)).unwrap().contains("volume 0"), "{disk:?}");
    }
    for state in [ConnState::Connecting, ConnState::Connected, ConnState::Disconnecting] {
        let found = against_frozen(&status(Role::Secondary, Some(state), DiskState::UpToDate));
        assert!(found.unwrap().contains("connection"), "{state:?}");
    }
    let mut empty = alone(DiskState::UpToDate);
    empty.devices.clear();
    assert!(against_frozen(&empty).is_some());
    let mut target = status(Role::Secondary, Some(ConnState::StandAlone), DiskState::UpToDate);
    target.connections[0].peer_devices.get_mut(&0).unwrap().repl = ReplState::SyncTarget;
    assert!(against_frozen(&target).unwrap().contains("resync"));
}

#[test]
fn h1_a_taker_cuts_looks_and_is_done() {
    let kernel =
        Kernel::new(status(Role::Secondary, Some(ConnState::Connected), DiskState::UpToDate));
    force_disconnect(&kernel, LIMIT).unwrap();
    force_disconnect(&kernel, LIMIT).unwrap();
    assert_eq!(kernel.asked(), ["disconnect"], "the second time there is nothing to cut");
}

#[test]
fn s1_a_taker_that_does_not_see_the_cut_has_no_proof() {
    let up = || status(Role::Secondary, Some(ConnState::Connected), DiskState::UpToDate);
    let deaf = Kernel { deaf: true, ..Kernel::new(up()) };
    let error = force_disconnect(&deaf, LIMIT).unwrap_err();
    assert!(matches!(error, ConnectionError::NoEvidence { .. }), "{error}");
    let refusing = Kernel::new(up());
    refusing.refusals.borrow_mut().push_back(refused());
    assert!(matches!(force_disconnect(&refusing, LIMIT), Err(ConnectionError::Command(_))));
    let stale = Kernel::new(status(Role::Secondary, None, DiskState::Outdated));
    let error = force_disconnect(&stale, LIMIT).unwrap_err().to_string();
    assert!(error.contains("volume 0 is Outdated"), "{error}");
}

#[test]
fn h3_data_that_cannot_be_taken_stays_connected() {
    let up = Some(ConnState::Connected);
    let mut target = status(Role::Secondary, up, DiskState::Inconsistent);
    target.connections[0].peer_devices.get_mut(&0).unwrap().repl = ReplState::SyncTarget;
    for behind in [target, status(Role::Secondary, up, DiskState::Diskless)] {
        let kernel = Kernel::new(behind);
        assert!(matches!(
            force_disconnect(&kernel, LIMIT),
            Err(ConnectionError::NoEvidence { .. })
        ));
        assert!(kernel.asked().is_empty());
    }
}

#[test]
fn a_primary_is_never_cut_for_a_takeover() {
    for role in [Role::Primary, Role::Unspecified] {
        let owner = Kernel::new(status(role, Some(ConnState::Connected), DiskState::UpToDate));
        assert!(matches!(force_disconnect(&owner, LIMIT), Err(ConnectionError::NotSecondary(_))));
        assert!(owner.asked().is_empty());
    }
}

#[test]
fn h2_a_frozen_primary_is_cut_and_connected_again() {
    let waiting = Kernel::new(frozen(Some(ConnState::Connecting)));
    assert!(retrigger(&waiting, LIMIT).unwrap());
    assert_eq!(waiting.asked(), ["disconnect", "connect"]);
    // The kernel runs its helper when a receiver ends: there must be one.
    let alone = Kernel::new(frozen(None));
    alone.starting.set(4);
    assert!(retrigger(&alone, LIMIT).unwrap());
    assert_eq!(alone.asked(), ["connect", "disconnect", "connect"]);
}

#[test]
fn h2_nothing_that_is_not_frozen_is_cut() {
    for status in [
        status(Role::Primary, Some(ConnState::Connecting), DiskState::UpToDate),
        status(Role::Primary, Some(ConnState::Connected), DiskState::UpToDate),
        status(Role::Secondary, Some(ConnState::Connecting), DiskState::UpToDate),
        frozen(Some(ConnState::Connected)),
    ] {
        let kernel = Kernel::new(status);
        assert!(!retrigger(&kernel, LIMIT).unwrap());
        assert!(kernel.asked().is_empty());
    }
}

#[test]
fn connect_waits_for_the_kernel_to_forget_and_asks_once_where_it_is_done() {
    let kernel = Kernel::new(status(Role::Secondary, None, DiskState::UpToDate));
    kernel.refusals.borrow_mut().extend([refused(), refused()]);
    connect(&kernel, LIMIT).unwrap();
    connect(&kernel, LIMIT).unwrap();
    assert_eq!(kernel.asked(), ["connect"; 3]);
    let stubborn = Kernel::new(status(Role::Secondary, None, DiskState::UpToDate));
    stubborn.refusals.borrow_mut().extend(std::iter::repeat_n(refused(), 1000));
    let began = Instant::now();
    assert!(matches!(connect(&stubborn, LIMIT), Err(ConnectionError::Command(_))));
    assert!(began.elapsed() < SETTLE, "the caller's limit holds");
}

#[test]
fn what_nobody_remembers_is_left_to_drbdadm() {
    let alone = status(Role::Secondary, None, DiskState::UpToDate);
    let kernel = Kernel { known: Vec::new(), ..Kernel::new(alone) };
    assert!(matches!(connect(&kernel, LIMIT), Err(ConnectionError::Forgotten(_))));
}

#[test]
fn a_status_without_addresses_does_not_make_one_forget() {
    let specs = Specs::default();
    let mut nine = status(Role::Secondary, Some(ConnState::Connected), DiskState::UpToDate);
    nine.connections[0].key = ConnKey::Peer(4);
    specs.remember(&nine);
    assert_eq!(specs.all(), [ConnectSpec::V9 { peer_node_id: 4 }]);
    specs.remember(&status(Role::Secondary, Some(ConnState::StandAlone), DiskState::UpToDate));
    specs.remember(&status(Role::Secondary, None, DiskState::UpToDate));
    assert_eq!(specs.all().len(), 1);
}
