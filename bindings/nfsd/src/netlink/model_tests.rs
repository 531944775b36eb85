//! Tests of the netlink family's messages: round trips, and bytes that mean nothing.

use super::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn put_end(w: Writer, end: Option<SocketAddr>, kinds: [u16; 3]) -> Writer {
    let Some(end) = end else { return w };
    match end.ip() {
        IpAddr::V4(ip) => w.bytes(kinds[0], &ip.octets()),
        IpAddr::V6(ip) => w.bytes(kinds[1], &ip.octets()),
    }
    .bytes(kinds[2], &end.port().to_be_bytes())
}

/// As the kernel composes it: program and procedure before the version, padding in between.
fn as_kernel(call: &RunningCall) -> Vec<u8> {
    let w = Writer::default()
        .bytes(rpc::XID, &call.xid.to_be_bytes())
        .u32(rpc::FLAGS, call.flags)
        .u32(rpc::PROG, call.program)
        .u32(rpc::PROC, call.procedure)
        .bytes(rpc::VERSION, &[call.version])
        .bytes(7, &[])
        .bytes(rpc::SERVICE_TIME, &call.since_us.to_ne_bytes());
    let w = put_end(w, call.source, [rpc::SADDR4, rpc::SADDR6, rpc::SPORT]);
    let w = put_end(w, call.destination, [rpc::DADDR4, rpc::DADDR6, rpc::DPORT]);
    call.operations.iter().fold(w, |w, op| w.u32(rpc::COMPOUND_OPS, *op)).finish()
}

fn plain_address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn call() -> impl Strategy<Value = RunningCall> {
    let ends = (option::of(plain_address()), option::of(plain_address()));
    let numbers = any::<(u32, u32, u32, u8, u32, i64)>();
    (numbers, ends, vec(any::<u32>(), 0..20)).prop_map(|(n, (source, destination), operations)| {
        let (xid, flags, program, version, procedure, since_us) = n;
        #[rustfmt::skip]
        return RunningCall {
            xid, flags, program, version, procedure, since_us, source, destination, operations,
        };
    })
}

fn scope() -> impl Strategy<Value = String> {
    "[a-z0-9.-]{1,64}"
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = (RunningCall::decode(&bytes), Threads::decode(&bytes));
        let _ = (Version::decode_all(&bytes), Listener::decode_all(&bytes));
    }

    #[test]
    fn damaged_listeners_never_panic(at in 0usize..152, byte: u8, address: SocketAddr) {
        let mut bytes = Listener::encode_all(&[Listener { transport: "tcp".into(), address }]);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        let _ = Listener::decode_all(&bytes);
    }

    #[test]
    fn calls_are_read_as_the_kernel_wrote_them(call in call()) {
        prop_assert_eq!(RunningCall::decode(&as_kernel(&call)), Ok(call));
    }

    #[test]
    fn threads_are_read_as_they_were_set(count: u32, grace_s: u32, lease_s: u32, scope in scope()) {
        let change = ThreadsChange {
            count,
            grace_s: Some(grace_s),
            lease_s: Some(lease_s),
            scope: Some(scope.clone()),
        };
        let want = Threads { pools: vec![count], grace_s, lease_s, scope };
        prop_assert_eq!(Threads::decode(&change.encode()), Ok(want));
    }

    #[test]
    fn listeners_survive(list in vec(any::<SocketAddr>(), 0..4)) {
        let list: Vec<_> =
            list.into_iter().map(|address| Listener { transport: "tcp".into(), address }).collect();
        prop_assert_eq!(Listener::decode_all(&Listener::encode_all(&list)), Ok(list));
    }

    #[test]
    fn versions_survive(list in vec(any::<(u32, u32, bool)>(), 0..9)) {
        let list: Vec<_> = list
            .into_iter()
            .map(|(major, minor, enabled)| Version { major, minor, enabled })
            .collect();
        prop_assert_eq!(Version::decode_all(&Version::encode_all(&list)), Ok(list));
    }
}

#[test]
fn s12_missing_attributes_are_errors() {
    assert_eq!(RunningCall::decode(&[]), Err(DecodeError::Missing { kind: rpc::XID }));
    let only_threads = ThreadsChange { count: 8, ..ThreadsChange::default() }.encode();
    let missing = DecodeError::Missing { kind: server::GRACETIME };
    assert_eq!(Threads::decode(&only_threads), Err(missing));
    assert_eq!(Threads::decode(&[]), Err(DecodeError::Missing { kind: server::THREADS }));
}

#[test]
fn an_unknown_address_family_is_an_error() {
    let mut local = encode_address(&SocketAddr::from(([192, 0, 2, 1], 2049)));
    local[..2].copy_from_slice(&1u16.to_ne_bytes());
    let nest = Writer::default().bytes(sock::ADDR, &local).text(sock::TRANSPORT_NAME, "tcp");
    let bytes = Writer::default().nest(sock::NEST, nest).finish();
    assert!(matches!(Listener::decode_all(&bytes), Err(DecodeError::Attribute { .. })));
}

#[test]
fn threads_of_all_pools_count() {
    let bytes = Writer::default()
        .u32(server::GRACETIME, 90)
        .u32(server::LEASETIME, 15)
        .text(server::SCOPE, "vms")
        .u32(server::THREADS, 3)
        .u32(server::THREADS, 4)
        .finish();
    assert_eq!(Threads::decode(&bytes).unwrap().count(), 7);
}

#[test]
fn only_4_1_and_4_2_pass() {
    let version = |major, minor, enabled| Version { major, minor, enabled };
    let off = [version(3, 0, false), version(4, 0, false)];
    let good = [&off[..], &Version::SERVED].concat();
    assert!(Version::only_v41_and_v42(&good));
    assert!(!Version::only_v41_and_v42(&Version::SERVED[..1]));
    assert!(!Version::only_v41_and_v42(&[]));
    for extra in [version(3, 0, true), version(4, 0, true), version(4, 3, true)] {
        assert!(!Version::only_v41_and_v42(&[&good[..], &[extra]].concat()), "{extra:?}");
    }
}
