//! What libvirt told of a guest while `virsh event` listened: pauses, I/O errors, and what it holds a migration's
//! downtime to be.

/// Counted events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The guest was paused, but not by a migration.
    pub paused: u64,
    /// A disk reported an error.
    pub io_errors: u64,
    /// Downtimes of migrations as QEMU reckons them, ms.
    pub downtimes_ms: Vec<f64>,
}

/// Details of `Suspended` that belong to every migration.
const OF_MIGRATIONS: [&str; 2] = ["Migrated", "Post-copy"];

/// Counts in the outputs of `virsh event --all --loop`.
#[must_use]
pub fn count(text: &str) -> Seen {
    let mut seen = Seen::default();
    for line in text.lines() {
        if let Some(ms) = line.trim().strip_prefix("downtime: ").and_then(|t| t.parse().ok()) {
            seen.downtimes_ms.push(ms);
        }
        let Some((_, event)) = line.split_once("event '") else { continue };
        let Some((name, rest)) = event.split_once('\'') else { continue };
        let said = rest.rsplit_once(": ").map_or("", |(_, said)| said);
        match name {
            "lifecycle" if suspended(said) => seen.paused += 1,
            "io-error" | "io-error-reason" => seen.io_errors += 1,
            _ => {}
        }
    }
    seen
}

fn suspended(said: &str) -> bool {
    let detail = said.trim().strip_prefix("Suspended ");
    detail.is_some_and(|d| !OF_MIGRATIONS.contains(&d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_no_pause() {
        let text = "2026-11-21 15:00:01.123+0000: event 'lifecycle' for domain 'vm1': Started Migrated\n\
                    2026-11-21 15:00:02.123+0000: event 'lifecycle' for domain 'vm1': Suspended Migrated\n\
                    2026-11-21 15:00:02.124+0000: event 'lifecycle' for domain 'vm1': Stopped Migrated\n\
                    2026-11-21 15:00:02.125+0000: event 'job-completed' for domain 'vm1':\n\
                    \toperation: 5\n\ttime_elapsed: 62499\n\tdowntime: 706\n\tdowntime: much\n";
        let seen = Seen { downtimes_ms: vec![706.0], ..Seen::default() };
        assert_eq!(count(text), seen);
    }

    #[test]
    fn pauses_and_errors_are_counted() {
        let text = "event 'lifecycle' for domain 'vm1': Suspended I/O Error\n\
                    event 'lifecycle' for domain 'vm1': Suspended Paused\n\
                    event 'io-error' for domain 'vm1': /mnt/vms/a: b.blk (virtio-disk0) pause\n\
                    event 'rtc-change' for domain 'vm1': 0\n\
                    events received: 4\n\nnoise event 'x\n";
        let seen = Seen { paused: 2, io_errors: 1, ..Seen::default() };
        assert_eq!(count(text), seen);
    }
}
