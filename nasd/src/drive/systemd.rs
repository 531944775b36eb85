//! Why nasd is being ended, as the service manager knows it.
//!
//! Owns nothing and changes nothing. Keeps S9 (an upgrade is told from a stop) and S12: what systemd does
//! not say in time is [`Intent::Unknown`], and never taken for a stop.

use std::time::Duration;

use zbus::connection::Builder;
use zbus::{Connection, DynamicType, OwnedObjectPath, OwnedVariant};

/// For the whole question, whichever way it goes.
const DEADLINE: Duration = Duration::from_millis(500);
/// Of which the bus may take so much: a message broker that hangs must leave time for the other way.
const BUS: Duration = Duration::from_millis(300);
/// systemd's own socket, for root only. It answers where no message broker runs, as late in a shutdown.
const PRIVATE: &str = "unix:path=/run/systemd/private";

/// systemd's name on the bus (`org.freedesktop.systemd1(5)`), as are those below.
const NAME: &str = "org.freedesktop.systemd1";
const MANAGER_AT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const JOB: &str = "org.freedesktop.systemd1.Job";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why this unit is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// It is started again at once: an upgrade, a changed configuration.
    Restart,
    /// Somebody stopped it; nobody knows for how long.
    Stop,
    /// The node goes down.
    Shutdown,
    /// No job of systemd asked for it (a signal by hand), or systemd did not answer.
    Unknown,
}

/// Why this process was asked to end. Answers within 500 ms.
pub async fn intent() -> Intent {
    tokio::time::timeout(DEADLINE, ask_either_way()).await.unwrap_or_else(|_| {
        tracing::warn!(limit = ?DEADLINE, "systemd does not say why this unit is stopped");
        Intent::Unknown
    })
}

/// The bus first: it is what systemd promises to keep. Its own socket if there is no bus.
async fn ask_either_way() -> Intent {
    let bus = async { ask(&Connection::system().await?, std::process::id()).await };
    let late = |_| Err(zbus::Error::InputOutput(std::io::Error::other("no answer in time").into()));
    match tokio::time::timeout(BUS, bus).await.unwrap_or_else(late) {
        Ok(intent) => return intent,
        Err(error) => tracing::debug!(%error, "no answer of systemd over the system bus"),
    }
    match ask_in_private().await {
        Ok(intent) => intent,
        Err(error) => {
            tracing::warn!(%error, "systemd does not say why this unit is stopped");
            Intent::Unknown
        }
    }
}

async fn ask_in_private() -> zbus::Result<Intent> {
    let connection = Builder::address(PRIVATE).p2p().build().await?;
    ask(&connection, std::process::id()).await
}

/// What systemd is doing to the unit of a process.
async fn ask(connection: &Connection, pid: u32) -> zbus::Result<Intent> {
    let state: String = property(connection, MANAGER_AT, MANAGER, "SystemState").await?;
    if state == "stopping" {
        return Ok(Intent::Shutdown);
    }
    let unit = call(connection, MANAGER_AT, MANAGER, "GetUnitByPID", &pid).await?;
    let unit: OwnedObjectPath = unit.body().deserialize()?;
    let (id, at): (u32, OwnedObjectPath) = property(connection, &unit, UNIT, "Job").await?;
    if id == 0 {
        return Ok(Intent::Unknown);
    }
    let job: String = property(connection, &at, JOB, "JobType").await?;
    Ok(meaning(&job))
}

/// What a job of that type wants of the unit. systemd turns the other kinds of restart into `restart`
/// before it stops anything, and a restart into `start` only once the unit has ended.
fn meaning(job: &str) -> Intent {
    match job {
        "restart" | "try-restart" => Intent::Restart,
        "stop" => Intent::Stop,
        _ => Intent::Unknown,
    }
}

async fn property<T>(
    connection: &Connection,
    path: &str,
    interface: &str,
    name: &str,
) -> zbus::Result<T>
where
    T: TryFrom<OwnedVariant>,
    T::Error: Into<zbus::Error>,
{
    let answer = call(connection, path, PROPERTIES, "Get", &(interface, name)).await?;
    let value: OwnedVariant = answer.body().deserialize()?;
    T::try_from(value).map_err(Into::into)
}

async fn call<B>(
    connection: &Connection,
    path: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + DynamicType,
{
    connection.call_method(Some(NAME), path, Some(interface), method, body).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use zbus::{Guid, ObjectPath, fdo, interface};

    use super::*;

    const UNIT_AT: &str = "/org/freedesktop/systemd1/unit/nasd_2eservice";
    const JOB_AT: &str = "/org/freedesktop/systemd1/job/7";
    const PID: u32 = 4711;

    struct Manager(&'static str);

    #[interface(name = "org.freedesktop.systemd1.Manager")]
    impl Manager {
        #[zbus(property)]
        fn system_state(&self) -> String {
            self.0.to_owned()
        }

        #[zbus(name = "GetUnitByPID")]
        fn get_unit_by_pid(&self, pid: u32) -> fdo::Result<OwnedObjectPath> {
            let none = || fdo::Error::Failed(format!("PID {pid} belongs to no unit"));
            (pid == PID).then(|| path(UNIT_AT)).ok_or_else(none)
        }
    }

    struct Unit(u32);

    #[interface(name = "org.freedesktop.systemd1.Unit")]
    impl Unit {
        #[zbus(property)]
        fn job(&self) -> (u32, OwnedObjectPath) {
            (self.0, path(if self.0 == 0 { "/" } else { JOB_AT }))
        }
    }

    struct Job(&'static str);

    #[interface(name = "org.freedesktop.systemd1.Job")]
    impl Job {
        #[zbus(property)]
        fn job_type(&self) -> String {
            self.0.to_owned()
        }
    }

    fn path(text: &str) -> OwnedObjectPath {
        ObjectPath::try_from(text).unwrap().into()
    }

    /// systemd as it answers on its own socket, with one job on the unit or none.
    async fn asked(state: &'static str, job: Option<&'static str>, pid: u32) -> Option<Intent> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = Builder::unix_stream(theirs)
            .server(Guid::generate())
            .p2p()
            .serve_at(MANAGER_AT, Manager(state))
            .serve_at(UNIT_AT, Unit(job.map_or(0, |_| 7)))
            .serve_at(JOB_AT, Job(job.unwrap_or("gone")))
            .build();
        let client = Builder::unix_stream(ours).p2p().build();
        let (server, client) = tokio::join!(server, client);
        let _server = server.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(5), ask(&client.unwrap(), pid)).await;
        answer.expect("an answer").ok()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn s9_a_restart_is_told_from_a_stop_and_a_shutdown() {
        assert_eq!(asked("running", Some("restart"), PID).await, Some(Intent::Restart));
        assert_eq!(asked("degraded", Some("stop"), PID).await, Some(Intent::Stop));
        assert_eq!(asked("stopping", Some("stop"), PID).await, Some(Intent::Shutdown));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn s12_what_systemd_does_not_say_is_no_stop() {
        assert_eq!(asked("running", None, PID).await, Some(Intent::Unknown), "a signal by hand");
        assert_eq!(asked("running", Some("start"), PID).await, Some(Intent::Unknown));
        assert_eq!(asked("running", Some("stop"), 1).await, None, "not a unit's process");
    }
}
