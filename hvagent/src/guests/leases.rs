//! Whether guests hold leases of sanlock, and how long those still last.
//!
//! The daemon is asked where its socket is; where it is not, libvirt's configuration says whether
//! guests rely on it. Rule kept: S12, leases that cannot be told are not there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nasd_sanlock::Client;

use super::resume::Lease;
use crate::core::Now;
use crate::sanlock::Survey;

/// For one exchange with the daemon.
const EXCHANGE: Duration = Duration::from_millis(500);
/// For everything.
const DEADLINE: Duration = Duration::from_secs(3);
/// A longer file is not a configuration.
const LONGEST: u64 = 1 << 20;

/// What the leases say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leases {
    /// Guests here hold none.
    NotUsed,
    /// They may, and nothing is known of them.
    Unknown(String),
    /// The worst of them.
    Known {
        /// Until the daemon gives it up; zero: lost, or about to be.
        margin: Duration,
        /// Until the next renewal is due.
        next_renewal: Option<Duration>,
        /// Lockspaces that are lost already.
        lost: Vec<String>,
    },
}

impl Leases {
    /// What it means for a guest that is to be resumed.
    #[must_use]
    pub fn lease(&self) -> Lease {
        match self {
            Self::NotUsed => Lease::NotUsed,
            Self::Known { margin, lost, .. } if lost.is_empty() && !margin.is_zero() => Lease::Held,
            Self::Known { .. } => Lease::Lost,
            Self::Unknown(_) => Lease::Unknown,
        }
    }
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// libvirt's configuration of QEMU.
    pub config: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        let config = "/etc/libvirt/qemu.conf".into();
        Self { socket: nasd_sanlock::SOCKET.into(), config }
    }
}

/// Asks, for three seconds at most.
pub async fn ask(places: &Places) -> Leases {
    let places = places.clone();
    let looked = tokio::task::spawn_blocking(move || look(&places));
    match tokio::time::timeout(DEADLINE, looked).await {
        Ok(Ok(leases)) => leases,
        _ => Leases::Unknown(format!("sanlock did not answer within {DEADLINE:?}")),
    }
}

fn look(places: &Places) -> Leases {
    let used = relies_on_sanlock(&places.config);
    if !places.socket.exists() {
        return match used {
            Some(false) => Leases::NotUsed,
            Some(true) => {
                Leases::Unknown("libvirt relies on sanlock, which does not run".to_owned())
            }
            None => Leases::Unknown(format!("{} cannot be read", places.config.display())),
        };
    }
    match Survey::take(&Client::new(&places.socket, EXCHANGE), Now::ZERO) {
        Ok(survey) => of(&survey, used.unwrap_or(true)),
        Err(_) if used == Some(false) => Leases::NotUsed,
        Err(error) => Leases::Unknown(error.to_string()),
    }
}

fn of(survey: &Survey, used: bool) -> Leases {
    let dead = survey.spaces.iter().filter(|s| s.lockspace.dead || s.lockspace.corrupt.is_some());
    let lost: Vec<String> = dead.map(|space| space.lockspace.name.clone()).collect();
    match survey.margin(Now::ZERO) {
        Some(margin) => {
            Leases::Known { margin, next_renewal: survey.next_renewal(Now::ZERO), lost }
        }
        None if used => Leases::Unknown("this host has joined no lockspace".to_owned()),
        None => Leases::NotUsed,
    }
}

/// Whether libvirt's lock manager is sanlock; `None`: not to be found out. No file: the default, none.
fn relies_on_sanlock(config: &Path) -> Option<bool> {
    match std::fs::metadata(config) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
        Ok(meta) if meta.len() > LONGEST => return None,
        Ok(_) => {}
    }
    Some(lock_manager(&std::fs::read_to_string(config).ok()?) == Some("sanlock"))
}

fn lock_manager(text: &str) -> Option<&str> {
    text.lines().rev().find_map(|line| {
        let rest = line.trim().strip_prefix("lock_manager")?.trim_start();
        rest.strip_prefix('=')?.trim().strip_prefix('"')?.split('"').next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(config: Option<&str>) -> (tempfile::TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            socket: directory.path().join("sanlock.sock"),
            config: directory.path().join("qemu.conf"),
        };
        if let Some(config) = config {
            std::fs::write(&places.config, config).unwrap();
        }
        (directory, places)
    }

    #[tokio::test]
    async fn without_sanlock_there_are_no_leases() {
        assert_eq!(ask(&places(None).1).await, Leases::NotUsed);
        let comment = "# lock_manager = \"sanlock\"\nuser = \"root\"\n";
        let (_directory, places) = places(Some(comment));
        assert_eq!(ask(&places).await, Leases::NotUsed);
    }

    #[tokio::test]
    async fn s12_a_sanlock_that_is_relied_on_and_does_not_answer_is_unknown() {
        let (_directory, places) = places(Some("lock_manager = \"sanlock\"\n"));
        let leases = ask(&places).await;
        assert!(matches!(leases, Leases::Unknown(_)), "{leases:?}");
        assert_eq!(leases.lease(), Lease::Unknown);
        std::fs::write(&places.socket, "no socket").unwrap();
        assert!(matches!(ask(&places).await, Leases::Unknown(_)));
    }

    #[test]
    fn a_lease_is_held_only_with_a_margin_and_no_dead_lockspace() {
        let known = |margin, lost: &[&str]| Leases::Known {
            margin: Duration::from_secs(margin),
            next_renewal: None,
            lost: lost.iter().map(|&name| name.to_owned()).collect(),
        };
        assert_eq!(known(9, &[]).lease(), Lease::Held);
        assert_eq!(known(0, &[]).lease(), Lease::Lost);
        assert_eq!(known(9, &["a"]).lease(), Lease::Lost);
        assert_eq!(Leases::NotUsed.lease(), Lease::NotUsed);
    }

    #[test]
    fn the_lock_manager_is_read_as_libvirt_does() {
        assert_eq!(lock_manager("lock_manager=\"lockd\""), Some("lockd"));
        assert_eq!(lock_manager("#lock_manager = \"sanlock\""), None);
        assert_eq!(lock_manager("lock_manager_x = \"sanlock\""), None);
    }
}
