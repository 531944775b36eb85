//! An administrator's one-time work on the NAS nodes: DRBD resources with a file system in them.

use std::thread;
use std::time::Duration;

use crate::error::LabError;
use crate::lab::{Lab, wait_for};
use crate::payload::RESOURCES;

/// Limit for one `drbdadm`.
const ADM: Duration = Duration::from_secs(20);

/// Limit for the connection, and for all disks to be up to date.
const CONNECT: Duration = Duration::from_secs(30);

const BOTH: [&str; 2] = ["nas1", "nas2"];

impl Lab {
    /// Makes `r0` and `r1` with an ext4 file system each. Afterwards both are Secondary on both nodes, connected
    /// and UpToDate. To be called once in a lab's life.
    ///
    /// # Errors
    /// If a command fails or the nodes do not connect.
    pub fn drbd_init(&self) -> Result<(), LabError> {
        RESOURCES.iter().try_for_each(|(name, minor, ..)| self.drbd_init_one(name, *minor))
    }

    fn drbd_init_one(&self, name: &str, minor: u8) -> Result<(), LabError> {
        for node in BOTH {
            self.adm(node, &["create-md", "--force", name])?;
            self.adm(node, &["up", name])?;
        }
        self.drbd_wait(name, "cstate", "Connected")?;
        // Declares both disks equal as they are: no first synchronisation.
        self.adm("nas1", &["--", "--clear-bitmap", "new-current-uuid", &format!("{name}/0")])?;
        self.drbd_wait(name, "dstate", "UpToDate/UpToDate")?;
        self.adm("nas1", &["primary", name])?;
        let device = format!("/dev/drbd{minor}");
        self.check(
            "nas1",
            &["mkfs.ext4", "-q", "-L", name, &device],
            ADM * self.engine().patience(),
        )?;
        // udev looks at a device that has been written to; meanwhile it is open.
        self.adm("nas1", &["secondary", name]).or_else(|_| {
            thread::sleep(Duration::from_millis(300));
            self.adm("nas1", &["secondary", name])
        })
    }

    /// Brings the resources up on a node that has booted again.
    ///
    /// # Errors
    /// If a command fails.
    pub fn drbd_up(&self, node: &str) -> Result<(), LabError> {
        RESOURCES.iter().try_for_each(|(name, ..)| self.adm(node, &["up", name]))
    }

    /// Waits until both nodes see `want` as the answer of `drbdadm WHAT RESOURCE`.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`] with the last answers.
    pub fn drbd_wait(&self, resource: &str, what: &str, want: &str) -> Result<(), LabError> {
        let limit = CONNECT * self.engine().patience();
        wait_for(&format!("{resource} to be {want}"), limit, || {
            let ask = |node: &&str| {
                self.exec(node, &["drbdadm", what, resource], ADM * self.engine().patience())
            };
            let seen = BOTH.iter().map(ask).collect::<Result<Vec<_>, _>>();
            let seen = seen.map_err(|e| e.to_string())?;
            let seen: Vec<_> = seen.iter().map(|o| o.stdout.trim()).collect();
            if seen.iter().all(|s| *s == want) { Ok(()) } else { Err(seen.join(", ")) }
        })
    }

    fn adm(&self, node: &str, args: &[&str]) -> Result<(), LabError> {
        // Options for drbdsetup come before the command, behind a `--` of their own.
        self.check(node, &[&["drbdadm"], args].concat(), ADM * self.engine().patience()).map(drop)
    }
}
