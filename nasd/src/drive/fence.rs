//! The socket at which `nasd-fence-peer` asks on behalf of DRBD's kernel module.
//!
//! Keeps S10 (answered from a snapshot of the record, never waits for a promotion) and design section
//! 4: "outdated" only from a *confirmed* record that this node owns and from which the peer is gone.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::core::record::{NodeName, Record};

/// Where the helper finds nasd.
pub const SOCKET: &str = "/run/nasd/fence.sock";
/// How long one question waits for the record to change; the helper then asks again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The records by DRBD resource.
pub type Records = BTreeMap<String, watch::Receiver<Option<Record>>>;

/// Answers for ever.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(
    path: &Path,
    me: NodeName,
    peer: NodeName,
    records: Records,
) -> std::io::Result<()> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, for example: the helper asks again.
                tracing::error!(%error, "fence-peer could not be answered");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (me, peer, records) = (me.clone(), peer.clone(), records.clone());
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &me, &peer, &records).await {
                tracing::warn!(%error, "a fence-peer question was not answered");
            }
        });
    }
}

async fn answer(
    mut stream: UnixStream,
    me: &NodeName,
    peer: &NodeName,
    records: &Records,
) -> std::io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new(&mut stream);
    tokio::time::timeout(Duration::from_secs(5), reader.read_line(&mut line)).await??;
    let resource = line.trim().strip_prefix("fence-peer ").unwrap_or_default().to_owned();
    let word = match records.get(&resource) {
        Some(record) => {
            tracing::warn!(resource, "DRBD lost its peer and asks whether it may go on");
            let mut record = record.clone();
            let may = |r: &Option<Record>| r.as_ref().is_some_and(|r| excluded(r, me, peer));
            match tokio::time::timeout(PATIENCE, record.wait_for(may)).await {
                Ok(Ok(_)) => "outdated",
                _ => "wait",
            }
        }
        None => "unknown-resource",
    };
    stream.write_all(format!("{word}\n").as_bytes()).await
}

/// I8: this node holds the authority and the peer is out of the current set.
fn excluded(record: &Record, me: &NodeName, peer: &NodeName) -> bool {
    record.authority() == Some(me) && record.current.contains(me) && !record.current.contains(peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn i8_only_the_owner_without_its_peer_gets_a_yes() {
        let (a, b) = (NodeName::from("a"), NodeName::from("b"));
        let both = BTreeSet::from([a.clone(), b.clone()]);
        let serving = Record::first(both, BTreeMap::new()).start(&a).unwrap();
        assert!(!excluded(&serving, &a, &b), "the peer is still current");
        let sole = serving.exclude(&a, &b).unwrap();
        assert!(excluded(&sole, &a, &b));
        assert!(!excluded(&sole, &b, &a), "the other side never gets a yes from this record");
    }
}
