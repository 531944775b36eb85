//! The clients: they write while somebody serves, and remember what was acknowledged.
//!
//! Owns the promise that is checked: an acknowledged write is never missing on the node that serves.

use super::data::{VOLUMES, WRITES, Writes};
use super::{Happening, MS, World};

/// All clients together.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    /// Acknowledged writes of each volume.
    pub acked: [Writes; VOLUMES],
    /// Number of the next write.
    pub next: u32,
    /// They have state on the server that must be reclaimed after a restart.
    pub recorded: bool,
    /// When a write was last acknowledged, and by whom.
    pub last_ack: Option<(u64, usize)>,
}

impl World {
    /// Clients reach an NFS server there.
    #[must_use]
    pub fn serves(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        self.gate_open(n) && node.addressed && node.mounted && node.server.is_some()
    }

    pub(super) fn clients_write(&mut self) {
        // Long schedules are written to more slowly: numbers are limited.
        let calmer = if self.clients.next < 1000 { 1 } else { 4 };
        let pause = self.delay(60 * MS, 180 * MS) * calmer;
        self.later(pause, Happening::Clients);
        for n in 0..2 {
            if self.serves(n) {
                self.reclaim(n);
                self.write(n);
            }
        }
    }

    /// Clients come back to a restarted server within its grace, or lose their locks (S7, C7).
    fn reclaim(&mut self, n: usize) {
        let now = self.now;
        let Some(server) = &mut self.nodes[n].server else { return };
        if server.reclaimed {
            return;
        }
        let late = now >= server.grace_until;
        server.reclaimed = true;
        if late {
            self.violate("I5 grace", || {
                format!("clients of {} come back after its grace has run out", super::name_of(n))
            });
        }
    }

    fn write(&mut self, n: usize) {
        let number = self.clients.next;
        if number >= WRITES {
            return;
        }
        self.clients.next += 1;
        let volume = number as usize % VOLUMES;
        self.missing_here(n);
        if self.pair.write(n, volume, number) {
            self.clients.acked[volume].add(number);
            self.clients.recorded = true;
            self.clients.last_ack = Some((self.now, n));
        }
        self.watch.data_changed = true;
    }

    /// A read there must see everything that was acknowledged.
    fn missing_here(&mut self, n: usize) {
        for v in 0..VOLUMES {
            let acked = self.clients.acked[v];
            let Some(content) = self.pair.readable(n, v) else { continue };
            if let Some(lost) = content.writes.missing(&acked) {
                self.violate("lost write", || {
                    format!(
                        "write {lost} was acknowledged and {} serves without it",
                        super::name_of(n)
                    )
                });
            }
        }
    }

    /// What a frozen node held back was acknowledged, if its clients are still there.
    pub(super) fn late_acks(&mut self, n: usize, volume: usize, writes: Writes) {
        if self.serves(n) && writes.count() > 0 {
            self.clients.acked[volume].add_all(&writes);
            self.clients.last_ack = Some((self.now, n));
            self.watch.data_changed = true;
        }
    }
}
