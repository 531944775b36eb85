//! The daemon's answers, from bytes to [`model`](crate::model). Pure: they read from anything.
//!
//! Keeps S12: every length is checked against the protocol's own bounds before it is used, and an
//! answer is whole or an error.

use std::io::{self, Read};

use crate::error::{Error, Result};
use crate::model::{
    Daemon, Disk, Holder, Host, HostState, Listed, Lockspace, Outcome, Renewal, RenewalHistory,
    Resource, Stage, Status, Version,
};
use crate::text::Text;
use crate::wire::{self, Command, Fields, Header};

/// More records than a daemon can have (1024 clients, 8 leases each, three lists): a bound on the
/// memory that an answer may take.
const MAX_RECORDS: usize = 16_384;

/// `-ENOENT`, `-EAGAIN`, `-ENOSPC` as the daemon sends them: always Linux's numbers.
const NO_ENTRY: i32 = -2;
const TRY_AGAIN: i32 = -11;
const NO_SPACE: i32 = -28;

const DAEMON: u32 = 1;
const CLIENT: u32 = 2;
const LOCKSPACE: u32 = 3;
const RESOURCE: u32 = 4;
const RENEWAL: u32 = 6;
/// A thread of the daemon's pool, told by 3.9 and later behind the daemon itself: a text, and nothing after it.
const WORKER: u32 = 7;

/// The answer to the version command.
pub fn version(from: &mut impl Read) -> Result<Version> {
    let header = header(from, Command::Version)?;
    accepted(header, Command::Version)?;
    let [major, minor, patch, _] = header.data2.to_be_bytes();
    Ok(Version { major, minor, patch })
}

/// The answer to the status command. Its end is the connection's: an answer that lacks the daemon's
/// own record is no answer. Whether all lockspaces came is for the caller to check against
/// [`lockspaces`], as nothing in the stream says so.
pub fn status(from: &mut impl Read) -> Result<Status> {
    accepted(header(from, Command::Status)?, Command::Status)?;
    let Some(Record::Daemon(daemon)) = next_record(from)? else {
        return Err(Error::Truncated { part: "the daemon's record" });
    };
    let (holders, lockspaces, resources) = (Vec::new(), Vec::new(), Vec::new());
    let mut status = Status { daemon, holders, lockspaces, resources };
    for _ in 0..MAX_RECORDS {
        match next_record(from)? {
            None => return Ok(status),
            Some(record) => keep(&mut status, record)?,
        }
    }
    Err(too_many())
}

fn keep(status: &mut Status, record: Record) -> Result<()> {
    match record {
        Record::Daemon(_) => return Err(unexpected("status", DAEMON)),
        Record::Worker => {}
        Record::Holder(holder) => status.holders.push(holder),
        Record::Lockspace(lockspace) => status.lockspaces.push(lockspace),
        Record::Resource(resource) => status.resources.push(resource),
    }
    Ok(())
}

/// The answer to the list of lockspaces.
pub fn lockspaces(from: &mut impl Read) -> Result<Vec<Listed>> {
    let header = header(from, Command::GetLockspaces)?;
    let count = list_of(header, Command::GetLockspaces, wire::LOCKSPACE)?;
    (0..count).map(|_| listed(&array::<{ wire::LOCKSPACE }>(from, "a lockspace")?)).collect()
}

/// The answer to the list of a lockspace's hosts. `name` is the lockspace asked for.
pub fn hosts(from: &mut impl Read, name: &str) -> Result<Vec<Host>> {
    let header = header(from, Command::GetHosts)?;
    match header.data {
        NO_ENTRY => return Err(Error::NoSuchLockspace { name: name.to_owned() }),
        TRY_AGAIN => return Err(Error::NotReadYet { name: name.to_owned() }),
        _ => {}
    }
    let count = list_of(header, Command::GetHosts, wire::HOST)?;
    (0..count).map(|_| host(&array::<{ wire::HOST }>(from, "a host")?)).collect()
}

/// The answer to the history of renewals. `name` is the lockspace asked for.
pub fn renewals(from: &mut impl Read, name: &str) -> Result<RenewalHistory> {
    let header = header(from, Command::Renewal)?;
    if header.data == NO_SPACE {
        return Err(Error::NoSuchLockspace { name: name.to_owned() });
    }
    accepted(header, Command::Renewal)?;
    let io_timeout = (header.data2 > 0).then_some(header.data2);
    let mut renewals = Vec::new();
    while renewals.len() <= MAX_RECORDS {
        // A daemon that keeps no history closes without having read the request's body, which
        // the kernel turns into a reset instead of an end.
        let state = match next_state(from) {
            Err(Error::Broken { source, .. }) if no_history(&source, io_timeout) => None,
            other => other?,
        };
        let Some(state) = state else { return Ok(RenewalHistory { io_timeout, renewals }) };
        renewals.push(renewal(&state, &text(from, &state)?)?);
    }
    Err(too_many())
}

fn no_history(error: &io::Error, io_timeout: Option<u32>) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset && io_timeout.is_none()
}

/// How many entries of that size follow the header.
fn list_of(header: Header, command: Command, size: usize) -> Result<usize> {
    if header.data == NO_SPACE {
        return Err(Error::Incomplete { count: header.data2 });
    }
    accepted(header, command)?;
    let count = header.data2 as usize;
    let wanted = count.saturating_mul(size).saturating_add(wire::HEADER);
    if wanted > wire::MAX_LIST + wire::HEADER || wanted != header.length as usize {
        let (found, allowed) = (u64::from(header.length), wanted as u64);
        return Err(Error::BadLength { part: "a list", found, allowed });
    }
    Ok(count)
}

fn accepted(header: Header, command: Command) -> Result<()> {
    if header.data < 0 {
        return Err(Error::Refused { command: command.name(), code: header.data });
    }
    Ok(())
}

fn header(from: &mut impl Read, command: Command) -> Result<Header> {
    Header::parse(&array::<{ wire::HEADER }>(from, "the header")?, command)
}

/// A record of the status answer.
enum Record {
    Daemon(Daemon),
    Worker,
    Holder(Holder),
    Lockspace(Lockspace),
    Resource(Resource),
}

/// `struct sanlk_state`.
struct State {
    kind: u32,
    data32: u32,
    name: String,
    text_length: u32,
}

fn next_record(from: &mut impl Read) -> Result<Option<Record>> {
    let Some(state) = next_state(from)? else { return Ok(None) };
    let text = text(from, &state)?;
    Ok(Some(match state.kind {
        DAEMON => Record::Daemon(daemon(&text)?),
        WORKER => Record::Worker,
        CLIENT => Record::Holder(holder(&state, &text)?),
        LOCKSPACE => Record::Lockspace(lockspace(from, &text)?),
        RESOURCE => Record::Resource(resource(from, &state, &text)?),
        other => return Err(unexpected("status", other)),
    }))
}

/// The next record's fixed part; `None` at the end, which is only between records.
fn next_state(from: &mut impl Read) -> Result<Option<State>> {
    let mut bytes = [0; wire::STATE];
    if !fill(from, &mut bytes, "a record")? {
        return Ok(None);
    }
    let mut fields = Fields(&bytes);
    let kind = fields.u32();
    fields.skip(4);
    let data32 = fields.u32();
    fields.skip(4 + 8);
    let name = fields.text(wire::NAME);
    let text_length = fields.u32();
    if text_length > wire::MAX_TEXT {
        let (found, allowed) = (text_length.into(), wire::MAX_TEXT.into());
        return Err(Error::BadLength { part: "a record's text", found, allowed });
    }
    Ok(Some(State { kind, data32, name, text_length }))
}

/// A record's text, without the NUL that ends it.
fn text(from: &mut impl Read, state: &State) -> Result<String> {
    let mut bytes = vec![0; state.text_length as usize];
    exactly(from, &mut bytes, "a record's text")?;
    Ok(Fields(&bytes).text(bytes.len()))
}

fn daemon(text: &str) -> Result<Daemon> {
    let text = Text::new("daemon", text);
    Ok(Daemon {
        host_name: text.get("our_host_name")?.to_owned(),
        use_watchdog: text.flag("use_watchdog")?,
        io_timeout: text.number_if_told("io_timeout")?,
        watchdog_fire_timeout: text.number_if_told("watchdog_fire_timeout")?,
        kill_grace: text.number("kill_grace_seconds")?,
        monotime: text.number("monotime")?,
        version: text.get("version_str")?.to_owned(),
    })
}

fn holder(state: &State, text: &str) -> Result<Holder> {
    let text = Text::new("client", text);
    let kill_count = text.number("kill_count")?;
    Ok(Holder { pid: process(state.data32), name: state.name.clone(), kill_count })
}

/// sanlock writes -1 where there is no process.
fn process(number: u32) -> Option<u32> {
    i32::try_from(number).ok().filter(|pid| *pid > 0).map(i32::cast_unsigned)
}

fn lockspace(from: &mut impl Read, text: &str) -> Result<Lockspace> {
    let listed = listed(&array::<{ wire::LOCKSPACE }>(from, "a lockspace")?)?;
    let text = Text::new("lockspace", text);
    let corrupt = Outcome(text.number("corrupt_result")?);
    Ok(Lockspace {
        name: listed.name,
        host_id: listed.host_id,
        disk: listed.disk,
        stage: stage(&text)?,
        io_timeout: text.number("io_timeout")?,
        dead: text.flag("space_dead")?,
        killing: text.number::<i32>("killing_pids")? != 0,
        corrupt: (corrupt.0 != 0).then_some(corrupt),
        last_result: Outcome(text.number("renewal_last_result")?),
        last_attempt: text.number("renewal_last_attempt")?,
        last_success: text.number("renewal_last_success")?,
    })
}

fn stage(text: &Text<'_>) -> Result<Stage> {
    match text.get("list")? {
        "spaces" => Ok(Stage::Joined),
        "add" => Ok(Stage::Joining),
        "rem" => Ok(Stage::Leaving),
        other => Err(text.bad("list", Some(other))),
    }
}

/// `SANLK_RES_SHARED`.
const SHARED: u32 = 4;

fn resource(from: &mut impl Read, state: &State, text: &str) -> Result<Resource> {
    let bytes = array::<{ wire::RESOURCE }>(from, "a lease")?;
    let mut fields = Fields(&bytes);
    let (lockspace, name) = (fields.text(wire::NAME), fields.text(wire::NAME));
    fields.skip(8 + 8 + 4 + 4);
    let shared = fields.u32() & SHARED != 0;
    let disks = disks(from, fields.u32())?;
    let list = Text::new("resource", text).get("list")?.to_owned();
    Ok(Resource { lockspace, name, pid: process(state.data32), shared, disks, list })
}

fn disks(from: &mut impl Read, count: u32) -> Result<Vec<Disk>> {
    if count > wire::MAX_DISKS {
        let (found, allowed) = (count.into(), wire::MAX_DISKS.into());
        return Err(Error::BadLength { part: "the areas of a lease", found, allowed });
    }
    let one = |_| Ok(disk(&mut Fields(&array::<{ wire::DISK }>(from, "an area of a lease")?)));
    (0..count).map(one).collect()
}

fn disk(fields: &mut Fields<'_>) -> Disk {
    let path = fields.text(wire::PATH);
    Disk { path, offset: fields.u64() }
}

fn listed(bytes: &[u8; wire::LOCKSPACE]) -> Result<Listed> {
    let mut fields = Fields(bytes);
    let name = fields.text(wire::NAME);
    let host_id = fields.u64();
    let flags = fields.u32();
    fields.skip(4);
    // `SANLK_LSF_ADD`, `SANLK_LSF_REM`. A status answer leaves them out and names its list in text.
    let stage = match flags & 3 {
        0 => Stage::Joined,
        1 => Stage::Joining,
        2 => Stage::Leaving,
        _ => return Err(bad_flags("lockspace", flags)),
    };
    Ok(Listed { name, host_id, stage, disk: disk(&mut fields) })
}

fn host(bytes: &[u8; wire::HOST]) -> Result<Host> {
    let mut fields = Fields(bytes);
    let (id, generation, timestamp) = (fields.u64(), fields.u64(), fields.u64());
    let io_timeout = fields.u32();
    let flags = fields.u32();
    // `SANLK_HOST_*` in the low four bits.
    let state = match flags & 0xf {
        1 => HostState::Unknown,
        2 => HostState::Free,
        3 => HostState::Live,
        4 => HostState::Failed,
        5 => HostState::Dead,
        _ => return Err(bad_flags("host", flags)),
    };
    Ok(Host { id, generation, timestamp, io_timeout, state })
}

fn renewal(state: &State, text: &str) -> Result<Renewal> {
    if state.kind != RENEWAL {
        return Err(unexpected("renewal", state.kind));
    }
    let text = Text::new("renewal", text);
    Ok(Renewal {
        timestamp: text.number("timestamp")?,
        read_ms: text.number("read_ms")?,
        write_ms: text.number("write_ms")?,
        next_timeouts: text.number("next_timeouts")?,
        next_errors: text.number("next_errors")?,
    })
}

fn array<const N: usize>(from: &mut impl Read, part: &'static str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    exactly(from, &mut bytes, part)?;
    Ok(bytes)
}

fn exactly(from: &mut impl Read, bytes: &mut [u8], part: &'static str) -> Result<()> {
    if !bytes.is_empty() && !fill(from, bytes, part)? {
        return Err(Error::Truncated { part });
    }
    Ok(())
}

/// Fills `bytes`; `false` when the answer ended before the first of them.
fn fill(from: &mut impl Read, bytes: &mut [u8], part: &'static str) -> Result<bool> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(Error::Truncated { part }),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(Error::Broken { doing: part, source }),
        }
    }
    Ok(true)
}

fn unexpected(answer: &'static str, found: u32) -> Error {
    Error::UnexpectedRecord { answer, found }
}

fn bad_flags(record: &'static str, flags: u32) -> Error {
    Error::BadField { record, key: "flags", found: Some(format!("{flags:#x}")) }
}

fn too_many() -> Error {
    let records = MAX_RECORDS as u64;
    Error::BadLength { part: "the number of records", found: records + 1, allowed: records }
}
