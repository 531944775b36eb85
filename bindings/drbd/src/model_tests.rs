//! The races of the event stream, and the decoding below it.

use proptest::prelude::*;

use super::{Applied, Model};
use crate::client::read_one;
use crate::enums::{ConnState, DiskState, ReplState, Role};
use crate::socket::Answer;
use crate::status::{ConnKey, ResourceStatus};
use crate::testing::{CHANGE, CREATE, DESTROY, EXISTS, Fake, Kernel};
use crate::wire::message::Message;
use crate::wire::nests;
use crate::{Abi, Quorum, StatusError};

const BOTH: [Abi; 2] = [Abi::V84, Abi::V9];

fn enter(model: &mut Model, abi: Abi, answers: &[Answer]) -> Vec<Applied> {
    let event = |answer: &Answer| nests::event(abi, &answer.message()).unwrap().unwrap();
    answers.iter().map(|answer| model.apply(&event(answer))).collect()
}

fn model(abi: Abi, answers: &[Answer]) -> Model {
    let mut model = Model::new(abi);
    enter(&mut model, abi, answers);
    model
}

fn healthy(abi: Abi) -> ResourceStatus {
    read_one(&mut Fake::new(abi, &[]), "r0").unwrap()
}

#[test]
fn a_healthy_resource_is_read_whole() {
    for abi in BOTH {
        let status = healthy(abi);
        assert_eq!(status.role, Role::Secondary);
        let device = &status.devices[&1];
        assert_eq!((device.minor, device.disk), (11, DiskState::UpToDate));
        assert_eq!(device.size, Some(1 << 20));
        assert_eq!(device.current_uuid, Some(0xabcd_0000));
        assert!(device.primary_mark);
        assert_eq!(device.history_uuids, [0x77]);
        assert!(status.all_up_to_date() && status.released_by_all());
        let key = status.connections[0].key;
        assert!(status.is_in_sync_with(key) && !status.is_stand_alone());
        assert_eq!(status.out_of_sync_bytes(), Some(2 * 8 * 512));
        assert_eq!(status.s1_violations(), []);
        let peer = &status.connections[0].peer_devices[&0];
        assert_eq!((peer.repl, peer.disk), (ReplState::Established, DiskState::UpToDate));
    }
}

#[test]
fn s2_generations() {
    let device = &healthy(Abi::V84).devices[&0];
    for ours in [0xabcd_0000, 0xabcd_0001, 0x77, 0x76] {
        assert!(device.has_generation(ours), "{ours:x}");
    }
    for foreign in [0, 1, 0xabcd_0002, 0x78] {
        assert!(!device.has_generation(foreign), "{foreign:x}");
    }
}

#[test]
fn s1_each_option_that_is_wrong_is_named() {
    let mut status = healthy(Abi::V9);
    let options = status.options.as_mut().unwrap();
    options.on_no_data = Some(crate::OnNoData::IoError);
    options.auto_promote = Some(true);
    options.quorum = Some(Quorum::Majority);
    let net = status.connections[0].options.as_mut().unwrap();
    net.protocol = Some(crate::Protocol::A);
    net.fencing = Some(crate::Fencing::DontCare);
    net.rr_conflict = Some(crate::AfterSb::RetryConnect);
    net.after_sb_1pri = Some(crate::AfterSb::Unknown(99));
    net.allow_two_primaries = Some(true);
    let names: Vec<_> = status.s1_violations().iter().map(|found| found.name).collect();
    let want = [
        "on-no-data-accessible",
        "auto-promote",
        "quorum",
        "protocol",
        "fencing",
        "rr-conflict",
        "after-sb-1pri",
        "allow-two-primaries",
    ];
    assert_eq!(names, want);
}

#[test]
fn s12_options_that_cannot_be_read_are_violations() {
    let mut status = healthy(Abi::V84);
    status.devices.get_mut(&1).unwrap().options = None;
    let found = status.s1_violations();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name, found[0].actual.as_deref()), ("fencing", None));
    assert_eq!(found[0].to_string(), "fencing is not readable, must be resource-and-stonith");
    status.connections.clear();
    assert!(status.s1_violations().iter().any(|found| found.name == "connection"));
}

#[test]
fn change_before_exists_wins_over_the_dump() {
    for abi in BOTH {
        let kernel = Kernel(abi);
        let mut model = Model::new(abi);
        let applied = enter(
            &mut model,
            abi,
            &[
                kernel.device(CHANGE, 0, kernel.up_to_date()),
                kernel.resource(CHANGE, 1, false),
                kernel.resource(EXISTS, 2, false),
                kernel.device(EXISTS, 0, 0),
                kernel.done(),
            ],
        );
        use Applied::{Complete, Stale, Updated};
        assert_eq!(applied, [Updated, Updated, Stale, Stale, Complete]);
        let status = model.resource("r0").unwrap();
        assert_eq!(status.role, Role::Primary);
        assert!(status.all_up_to_date());
    }
}

#[test]
fn create_before_exists_and_exists_before_create() {
    let kernel = Kernel(Abi::V9);
    let create = [kernel.resource(CREATE, 2, false), kernel.device(CREATE, 0, 0)];
    let exists = [kernel.resource(EXISTS, 2, false), kernel.device(EXISTS, 0, 0)];
    let done = [kernel.done()];
    let one = model(Abi::V9, &[&create[..], &exists, &done].concat());
    let two = model(Abi::V9, &[&exists[..], &done, &create].concat());
    assert_eq!(one.resources(), two.resources());
    assert_eq!(one.resource("r0").unwrap().devices.len(), 1);
}

#[test]
fn destroy_before_exists_is_not_revived() {
    for abi in BOTH {
        let kernel = Kernel(abi);
        let all = model(
            abi,
            &[
                kernel.peer_device(DESTROY, 0, 0, 0),
                kernel.connection(DESTROY, 0, 0),
                kernel.device(DESTROY, 0, 0),
                kernel.resource(DESTROY, 0, false),
                kernel.resource(EXISTS, 2, false),
                kernel.connection(EXISTS, 9, 2),
                kernel.device(EXISTS, 0, 0),
                kernel.peer_device(EXISTS, 0, 10, 8),
                kernel.done(),
            ],
        );
        assert!(all.resources().is_empty(), "{abi:?}");
    }
}

#[test]
fn destroyed_and_created_again_is_there() {
    let kernel = Kernel(Abi::V84);
    let again = model(
        Abi::V84,
        &[
            kernel.resource(DESTROY, 0, false),
            kernel.resource(CREATE, 2, false),
            kernel.resource(EXISTS, 1, false),
            kernel.done(),
        ],
    );
    assert_eq!(again.resource("r0").unwrap().role, Role::Secondary);
}

#[test]
fn out_of_order_objects_find_their_places() {
    let kernel = Kernel(Abi::V9);
    let status = model(
        Abi::V9,
        &[
            kernel.done(),
            kernel.device(CREATE, 1, 0),
            kernel.peer_device(CREATE, 1, 9, 7),
            kernel.resource(CREATE, 2, false),
            kernel.device(CREATE, 0, 0),
            kernel.connection(CREATE, 0, 0),
        ],
    );
    let status = status.resource("r0").unwrap();
    assert_eq!((status.devices.len(), status.role), (2, Role::Secondary));
    assert_eq!(status.connections.len(), 1);
    assert_eq!(status.connections[0].state, ConnState::StandAlone);
}

#[test]
fn s12_an_incomplete_model_says_nothing() {
    let kernel = Kernel(Abi::V9);
    let partial = model(Abi::V9, &[kernel.resource(EXISTS, 2, false)]);
    assert!(partial.resource("r0").is_none());
    let mut fake = Fake::new(Abi::V9, &[]);
    fake.dumps.state.pop();
    assert_eq!(read_one(&mut fake, "r0"), Err(StatusError::Incomplete));
    fake.dumps.state[0].code = 158;
    assert!(matches!(read_one(&mut fake, "r0"), Err(StatusError::Refused(_))));
}

#[test]
fn statistics_absent_from_a_change_keep_their_values() {
    let kernel = Kernel(Abi::V84);
    let mut bare = kernel.device(CHANGE, 0, 5);
    let attrs = crate::wire::attr::Attrs::parse(&bare.attrs).unwrap();
    let kept = attrs
        .iter()
        .filter(|attr| attr.kind != 20)
        .fold(crate::wire::attr::Writer::default(), |writer, attr| {
            writer.bytes(attr.kind, attr.data)
        });
    bare.attrs = kept.finish();
    let status = model(Abi::V84, &[kernel.device(EXISTS, 0, 8), kernel.done(), bare]);
    let device = &status.resources()["r0"].devices[&0];
    assert_eq!((device.disk, device.current_uuid), (DiskState::Outdated, Some(0xabcd_0000)));
}

#[test]
fn s1_stand_alone_on_8_4_is_the_absence_of_a_connection() {
    let mut old = healthy(Abi::V84);
    old.connections.clear();
    assert!(old.is_stand_alone() && !old.released_by_all());
    old.devices.clear();
    assert!(!old.is_stand_alone(), "S12: a resource of nothing proves nothing");
    let mut new = healthy(Abi::V9);
    new.connections[0].state = ConnState::StandAlone;
    assert!(new.is_stand_alone());
    new.connections.clear();
    assert!(!new.is_stand_alone(), "S12: on 9 an unconfigured resource proves nothing");
}

#[test]
fn s1_a_late_word_about_a_peers_disk_does_not_bring_its_connection_back() {
    let kernel = Kernel(Abi::V84);
    let gone = model(
        Abi::V84,
        &[
            kernel.resource(EXISTS, 2, false),
            kernel.device(EXISTS, 0, 8),
            kernel.connection(EXISTS, 8, 1),
            kernel.peer_device(EXISTS, 0, 10, 8),
            kernel.done(),
            kernel.peer_device(DESTROY, 0, 0, 0),
            kernel.connection(DESTROY, 0, 0),
            kernel.peer_device(CHANGE, 0, 0, 5),
        ],
    );
    assert!(gone.resource("r0").unwrap().is_stand_alone());
}

#[test]
fn s1_released_needs_connected_and_secondary() {
    let mut status = healthy(Abi::V84);
    assert!(status.released_by(ConnKey::Only) && !status.released_by(ConnKey::Peer(1)));
    for state in [ConnState::Connecting, ConnState::NetworkFailure, ConnState::Unknown(10)] {
        status.connections[0].state = state;
        assert!(!status.released_by(ConnKey::Only), "{state}");
    }
    status.connections[0].state = ConnState::Connected;
    for role in [Role::Primary, Role::Unspecified, Role::Unknown(3)] {
        status.connections[0].peer_role = role;
        assert!(!status.released_by(ConnKey::Only), "{role}");
    }
}

#[test]
fn s12_a_connection_known_only_by_its_volumes_is_neither_connected_nor_stand_alone() {
    let kernel = Kernel(Abi::V84);
    let status = model(Abi::V84, &[kernel.peer_device(CHANGE, 0, 10, 8), kernel.done()]);
    let status = status.resource("r0").unwrap();
    assert!(!status.is_stand_alone() && !status.released_by_all());
}

#[test]
fn a_missing_volume_of_the_peer_is_not_in_sync() {
    let mut status = healthy(Abi::V9);
    let key = ConnKey::Peer(1);
    status.connections[0].peer_devices.remove(&1);
    assert!(!status.is_in_sync_with(key));
    status.connections[0].peer_devices.clear();
    status.devices.clear();
    assert!(!status.is_in_sync_with(key) && !status.all_up_to_date());
}

#[test]
fn resync_progress() {
    let mut status = healthy(Abi::V9);
    let peer = status.connections[0].peer_devices.get_mut(&0).unwrap();
    peer.repl = ReplState::SyncTarget;
    peer.resync_total_bytes = Some(16 * 512);
    assert_eq!(peer.resync_percent(), Some(50.0));
    assert_eq!(peer.in_sync_percent(32 * 512), Some(75.0));
    assert!(status.is_resyncing() && status.is_resync_target());
}

#[test]
fn the_freeze_is_seen() {
    let kernel = Kernel(Abi::V84);
    let status = model(Abi::V84, &[kernel.resource(CHANGE, 1, true), kernel.done()]);
    let suspended = status.resource("r0").unwrap().suspended;
    assert!(suspended.fencing && suspended.any() && !suspended.user);
}

#[test]
fn addresses_survive_the_way_through_the_kernel() {
    let status = healthy(Abi::V84);
    let my = status.connections[0].my_addr.clone().unwrap();
    assert_eq!(my.socket_addr(), Some("10.0.0.1:7788".parse().unwrap()));
    assert_eq!(crate::Endpoint::from(my.socket_addr().unwrap()), my);
    let six: std::net::SocketAddr = "[fd00::1%3]:7788".parse().unwrap();
    assert_eq!(crate::Endpoint::from(six).socket_addr(), Some(six));
}

proptest! {
    #[test]
    fn any_bytes_never_panic(
        raw in proptest::collection::vec(any::<u8>(), 0..300),
        cmd in prop_oneof![30u8..42, any::<u8>()],
        new in any::<bool>(),
    ) {
        let abi = if new { Abi::V9 } else { Abi::V84 };
        let message = Message { cmd, seq: 0, minor: Some(1), code: 101, attrs: &raw };
        let _ = nests::config(abi, &message);
        let _ = nests::event(abi, &message);
    }

    /// A valid message with one byte changed is decoded to something or refused, and the model
    /// takes it.
    #[test]
    fn damaged_messages_never_panic(
        which in 0usize..7, at in any::<prop::sample::Index>(), byte in any::<u8>(),
        new in any::<bool>(),
    ) {
        let abi = if new { Abi::V9 } else { Abi::V84 };
        let mut answer = Kernel(abi).healthy().state[which].clone();
        let at = at.index(answer.attrs.len());
        answer.attrs[at] = byte;
        if let Ok(Some(event)) = nests::event(abi, &answer.message()) {
            Model::new(abi).apply(&event);
        }
    }

    /// Whatever order dump and changes come in, a later multicast decides.
    #[test]
    fn the_last_multicast_decides(states in proptest::collection::vec(0u32..9, 1..6), at in 0usize..7) {
        let kernel = Kernel(Abi::V84);
        let mut stream: Vec<_> =
            states.iter().map(|state| kernel.device(CHANGE, 0, *state)).collect();
        stream.insert(at.min(states.len()), kernel.device(EXISTS, 0, 3));
        stream.push(kernel.done());
        let last = *states.last().unwrap();
        let result = model(Abi::V84, &stream);
        let disk = result.resources()["r0"].devices[&0].disk;
        prop_assert_eq!(disk, DiskState::from_wire(Abi::V84, last));
    }
}
