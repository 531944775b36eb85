//! libvirt's signals, drained so that they never hold up answers on the same connection.
//!
//! An event is a hint and no proof: after a restart of libvirtd or of the bridge some are missing, and
//! [`Event::Resync`] says so. Whoever acts on one asks for the state first (S12).

use futures_util::StreamExt;
use futures_util::stream::select;
use tokio::sync::mpsc;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, ObjectPath, OwnedObjectPath};

use super::error::{Error, Result};
use super::proxy::{LIBVIRT, QEMU};

/// Events that may wait for their reader. More, and the reader must resynchronise.
const WAITING: usize = 256;

const BUS: &str = "org.freedesktop.DBus";

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A guest changed its life.
    Lifecycle {
        /// The guest.
        domain: OwnedObjectPath,
        /// To what.
        change: Change,
        /// Why: a number that depends on `change`.
        detail: i32,
    },
    /// A disk failed.
    IoError {
        /// The guest.
        domain: OwnedObjectPath,
        /// The disk's source, as far as libvirt tells.
        source: String,
        /// The disk's alias.
        device: String,
        /// The guest was paused by it.
        paused: bool,
    },
    /// A guest's job has ended.
    JobCompleted {
        /// The guest.
        domain: OwnedObjectPath,
    },
    /// A disk's job has changed.
    BlockJob {
        /// The guest.
        domain: OwnedObjectPath,
        /// The disk.
        disk: String,
        /// `VIR_DOMAIN_BLOCK_JOB_TYPE_*`.
        kind: i32,
        /// 0 completed, 1 failed, 2 cancelled, 3 ready.
        status: i32,
    },
    /// A pool was started, stopped, defined...
    Pool {
        /// The pool.
        pool: OwnedObjectPath,
    },
    /// Events are missing: ask for everything again.
    Resync(Lost),
}

/// Why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The bridge was started.
    BridgeStarted,
    /// The bridge is gone.
    BridgeGone,
    /// The reader was too slow.
    Overrun,
}

/// How a guest's life changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was started. Detail 1: it arrived by migration.
    Started,
    /// It was paused. Detail 1: migrated away; 2: by an error of a disk.
    Suspended,
    /// It goes on. Detail 1: after a migration.
    Resumed,
    /// Its process is gone. Detail 3: migrated away.
    Stopped,
    /// Anything else (defined, undefined, shutting down, crashed).
    Other(i32),
}

impl Change {
    const fn of(number: i32) -> Self {
        match number {
            2 => Self::Started,
            3 => Self::Suspended,
            4 => Self::Resumed,
            5 => Self::Stopped,
            other => Self::Other(other),
        }
    }
}

/// Subscribes. A task drains the connection; it ends with the connection or with the receiver.
pub async fn watch(connection: &Connection) -> Result<mpsc::Receiver<Event>> {
    let failed = |error| Error::of_bus(BUS, "AddMatch", &error);
    let signals = signals(connection).await.map_err(failed)?;
    let owners = owners(connection).await.map_err(failed)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(drain(select(signals, owners), sender));
    Ok(receiver)
}

async fn signals(connection: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder().msg_type(Type::Signal).path_namespace(QEMU);
    // Without a bus in between, messages have no sender.
    let rule = if connection.is_bus() { rule.sender(LIBVIRT) } else { rule };
    MessageStream::for_match_rule(rule.build()?, connection, None).await
}

async fn owners(connection: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder().msg_type(Type::Signal).interface(BUS);
    let rule = rule.member("NameOwnerChanged").add_arg(LIBVIRT);
    let rule = if connection.is_bus() { rule.sender(BUS) } else { rule };
    MessageStream::for_match_rule(rule.build()?, connection, None).await
}

async fn drain(
    mut messages: impl futures_util::Stream<Item = zbus::Result<Message>> + Unpin,
    sender: mpsc::Sender<Event>,
) {
    let mut overrun = false;
    while let Some(message) = messages.next().await {
        let Some(event) = message.ok().as_ref().and_then(decode) else { continue };
        if overrun && sender.try_send(Event::Resync(Lost::Overrun)).is_ok() {
            overrun = false;
        }
        match sender.try_send(event) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => overrun = true,
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

/// What a signal says; `None` for those that are of no interest or not understood.
fn decode(message: &Message) -> Option<Event> {
    let header = message.header();
    let path: OwnedObjectPath = header.path()?.to_owned().into();
    let (interface, member) = (header.interface()?.as_str(), header.member()?.as_str());
    let body = message.body();
    match (interface, member) {
        ("org.libvirt.Connect", "DomainEvent") => {
            let (domain, change, detail): (ObjectPath<'_>, i32, i32) = body.deserialize().ok()?;
            let (domain, change) = (domain.to_owned().into(), Change::of(change));
            Some(Event::Lifecycle { domain, change, detail })
        }
        ("org.libvirt.Connect", "StoragePoolEvent") => {
            let (pool, _, _): (ObjectPath<'_>, i32, i32) = body.deserialize().ok()?;
            Some(Event::Pool { pool: pool.to_owned().into() })
        }
        ("org.libvirt.Domain", "IOError") => {
            let (source, device, action, _): (String, String, i32, &str) =
                body.deserialize().ok()?;
            Some(Event::IoError { domain: path, source, device, paused: action == 1 })
        }
        ("org.libvirt.Domain", "JobCompleted") => Some(Event::JobCompleted { domain: path }),
        ("org.libvirt.Domain", "BlockJob") => {
            let (disk, kind, status): (String, i32, i32) = body.deserialize().ok()?;
            Some(Event::BlockJob { domain: path, disk, kind, status })
        }
        (BUS, "NameOwnerChanged") => {
            let (_, _, new): (&str, &str, &str) = body.deserialize().ok()?;
            let lost = if new.is_empty() { Lost::BridgeGone } else { Lost::BridgeStarted };
            Some(Event::Resync(lost))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
