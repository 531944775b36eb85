//! Listens to guests: takes the connections of their virtio ports, stamps each line, and keeps the account.
//!
//! The listener is in the lab's management network, which no fault touches. Each connection has a thread that ends
//! with it; the listener's own ends when the last user of the console is gone.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::ledger::Ledger;
use super::line::{Line, MAX_LEN};
use crate::blocks::WriterId;
use crate::blocks::gaps::Moment;
use crate::error::LabError;
use crate::netns::Namespace;
use crate::spec::Node;

/// The lab program's own address in the management network.
pub const ADDRESS: &str = "10.78.0.1";

/// How often the listener's thread looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(100);

/// Hypervisors by their addresses.
type Hosts = Vec<(IpAddr, String)>;

/// The account of one guest, which grows as the guest speaks.
#[derive(Clone, Debug)]
pub struct Console {
    ledger: Arc<Mutex<Ledger>>,
    port: u16,
}

impl Console {
    /// Begins to listen for the guest `writer`, which may run on any of these nodes.
    ///
    /// # Errors
    /// If the port is in use, or the namespace cannot be entered.
    pub(crate) fn listen(
        namespace: &Namespace,
        nodes: &[Node],
        writer: WriterId,
        port: u16,
    ) -> Result<Self, LabError> {
        let wrong = |e| LabError::io("listen on", format!("{ADDRESS}:{port}"))(e);
        let address: SocketAddr = format!("{ADDRESS}:{port}")
            .parse()
            .map_err(|_| wrong(io::ErrorKind::InvalidInput.into()))?;
        let listener = namespace.enter(|| TcpListener::bind(address).map_err(wrong))?;
        // So that its thread can look up between connections.
        listener.set_nonblocking(true).map_err(wrong)?;
        let hosts = nodes.iter().map(|n| (n.management().into(), n.name.clone())).collect();
        let ledger = Arc::new(Mutex::new(Ledger::new(writer)));
        let weak = Arc::downgrade(&ledger);
        thread::spawn(move || accept(&listener, &hosts, &weak));
        Ok(Self { ledger, port })
    }

    /// Where guests connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Looks at the account.
    pub fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn accept(listener: &TcpListener, hosts: &Hosts, ledger: &Weak<Mutex<Ledger>>) {
    while ledger.strong_count() > 0 {
        let Ok((stream, peer)) = listener.accept() else {
            thread::sleep(POLL);
            continue;
        };
        let known = hosts.iter().find(|(address, _)| *address == peer.ip());
        let host = known.map_or_else(|| peer.ip().to_string(), |(_, name)| name.clone());
        let ledger = Weak::clone(ledger);
        thread::spawn(move || follow(&host, stream, &ledger));
    }
}

/// Reads one connection to its end. One that breaks off is one that has ended.
fn follow(host: &str, stream: TcpStream, ledger: &Weak<Mutex<Ledger>>) {
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let mut reader = BufReader::new(stream);
    while let Ok(Some(line)) = next_line(&mut reader) {
        let at = Moment::now();
        let Some(ledger) = ledger.upgrade() else { return };
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        match line.parse::<Line>() {
            Ok(line) => ledger.note(host, line, at),
            Err(_) => ledger.note_damaged(),
        }
    }
}

/// The next line without its end, cut at [`MAX_LEN`]; `None` at the end of the stream.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let limit = MAX_LEN as u64;
    if reader.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_ended() {
        let mut text = io::Cursor::new([b"one\r\ntwo\n".as_slice(), &[b'x'; 100]].concat());
        let mut all = vec![];
        while let Some(line) = next_line(&mut text).unwrap() {
            all.push(line.len());
        }
        assert_eq!(all, [3, 3, MAX_LEN, 100 - MAX_LEN]);
    }
}
