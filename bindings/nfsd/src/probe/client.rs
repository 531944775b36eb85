//! The calls of the probe: NULL, and five NFSv4.1 compounds (RFC 8881).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::xdr::{Decoder, Encoder};
use super::{Found, ProbeError, RpcReason, Target};

type Result<T> = std::result::Result<T, ProbeError>;

const PROGRAM: u32 = 100_003;
const VERSION: u32 = 4;
// Operations, RFC 8881 section 16.
const GETATTR: u32 = 9;
const LOOKUP: u32 = 15;
const PUTROOTFH: u32 = 24;
const EXCHANGE_ID: u32 = 42;
const CREATE_SESSION: u32 = 43;
const DESTROY_SESSION: u32 = 44;
const SEQUENCE: u32 = 53;
const DESTROY_CLIENTID: u32 = 57;
/// Attributes `type` (1) and `fsid` (8).
const ATTRIBUTES: u32 = 1 << 1 | 1 << 8;
/// Record of an answer that is longer than this is not an answer to us.
const RECORD_MAX: u32 = 64 * 1024;

/// The call that every server answers without knowing the caller.
///
/// # Errors
/// Nobody listens, or no thread answers.
pub fn null_call(address: SocketAddr, deadline: Duration) -> Result<()> {
    let mut wire = Wire::connect(address, deadline)?;
    wire.call("NULL", 0, Encoder::default()).map(|_| ())
}

/// Makes a session, looks the export up, tears the session down.
///
/// The session is torn down also when the look-up failed, as far as the server lets us.
pub fn probe(target: &Target) -> Result<Found> {
    let mut wire = Wire::connect(target.address, target.deadline)?;
    let (client, sequence, scope) = exchange_id(&mut wire, &target.owner)?;
    let found = in_session(&mut wire, client, sequence, &target.export);
    let destroyed = destroy_client(&mut wire, client);
    let (fsid, kind) = found?;
    destroyed?;
    Ok(Found { scope, fsid, kind })
}

fn in_session(
    wire: &mut Wire,
    client: u64,
    sequence: u32,
    export: &str,
) -> Result<([u8; 16], u32)> {
    let session = create_session(wire, client, sequence)?;
    let found = look_up(wire, &session, export);
    let destroyed = destroy_session(wire, &session);
    let found = found?;
    destroyed.map(|()| found)
}

fn exchange_id(wire: &mut Wire, owner: &str) -> Result<(u64, u32, Vec<u8>)> {
    let step = "EXCHANGE_ID";
    let arguments = Encoder::default()
        .u32(EXCHANGE_ID)
        .u64(verifier())
        .opaque(owner.as_bytes())
        .u32(0) // flags
        .u32(0) // SP4_NONE
        .u32(0); // no implementation id
    let reply = wire.compound(step, &[arguments])?;
    let mut reply = Decoder::new(&reply);
    let read = |reply: &mut Decoder<'_>| {
        expect_op(reply, EXCHANGE_ID)?;
        let (client, sequence) = (reply.u64()?, reply.u32()?);
        let (_flags, protection) = (reply.u32()?, reply.u32()?);
        let (_minor, _major) = (reply.u64()?, reply.opaque()?);
        let scope = reply.opaque()?.to_vec();
        (protection == 0).then_some((client, sequence, scope))
    };
    read(&mut reply).ok_or(ProbeError::Garbled { step })
}

/// Differs from call to call, so that what an interrupted probe left is replaced.
fn verifier() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map(|d| d.as_nanos() as u64).unwrap_or_default()
}

fn channel() -> Encoder {
    // Padding, request, response and cached sizes, operations, requests, no RDMA.
    let sizes = [0, 4096, 4096, 1024, 8, 1, 0];
    sizes.into_iter().fold(Encoder::default(), Encoder::u32)
}

fn create_session(wire: &mut Wire, client: u64, sequence: u32) -> Result<[u8; 16]> {
    let step = "CREATE_SESSION";
    let arguments = Encoder::default()
        .u32(CREATE_SESSION)
        .u64(client)
        .u32(sequence)
        .u32(0) // flags: no callbacks
        .append(channel())
        .append(channel())
        .u32(0) // callback program
        .u32(1)
        .u32(0); // one callback security flavour: none
    let reply = wire.compound(step, &[arguments])?;
    let mut reply = Decoder::new(&reply);
    expect_op(&mut reply, CREATE_SESSION)
        .and_then(|()| reply.fixed::<16>())
        .ok_or(ProbeError::Garbled { step })
}

fn look_up(wire: &mut Wire, session: &[u8; 16], export: &str) -> Result<([u8; 16], u32)> {
    let step = "LOOKUP";
    let sequence = Encoder::default().u32(SEQUENCE).fixed(session).u32(1).u32(0).u32(0).u32(0);
    let operations = [
        sequence,
        Encoder::default().u32(PUTROOTFH),
        Encoder::default().u32(LOOKUP).opaque(export.as_bytes()),
        Encoder::default().u32(GETATTR).u32(1).u32(ATTRIBUTES),
    ];
    let reply = wire.compound(step, &operations)?;
    read_attributes(&mut Decoder::new(&reply)).ok_or(ProbeError::Garbled { step })
}

fn read_attributes(reply: &mut Decoder<'_>) -> Option<([u8; 16], u32)> {
    expect_op(reply, SEQUENCE)?;
    reply.fixed::<16>()?;
    for _ in 0..5 {
        reply.u32()?;
    }
    expect_op(reply, PUTROOTFH)?;
    expect_op(reply, LOOKUP)?;
    expect_op(reply, GETATTR)?;
    (reply.bitmap()? == [ATTRIBUTES]).then_some(())?;
    let mut values = Decoder::new(reply.opaque()?);
    let kind = values.u32()?;
    Some((values.fixed::<16>()?, kind))
}

fn destroy_session(wire: &mut Wire, session: &[u8; 16]) -> Result<()> {
    let arguments = Encoder::default().u32(DESTROY_SESSION).fixed(session);
    wire.compound("DESTROY_SESSION", &[arguments]).map(|_| ())
}

fn destroy_client(wire: &mut Wire, client: u64) -> Result<()> {
    let arguments = Encoder::default().u32(DESTROY_CLIENTID).u64(client);
    wire.compound("DESTROY_CLIENTID", &[arguments]).map(|_| ())
}

/// Reads operation number and status; the compound's own status was checked before.
fn expect_op(reply: &mut Decoder<'_>, operation: u32) -> Option<()> {
    (reply.u32()? == operation && reply.u32()? == 0).then_some(())
}

/// A connection with a deadline over all of its life.
struct Wire {
    stream: TcpStream,
    address: SocketAddr,
    until: Instant,
    xid: u32,
}

impl Wire {
    fn connect(address: SocketAddr, deadline: Duration) -> Result<Self> {
        let until = Instant::now() + deadline;
        let stream = TcpStream::connect_timeout(&address, deadline.max(Duration::from_millis(1)))
            .map_err(|source| failed(address, "connect", source))?;
        // Small calls, each waiting for its answer: no delay is wanted.
        let _ = stream.set_nodelay(true);
        Ok(Wire { stream, address, until, xid: verifier() as u32 })
    }

    /// Limits the next transfer to what is left.
    fn arm(&self, step: &'static str) -> Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProbeError::Deadline { address: self.address, step });
        }
        self.stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.set_write_timeout(Some(left)))
            .map_err(|source| failed(self.address, step, source))
    }

    /// One RPC call; the bytes of its result.
    fn call(&mut self, step: &'static str, procedure: u32, body: Encoder) -> Result<Vec<u8>> {
        self.xid = self.xid.wrapping_add(1);
        let message = header(self.xid, procedure).append(body).record();
        self.arm(step)?;
        self.stream.write_all(&message).map_err(|e| failed(self.address, step, e))?;
        loop {
            let record = self.read_record(step)?;
            if let Some(result) = accepted(&record, self.xid, step)? {
                return Ok(result.to_vec());
            }
        }
    }

    fn read_record(&mut self, step: &'static str) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let mut mark = [0; 4];
            self.read_exact(step, &mut mark)?;
            let mark = u32::from_be_bytes(mark);
            let length = mark & 0x7fff_ffff;
            if length > RECORD_MAX || out.len() > RECORD_MAX as usize {
                return Err(ProbeError::Garbled { step });
            }
            let mut fragment = vec![0; length as usize];
            self.read_exact(step, &mut fragment)?;
            out.extend(fragment);
            if mark & 0x8000_0000 != 0 {
                return Ok(out);
            }
        }
    }

    fn read_exact(&mut self, step: &'static str, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            self.arm(step)?;
            match self.stream.read(buffer) {
                Ok(0) => {
                    let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(failed(self.address, step, source));
                }
                Ok(got) => buffer = buffer.get_mut(got..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(self.address, step, e)),
            }
        }
        Ok(())
    }

    /// One compound of minor version 1; the bytes after its header if all operations succeeded.
    fn compound(&mut self, step: &'static str, operations: &[Encoder]) -> Result<Vec<u8>> {
        let count = u32::try_from(operations.len()).unwrap_or(u32::MAX);
        let head = Encoder::default().opaque(b"nasd").u32(1).u32(count);
        let body = operations.iter().cloned().fold(head, Encoder::append);
        let result = self.call(step, 1, body)?;
        let mut decoder = Decoder::new(&result);
        let garbled = ProbeError::Garbled { step };
        let Some(status) = decoder.u32() else { return Err(garbled) };
        if status != 0 {
            return Err(ProbeError::Nfs { step, status });
        }
        let (Some(_tag), Some(_count)) = (decoder.opaque(), decoder.u32()) else {
            return Err(garbled);
        };
        Ok(decoder.rest().to_vec())
    }
}

fn failed(address: SocketAddr, step: &'static str, source: io::Error) -> ProbeError {
    match source.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            ProbeError::Deadline { address, step }
        }
        _ => ProbeError::Connection { address, source },
    }
}

/// Call header with AUTH_SYS credentials of user 0 (RFC 5531 section 9).
fn header(xid: u32, procedure: u32) -> Encoder {
    let credentials = Encoder::default().u32(0).opaque(b"nasd").u32(0).u32(0).u32(0);
    let length = credentials.len();
    Encoder::default()
        .u32(xid)
        .u32(0) // call
        .u32(2) // RPC version
        .u32(PROGRAM)
        .u32(VERSION)
        .u32(procedure)
        .u32(1) // AUTH_SYS
        .u32(length)
        .append(credentials)
        .u32(0) // verifier: AUTH_NONE
        .u32(0)
}

/// The result of an accepted answer; none for an answer to another call.
fn accepted<'a>(record: &'a [u8], xid: u32, step: &'static str) -> Result<Option<&'a [u8]>> {
    let mut reply = Decoder::new(record);
    let garbled = || ProbeError::Garbled { step };
    if reply.u32().ok_or_else(garbled)? != xid {
        return Ok(None);
    }
    let (kind, status) = (reply.u32(), reply.u32());
    match (kind, status) {
        (Some(1), Some(0)) => {}
        (Some(1), Some(1)) => {
            let (_why, detail) = (reply.u32(), reply.u32().unwrap_or_default());
            return Err(ProbeError::Rpc { step, reason: RpcReason::Denied(detail) });
        }
        _ => return Err(garbled()),
    }
    let (_flavour, _verifier) = (reply.u32(), reply.opaque());
    match reply.u32().ok_or_else(garbled)? {
        0 => Ok(Some(reply.rest())),
        other => Err(ProbeError::Rpc { step, reason: RpcReason::Accept(other) }),
    }
}

#[cfg(test)]
mod tests;
