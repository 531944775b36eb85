//! What is done beside the programs: let DRBD connect, mark this replica outdated, have the kernel
//! fence again, keep the durable mark. Each is idempotent (S9) and ends (S8); none of them ever makes
//! a node writable, and none forces anything but a disconnect (S3).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasd_drbd::CommandError;

use super::connection::ConnectionError;
use super::drbd;
use super::failpoint;
use super::hands::Hands;
use super::mark::Mark;
use super::start::STATE_DIR;
use crate::core::machine::{CHORE, Chore};

/// Kept from the core's limit, so that its answer says more than "late".
const MARGIN: Duration = Duration::from_millis(500);
/// For the kernel; what is left is `drbdadm`'s.
const KERNEL: Duration = Duration::from_millis(2500);

/// Runs one chore.
///
/// # Errors
/// Why it was not done, in words.
pub async fn run(hands: &Hands, chore: Chore) -> Result<(), String> {
    failpoint::hit(match chore {
        Chore::Connect => "chore:connect",
        Chore::Outdate => "chore:outdate",
        Chore::Retrigger => "chore:retrigger",
        Chore::DropPeer => "chore:drop-peer",
        Chore::Mark(_) => "chore:mark",
    });
    let done = async {
        match chore {
            Chore::Connect => connect(hands).await,
            Chore::Outdate => outdate(hands).await,
            Chore::Retrigger => retrigger(hands).await,
            Chore::DropPeer => drop_peer(hands).await,
            Chore::Mark(marked) => mark(hands, marked).await,
        }
    };
    let result = match tokio::time::timeout(CHORE - MARGIN, done).await {
        Ok(result) => result,
        Err(_) => Err(format!("not done within {:?}", CHORE - MARGIN)),
    };
    match &result {
        Ok(()) => tracing::info!(service = hands.service.name, ?chore, "done"),
        Err(reason) => tracing::warn!(service = hands.service.name, ?chore, reason, "failed"),
    }
    result
}

async fn connect(hands: &Hands) -> Result<(), String> {
    let drbd = Arc::clone(&hands.drbd);
    or_drbdadm(hands, on_thread(move || drbd.connect(KERNEL)).await?).await
}

async fn retrigger(hands: &Hands) -> Result<(), String> {
    let drbd = Arc::clone(&hands.drbd);
    match on_thread(move || drbd.retrigger(KERNEL)).await? {
        // Not frozen any more, or connected: there is nothing left to ask for.
        Ok(_) => Ok(()),
        Err(error) => or_drbdadm(hands, Err(error)).await,
    }
}

/// Where only DRBD's files know how (nasd started while the resource was `StandAlone`, or somebody
/// changed the addresses meanwhile), `drbdadm` connects. Never `adjust`: that would attach disks and
/// change options behind everybody's back.
async fn or_drbdadm(hands: &Hands, tried: Result<(), ConnectionError>) -> Result<(), String> {
    let Err(error) = tried else { return Ok(()) };
    let only_files_know = matches!(
        error,
        ConnectionError::Forgotten(_) | ConnectionError::Command(CommandError::Refused { .. })
    );
    if !only_files_know || hands.drbd.is_busy() {
        return Err(error.to_string());
    }
    let resource = &hands.service.drbd;
    let told = drbd::drbdadm(&["connect", resource], CHORE - MARGIN).await;
    told.map_err(|reason| format!("{error}; drbdadm connect {resource}: {reason}"))
}

async fn drop_peer(hands: &Hands) -> Result<(), String> {
    let drbd = Arc::clone(&hands.drbd);
    match on_thread(move || drbd.drop_peer(KERNEL)).await? {
        Ok(cut) => {
            tracing::warn!(service = hands.service.name, cut, "the peer's replica was dropped");
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

async fn outdate(hands: &Hands) -> Result<(), String> {
    let drbd = Arc::clone(&hands.drbd);
    on_thread(move || drbd.outdate(KERNEL)).await?.map_err(|e| e.to_string())
}

async fn mark(hands: &Hands, marked: bool) -> Result<(), String> {
    let mark = Mark::at(Path::new(STATE_DIR), &hands.service.name);
    on_thread(move || if marked { mark.set() } else { mark.clear() })
        .await?
        .map_err(|e| e.to_string())
}

async fn on_thread<T: Send + 'static>(
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(task).await.map_err(|e| e.to_string())
}
