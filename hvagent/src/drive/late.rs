//! libvirt over a system bus that may come late: connected to when it is first needed, and again as long as
//! it fails. Without it every question gets an error, never an answer (S12).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath};

use crate::guests::hypervisor::Hypervisor;
use crate::guests::inventory::Told;
use crate::libvirt::breaker::Policy;
use crate::libvirt::bridge::{Bridge, Limits};
use crate::libvirt::job::Job;
use crate::libvirt::state::DomainState;
use crate::libvirt::{Error, Result};

/// For the connection to the bus.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(5);

/// The system bus, within its limit.
///
/// # Errors
/// No bus, or no answer in time.
pub async fn bus() -> Result<Connection> {
    let failed = |message: String| Error::Bus { call: "connect", message };
    match timeout(LIMIT, Connection::system()).await {
        Ok(connection) => connection.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {LIMIT:?}"))),
    }
}

#[derive(Default)]
struct State {
    bridge: Option<Bridge>,
    failed: Option<(Instant, Error)>,
}

/// See the module's head.
#[derive(Clone, Default)]
pub struct Late(Arc<Mutex<State>>);

impl Late {
    /// Over a bus that is there already.
    #[must_use]
    pub fn over(connection: Connection) -> Self {
        let bridge = Bridge::new(connection, Limits::default(), Policy::default());
        Self(Arc::new(Mutex::new(State { bridge: Some(bridge), failed: None })))
    }

    async fn bridge(&self) -> Result<Bridge> {
        let mut state = self.0.lock().await;
        if let Some(bridge) = &state.bridge {
            return Ok(bridge.clone());
        }
        if let Some((_, error)) = state.failed.as_ref().filter(|(at, _)| at.elapsed() < AGAIN) {
            return Err(error.clone());
        }
        match bus().await {
            Ok(connection) => {
                let bridge = Bridge::new(connection, Limits::default(), Policy::default());
                state.bridge = Some(bridge.clone());
                Ok(bridge)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

impl Hypervisor for Late {
    async fn guests(&self) -> Result<Vec<OwnedObjectPath>> {
        self.bridge().await?.guests().await
    }

    async fn guest(&self, path: &OwnedObjectPath) -> Result<Told> {
        self.bridge().await?.guest(path).await
    }

    async fn state(&self, path: &OwnedObjectPath) -> Result<DomainState> {
        self.bridge().await?.state(path).await
    }

    async fn job(&self, path: &OwnedObjectPath) -> Result<Option<Job>> {
        self.bridge().await?.job(path).await
    }

    async fn speed(&self, path: &OwnedObjectPath) -> Result<u64> {
        self.bridge().await?.speed(path).await
    }

    async fn set_speed(&self, path: &OwnedObjectPath, mib_per_second: u64) -> Result<()> {
        self.bridge().await?.set_speed(path, mib_per_second).await
    }

    async fn set_downtime(&self, path: &OwnedObjectPath, downtime: Duration) -> Result<()> {
        self.bridge().await?.set_downtime(path, downtime).await
    }

    async fn resume(&self, path: &OwnedObjectPath) -> Result<()> {
        Hypervisor::resume(&self.bridge().await?, path).await
    }

    async fn pools(&self) -> Result<BTreeMap<String, String>> {
        Hypervisor::pools(&self.bridge().await?).await
    }

    fn restarted(&self) {
        if let Ok(state) = self.0.try_lock()
            && let Some(bridge) = &state.bridge
        {
            Hypervisor::restarted(bridge);
        }
    }
}
