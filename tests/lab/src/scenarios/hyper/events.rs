//! What libvirt told of a guest while `virsh event` listened: pauses and I/O errors.

/// Counted events of one hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The guest was paused, but not by a migration.
    pub paused: u64,
    /// A disk reported an error.
    pub io_errors: u64,
}

/// Details of `Suspended` that belong to every migration.
const OF_MIGRATIONS: [&str; 2] = ["Migrated", "Post-copy"];

/// Counts in the output of `virsh event --all --loop`.
#[must_use]
pub fn count(text: &str) -> Seen {
    let mut seen = Seen::default();
    for line in text.lines() {
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
                    2026-11-21 15:00:02.124+0000: event 'lifecycle' for domain 'vm1': Stopped Migrated\n";
        assert_eq!(count(text), Seen::default());
    }

    #[test]
    fn pauses_and_errors_are_counted() {
        let text = "event 'lifecycle' for domain 'vm1': Suspended I/O Error\n\
                    event 'lifecycle' for domain 'vm1': Suspended Paused\n\
                    event 'io-error' for domain 'vm1': /mnt/vms/a: b.blk (virtio-disk0) pause\n\
                    event 'rtc-change' for domain 'vm1': 0\n\
                    events received: 4\n\nnoise event 'x\n";
        assert_eq!(count(text), Seen { paused: 2, io_errors: 1 });
    }
}
