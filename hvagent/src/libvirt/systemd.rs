//! Units of systemd and inhibitors of logind, each call with a deadline (S10).

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zbus::{Connection, OwnedFd};

use super::error::{Error, Result};
use super::proxy::{self, LOGIND, ListedUnit, LogindProxy, SYSTEMD, SystemdProxy};

/// For one call.
const LIMIT: Duration = Duration::from_secs(2);

/// What the agent looks at: libvirt whole and in parts, its lock daemons, sanlock and what it needs.
pub const UNITS: [&str; 12] = [
    "libvirtd.service",
    "libvirtd.socket",
    "virtqemud.service",
    "virtqemud.socket",
    "virtstoraged.service",
    "virtlockd.service",
    "virtlockd.socket",
    "virtlogd.service",
    "libvirt-guests.service",
    "sanlock.service",
    "wdmd.service",
    "polkit.service",
];

/// A unit's state, in systemd's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// With its suffix.
    pub name: String,
    /// `loaded`, `not-found`, `masked`, `error`...
    pub load: String,
    /// `active`, `inactive`, `failed`, `activating`...
    pub active: String,
    /// Finer, depends on the unit's type: `running`, `listening`, `dead`...
    pub sub: String,
    /// The kind of job that waits or runs for it: `start`, `stop`...
    pub job: Option<String>,
}

impl Unit {
    fn of(listed: ListedUnit) -> Self {
        let (name, _, load, active, sub, _, _, number, job, _) = listed;
        Self { name, load, active, sub, job: (number > 0).then_some(job) }
    }

    /// Whether it is installed.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.load != "not-found"
    }

    /// Whether it is up.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading" | "refreshing")
    }

    /// Whether it has failed, or cannot be started at all.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.active == "failed" || matches!(self.load.as_str(), "error" | "bad-setting")
    }
}

/// How a service stands that may also be started by its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Up.
    Up,
    /// Down, but the next connection starts it: what libvirtd does when it is idle.
    OnDemand,
    /// Down.
    Down,
    /// Failed.
    Failed,
    /// Not installed, as far as systemd told.
    Missing,
}

/// How a service stands, from the units that were asked for. `stem` is the name without suffix.
#[must_use]
pub fn service(units: &[Unit], stem: &str) -> Service {
    let find = |suffix: &str| {
        let name = |unit: &&Unit| unit.name.strip_suffix(suffix) == Some(stem);
        units.iter().find(name).filter(|unit| unit.exists())
    };
    match (find(".service"), find(".socket")) {
        (None, None) => Service::Missing,
        (Some(unit), _) if unit.is_active() => Service::Up,
        (Some(unit), _) if unit.is_failed() => Service::Failed,
        (_, Some(socket)) if socket.is_failed() => Service::Failed,
        (_, Some(socket)) if socket.is_active() => Service::OnDemand,
        _ => Service::Down,
    }
}

/// The state of units, in one call.
pub async fn units(connection: &Connection, names: &[&str]) -> Result<Vec<Unit>> {
    let call = async {
        let systemd: SystemdProxy<'static> = proxy::of(connection).await?;
        systemd.list_units_by_names(names).await
    };
    let listed = limited(SYSTEMD, "ListUnitsByNames", call).await?;
    Ok(listed.into_iter().map(Unit::of).collect())
}

/// Holds a shutdown of this host back while it exists: released when dropped, and by the kernel when
/// the agent dies.
#[derive(Debug)]
#[must_use]
pub struct Inhibitor {
    _held: OwnedFd,
}

/// How strongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For `InhibitDelayMaxSec` at most, 5 s unless configured otherwise.
    Delay,
    /// Until released; root can override it.
    Block,
}

impl Inhibitor {
    /// Asks logind to hold shutdown and sleep back. `why` is shown to whoever tries.
    pub async fn take(connection: &Connection, why: &str, mode: Mode) -> Result<Self> {
        let mode = match mode {
            Mode::Delay => "delay",
            Mode::Block => "block",
        };
        let call = async {
            let logind: LogindProxy<'static> = proxy::of(connection).await?;
            logind.inhibit("shutdown:sleep", "hvagent", why, mode).await
        };
        limited(LOGIND, "Inhibit", call).await.map(|held| Self { _held: held })
    }
}

/// Whether this host is being shut down.
pub async fn shutting_down(connection: &Connection) -> Result<bool> {
    let call = async {
        let logind: LogindProxy<'static> = proxy::of(connection).await?;
        logind.preparing_for_shutdown().await
    };
    limited(LOGIND, "PreparingForShutdown", call).await
}

async fn limited<T>(
    service: &'static str,
    call: &'static str,
    future: impl Future<Output = zbus::Result<T>>,
) -> Result<T> {
    let late = |_| Error::Deadline { service, call, limit: LIMIT };
    let answer = tokio::time::timeout(LIMIT, future).await.map_err(late)?;
    answer.map_err(|error| Error::of_bus(service, call, &error))
}

#[cfg(test)]
#[path = "systemd_tests.rs"]
mod tests;
