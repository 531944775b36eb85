//! Tests of the probe against a scripted server.

use std::net::TcpListener;
use std::thread;

use super::*;

const SESSION: [u8; 16] = [9; 16];

/// What a scripted server saw: operation numbers of each compound.
type Seen = thread::JoinHandle<Vec<Vec<u32>>>;

/// Skips a call's header; returns its id and the rest.
fn open_call(record: &[u8]) -> (u32, Decoder<'_>) {
    let mut call = Decoder::new(record);
    let xid = call.u32().unwrap();
    for _ in 0..6 {
        call.u32().unwrap();
    }
    call.opaque().unwrap();
    call.u32().unwrap();
    call.opaque().unwrap();
    (xid, call)
}

fn first_operation(call: &mut Decoder<'_>) -> u32 {
    call.opaque().unwrap();
    assert_eq!(call.u32(), Some(1), "minor version");
    call.u32().unwrap();
    call.u32().unwrap()
}

fn accepted_head(xid: u32) -> Encoder {
    Encoder::default().u32(xid).u32(1).u32(0).u32(0).u32(0).u32(0)
}

fn compound_head(xid: u32, status: u32, count: u32) -> Encoder {
    accepted_head(xid).u32(status).opaque(b"nasd").u32(count)
}

fn results(operation: u32, xid: u32, lookup_status: u32) -> Encoder {
    let done = |op: u32| Encoder::default().u32(op).u32(0);
    match operation {
        EXCHANGE_ID => compound_head(xid, 0, 1)
            .append(done(EXCHANGE_ID))
            .u64(77)
            .u32(5)
            .u32(0x0001_0000)
            .u32(0)
            .u64(0)
            .opaque(b"vms")
            .opaque(b"vms")
            .u32(0),
        CREATE_SESSION => compound_head(xid, 0, 1)
            .append(done(CREATE_SESSION))
            .fixed(&SESSION)
            .u32(5)
            .u32(0)
            .append(channel())
            .append(channel()),
        SEQUENCE if lookup_status != 0 => compound_head(xid, lookup_status, 0),
        SEQUENCE => compound_head(xid, 0, 4)
            .append(done(SEQUENCE))
            .fixed(&SESSION)
            .append((0..5).fold(Encoder::default(), |e, _| e.u32(0)))
            .append(done(PUTROOTFH))
            .append(done(LOOKUP))
            .append(done(GETATTR))
            .u32(1)
            .u32(ATTRIBUTES)
            .opaque(&[[0, 0, 0, 2].as_slice(), &[0xab; 16]].concat()),
        other => compound_head(xid, 0, 1).append(done(other)),
    }
}

/// A server that plays its part for one connection.
fn server(lookup_status: u32) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let job = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        let mut wire = Wire { stream, address, until, xid: 0 };
        let mut seen = Vec::new();
        while let Ok(record) = wire.read_record("server") {
            let (xid, mut call) = open_call(&record);
            let operation = first_operation(&mut call);
            seen.push(vec![operation]);
            wire.stream.write_all(&results(operation, xid, lookup_status).record()).unwrap();
        }
        seen
    });
    (address, job)
}

fn target(address: SocketAddr) -> Target {
    let (export, owner) = ("vms".into(), "nasd-probe/test".into());
    Target { address, export, owner, deadline: Duration::from_secs(2) }
}

#[test]
fn a_serving_server_is_found_and_left_clean() {
    let (address, job) = server(0);
    let found = probe(&target(address)).unwrap();
    assert_eq!(found, Found { scope: b"vms".to_vec(), fsid: [0xab; 16], kind: 2 });
    let seen = job.join().unwrap().concat();
    let order = [EXCHANGE_ID, CREATE_SESSION, SEQUENCE, DESTROY_SESSION, DESTROY_CLIENTID];
    assert_eq!(seen, order);
}

#[test]
fn a_missing_export_is_named_and_the_session_still_torn_down() {
    let (address, job) = server(2);
    let error = probe(&target(address)).unwrap_err();
    assert!(matches!(error, ProbeError::Nfs { step: "LOOKUP", status: 2 }), "{error}");
    let seen = job.join().unwrap().concat();
    assert_eq!(seen[3..], [DESTROY_SESSION, DESTROY_CLIENTID]);
}

#[test]
fn nobody_listening_and_nobody_answering_are_told_apart() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let started = Instant::now();
    let error = null_call(address, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ProbeError::Deadline { step: "NULL", .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1));
    drop(silent);
    let error = null_call(address, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ProbeError::Connection { .. }), "{error}");
}

#[test]
fn refusals_of_the_rpc_layer_are_named() {
    let denied = Encoder::default().u32(7).u32(1).u32(1).u32(1).u32(1).record();
    let error = accepted(&denied[4..], 7, "NULL").unwrap_err();
    assert!(matches!(error, ProbeError::Rpc { reason: RpcReason::Denied(1), .. }));
    let unavailable = Encoder::default().u32(7).u32(1).u32(0).u32(0).u32(0).u32(1).record();
    let error = accepted(&unavailable[4..], 7, "NULL").unwrap_err();
    assert!(matches!(error, ProbeError::Rpc { reason: RpcReason::Accept(1), .. }));
    assert!(accepted(&unavailable[4..], 8, "NULL").unwrap().is_none());
}

proptest::proptest! {
    #[test]
    fn no_answer_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120)) {
        let _ = accepted(&bytes, 0, "NULL");
        let _ = read_attributes(&mut Decoder::new(&bytes));
    }
}
