//! Whether a migration's target can be reached from here: its name, libvirt's ports, the migration's.
//!
//! Only connects and hangs up; every wait has a deadline (S10). A port that refuses shows that the way
//! to it is open; one that stays silent shows that it is not, or that nobody knows (S12).

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::{HostReport, Known, Transport};

/// For a name to be resolved: two servers that are asked twice, by the resolver's defaults.
pub const RESOLVE: Duration = Duration::from_secs(5);
/// For one connection: three round trips of a bad network, and one lost SYN (sent again after 1 s).
pub const CONNECT: Duration = Duration::from_secs(2);
/// libvirt's ports for migrations, first and last.
pub const MIGRATION_PORTS: (u16, u16) = (49152, 49215);

/// What a port says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// Somebody listens.
    Open,
    /// Nobody listens, but the host answers.
    Refused,
    /// No answer.
    Silent(String),
}

/// What is known of the way to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The name that a migration will use.
    pub name: String,
    /// What it resolves to here.
    pub resolves_to: Known<Vec<IpAddr>>,
    /// libvirt's ports.
    pub transports: Vec<(Transport, Door)>,
    /// A port of those for migrations.
    pub migration: Option<(u16, Door)>,
}

impl Reach {
    /// Nothing was tried.
    #[must_use]
    pub fn untried(name: &str, why: &str) -> Self {
        let resolves_to = Known::Unknown(why.to_owned());
        Self { name: name.to_owned(), resolves_to, transports: Vec::new(), migration: None }
    }
}

/// What a name resolves to on this host, within [`RESOLVE`].
pub async fn resolve(name: &str) -> Known<Vec<IpAddr>> {
    resolved(name, RESOLVE, tokio::net::lookup_host((name, 0))).await
}

async fn resolved<T: Iterator<Item = SocketAddr>>(
    name: &str,
    limit: Duration,
    lookup: impl Future<Output = io::Result<T>>,
) -> Known<Vec<IpAddr>> {
    match timeout(limit, lookup).await {
        Err(_) => Known::Unknown(format!("{name} was not resolved within {limit:?}")),
        Ok(Err(error)) => Known::Unknown(format!("{name} cannot be resolved ({error})")),
        Ok(Ok(found)) => {
            let mut found: Vec<_> = found.map(|address| address.ip().to_canonical()).collect();
            found.sort_unstable();
            found.dedup();
            Known::Known(found)
        }
    }
}

/// Tries the way to a host, of which a report is there.
pub async fn reach(there: &HostReport) -> Reach {
    let name = there.libvirt.get().map_or(&there.host, |versions| &versions.name);
    let resolves_to = resolve(name).await;
    let Some(address) = resolves_to.each().find(|address| !address.is_loopback()).copied() else {
        return Reach { resolves_to, ..Reach::untried(name, "") };
    };
    let port = free_port(there);
    let ports = Transport::ALL.map(|transport| knock(address, transport.port()));
    let knocks = futures_util::future::join_all(ports);
    let migration = async { (port, knock(address, port).await) };
    let (doors, migration) = tokio::join!(knocks, migration);
    let transports = Transport::ALL.into_iter().zip(doors).collect();
    Reach { name: name.clone(), resolves_to, transports, migration: Some(migration) }
}

/// The port that the next migration will take.
fn free_port(there: &HostReport) -> u16 {
    let Some(listening) = there.listening.get() else { return MIGRATION_PORTS.0 };
    let (first, last) = listening.migration;
    (first..=last).find(|port| !listening.taken.contains(port)).unwrap_or(first)
}

async fn knock(address: IpAddr, port: u16) -> Door {
    match timeout(CONNECT, TcpStream::connect((address, port))).await {
        Ok(Ok(_)) => Door::Open,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Door::Refused,
        Ok(Err(error)) => Door::Silent(error.to_string()),
        Err(_) => Door::Silent(format!("no answer within {CONNECT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::samples;

    #[tokio::test]
    async fn doors_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(knock(address.ip(), address.port()).await, Door::Open);
        drop(listener);
        assert_eq!(knock(address.ip(), address.port()).await, Door::Refused);
    }

    #[tokio::test]
    async fn names_and_their_absence() {
        let found = resolve("127.0.0.1").await;
        assert_eq!(found.get().unwrap(), &["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(resolve("no.such.host.invalid").await.why().unwrap().contains("no.such.host"));
    }

    #[tokio::test]
    async fn s10_a_resolver_that_hangs_is_given_up() {
        let never = std::future::pending::<io::Result<std::vec::IntoIter<SocketAddr>>>();
        assert!(
            resolved("hv2", Duration::from_millis(20), never)
                .await
                .why()
                .unwrap()
                .contains("not resolved within")
        );
    }

    #[test]
    fn the_next_port_is_one_that_is_free() {
        let mut there = samples::host("hv2");
        assert_eq!(free_port(&there), 49152);
        if let Known::Known(listening) = &mut there.listening {
            listening.taken = vec![49152, 49153];
        }
        assert_eq!(free_port(&there), 49154);
    }
}
