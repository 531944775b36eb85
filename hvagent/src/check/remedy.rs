//! Commands for an operator to paste. Pure; owns quoting for a shell.

use std::net::IpAddr;

use super::report::{Mount, Services};

/// A word for a shell, quoted where it must be.
#[must_use]
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=,@%+[]".contains(c);
    let glob = text.contains('[') && !text.contains(':');
    if !text.is_empty() && !glob && !text.starts_with('-') && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// How to mount a file system at `point` as a move needs it.
#[must_use]
pub fn mount(source: &str, point: &str) -> String {
    let (source, point) = (word(source), word(point));
    format!("mount -t nfs4 -o hard,vers=4.2,proto=tcp,timeo=50,retrans=2 {source} {point}")
}

/// How to mount anew what is mounted wrongly, through the service's address where it is known.
#[must_use]
pub fn remount(wrong: &Mount, services: &Services) -> String {
    let source = match right_address(wrong, services) {
        Some(address) => source(address, &wrong.path),
        None => wrong.source(),
    };
    let point = &wrong.point;
    format!(
        "move the guests away, then `umount {} && {}`, and the same in /etc/fstab or the pool",
        word(point),
        mount(&source, point)
    )
}

/// The floating address for a mount: its service's, or the only one there is.
fn right_address(wrong: &Mount, services: &Services) -> Option<IpAddr> {
    let all = || services.floating.iter().flat_map(|named| &named.addresses);
    if let Some(used) = wrong.address.filter(|used| all().any(|a| a == used)) {
        return Some(used);
    }
    let mut all = all();
    all.next().filter(|_| all.next().is_none()).copied()
}

/// `address:/path`, with the brackets of an IPv6 address.
fn source(address: IpAddr, path: &str) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{path}"),
        IpAddr::V6(address) => format!("[{address}]:{path}"),
    }
}

/// How to change an attribute of a disk's driver.
#[must_use]
pub fn driver(guest: &str, target: &str, settings: &[(&str, &str)]) -> String {
    let options: Vec<_> =
        settings.iter().map(|(key, value)| format!("driver.{key}={value}")).collect();
    let attributes: Vec<_> =
        settings.iter().map(|(key, value)| format!("{key}='{value}'")).collect();
    format!(
        "`virt-xml {} --edit target={} --disk {}` (or by `virsh edit`: {} in the disk's <driver>), \
         then shut the guest down and start it",
        word(guest),
        word(target),
        options.join(","),
        attributes.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::samples;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        for (text, quoted) in [
            ("/vm", "/vm"),
            ("[fd00::50]:/vm", "[fd00::50]:/vm"),
            ("my vm", "'my vm'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
            ("-x", "'-x'"),
            ("$(x)", "'$(x)'"),
            ("[a]", "'[a]'"),
        ] {
            assert_eq!(word(text), quoted);
        }
    }

    #[test]
    fn a_remount_takes_the_floating_address() {
        let mut report = samples::host("hv1");
        let mut wrong = report.mount("/vm").unwrap().clone();
        (wrong.server, wrong.address) = ("192.0.2.1".into(), Some("192.0.2.1".parse().unwrap()));
        let text = remount(&wrong, &report.services);
        assert!(text.contains("umount /vm && mount -t nfs4 -o hard,vers=4.2"), "{text}");
        assert!(text.contains("192.0.2.50:/vm /vm`"), "{text}");
        report.services.floating.clear();
        assert!(remount(&wrong, &report.services).contains("192.0.2.1:/vm /vm`"));
    }

    proptest! {
        #[test]
        fn a_quoted_word_never_ends_early(text in "\\PC{0,40}") {
            let quoted = word(&text);
            if quoted.starts_with('\'') {
                let inside = quoted.strip_prefix('\'').unwrap().strip_suffix('\'').unwrap();
                prop_assert_eq!(inside.replace(r"'\''", ""), text.replace('\'', ""));
            } else {
                prop_assert_eq!(quoted, text);
            }
        }
    }
}
