//! What an operator does about a lockspace, as text.

use nasd_sanlock::{Lockspace, Outcome};

/// The lockspace that libvirt's sanlock driver makes and joins itself, but only when it starts.
const OF_LIBVIRT: &str = "__LIBVIRT__DISKS__";

/// How to join a lockspace.
pub(super) fn join(lockspace: &Lockspace) -> String {
    if lockspace.name == OF_LIBVIRT {
        return by_libvirt();
    }
    let name = &lockspace.name;
    let area = format!("{}:{}", escaped(&lockspace.disk.path), lockspace.disk.offset);
    let argument = quoted(&format!("{}:{}:{area}", escaped(name), lockspace.host_id));
    format!("run `sanlock client add_lockspace -s {argument}`")
}

/// How to join a lockspace of which only the name is known.
pub(super) fn join_by_name(name: &str) -> String {
    if name == OF_LIBVIRT {
        return by_libvirt();
    }
    format!("join it with `sanlock client add_lockspace` ({name} has an own area and host number)")
}

fn by_libvirt() -> String {
    "`systemctl restart libvirtd` (virtqemud where libvirt is split; running guests go on): libvirt's \
     lock driver joins this lockspace only when it starts, which takes 20 s or more"
        .to_owned()
}

/// The way back from a lockspace that was lost.
pub(super) fn recover(lockspace: &Lockspace) -> String {
    let check = match lockspace.corrupt {
        Some(outcome) => corrupt(outcome),
        None => String::new(),
    };
    format!(
        "{check}1. make sure that the storage answers again; 2. wait until the guests that used the \
         lockspace have ended and it is gone from `sanlock client status` (end a guest that \
         hangs, or let the watchdog reset this host); 3. {}; 4. start the guests. A guest that was \
         paused must not be resumed before step 3, and not at all if it runs elsewhere by now",
        join(lockspace)
    )
}

fn corrupt(outcome: Outcome) -> String {
    format!(
        "0. find out why the lease on storage changed ({outcome}): a restored or rolled back \
         volume, or a second host with this host's number; do not go on before; "
    )
}

/// sanlock separates the parts of an argument by colons.
fn escaped(text: &str) -> String {
    text.replace(':', "\\:")
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sanlock::survey::samples;

    #[test]
    fn a_lockspace_of_ones_own_is_joined_by_its_whole_address() {
        let mut lockspace = samples::lockspace("vms");
        lockspace.disk.path = "/srv/it's:here".to_owned();
        let text = join(&lockspace);
        assert!(text.contains(r"-s 'vms:1:/srv/it'\''s\:here:0'"), "{text}");
    }

    #[test]
    fn libvirts_own_needs_a_restart_of_libvirt() {
        assert!(join(&samples::lockspace(OF_LIBVIRT)).contains("libvirtd"));
        assert!(join_by_name(OF_LIBVIRT).contains("virtqemud"));
    }

    #[test]
    fn a_changed_lease_is_looked_into_first() {
        let mut lockspace = samples::lockspace("vms");
        assert!(recover(&lockspace).starts_with("1. "));
        lockspace.corrupt = Some(Outcome(-261));
        assert!(recover(&lockspace).starts_with("0. find out why"));
    }
}
