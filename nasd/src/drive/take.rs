//! What a taker makes sure of before it excludes anybody: everything of an opening that can fail
//! without the volume (H3). Changes nothing.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::connection::is_complete;
use super::hands::{Hands, blocking};
use crate::io::{Answer, Op};

/// Time for nasd-io's answer, and for the kernel's.
const ASK: Duration = Duration::from_millis(1500);

/// Whether a takeover would get through, as far as that can be known.
///
/// # Errors
/// Everything that stands against it, in words.
pub async fn ready(hands: &Hands) -> Result<(), Vec<String>> {
    let (mounts, server, network, node) =
        tokio::join!(hands.foreign_mounts(), server(hands), network(hands), node(hands));
    let mut obstacles = mounts;
    obstacles.extend(server);
    obstacles.extend(network);
    obstacles.extend(node);
    if obstacles.is_empty() { Ok(()) } else { Err(obstacles) }
}

async fn server(hands: &Hands) -> Option<String> {
    match hands.io_call(Op::ServerStatus, ASK).await {
        Ok(Answer::Status(status)) if status.threads == 0 => None,
        Ok(Answer::Status(status)) => {
            Some(format!("the NFS server already runs {} threads", status.threads))
        }
        Ok(_) => Some("nasd-io's answer makes no sense".into()),
        Err(error) => Some(format!("nasd-io: {error}")),
    }
}

async fn network(hands: &Hands) -> Option<String> {
    let network = Arc::clone(&hands.network);
    let asked = blocking(move || network.addressed());
    match tokio::time::timeout(ASK, asked).await {
        Ok(Some(false)) => None,
        Ok(Some(true)) => Some("the floating addresses are already on this node".into()),
        Ok(None) | Err(_) => Some("the service's namespace cannot be read".into()),
    }
}

/// Files, devices and disks of this node.
async fn node(hands: &Hands) -> Vec<String> {
    let (drbd, service) = (Arc::clone(&hands.drbd), hands.service.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let status = match drbd.read() {
            Ok(status) => status,
            Err(error) => return vec![error.to_string()],
        };
        let mut found = drbd.handler_violations();
        for fs in &service.filesystems {
            match status.devices.get(&fs.volume) {
                None => found.push(format!("DRBD has no volume {}", fs.volume)),
                Some(device) if !is_complete(device) => {
                    found.push(format!("the disk of volume {} is {}", fs.volume, device.disk));
                }
                Some(device) => {
                    found.extend(no_device(Path::new(&format!("/dev/drbd{}", device.minor))));
                }
            }
            found.extend(no_mount_point(&service.mountpoint(fs)));
        }
        if status.is_resync_target() {
            found.push("this node's data is being resynchronised".into());
        }
        found
    });
    match tokio::time::timeout(ASK, looked).await {
        Ok(Ok(found)) => found,
        _ => vec!["DRBD could not be read in time".into()],
    }
}

fn no_device(device: &Path) -> Option<String> {
    match std::fs::metadata(device) {
        Ok(found) if found.file_type().is_block_device() => None,
        Ok(_) => Some(format!("{} is not a block device", device.display())),
        Err(error) => Some(format!("{}: {error}", device.display())),
    }
}

/// It is made when it is missing; what else is at its place is in the way. Nothing is mounted there,
/// so no volume is touched.
fn no_mount_point(target: &Path) -> Option<String> {
    match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("{} is not a directory", target.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("{}: {error}", target.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h3_what_is_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        assert_eq!(no_mount_point(dir.path()), None);
        assert_eq!(no_mount_point(&dir.path().join("not yet")), None);
        assert!(no_mount_point(&file).unwrap().contains("not a directory"));
        assert!(no_mount_point(&file.join("x")).is_some(), "below a file");
        assert!(no_device(&file).unwrap().contains("not a block device"));
        assert!(no_device(&dir.path().join("drbd9")).is_some());
    }
}
