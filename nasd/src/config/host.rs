//! The configuration against this host: DRBD's options, devices, write caches, interface.
//!
//! Keeps S1's set-up half: a resource whose options could let two nodes write is refused before
//! anything starts. What cannot be read is refused too (S12). Nothing is changed.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use miette::Diagnostic;
use thiserror::Error;

use super::refusal::{Refusal, Remedy};
use super::{Config, ServiceConfig};

/// Time for `drbdadm dump-xml`.
const DUMP: Duration = Duration::from_secs(10);
/// Our handler, as a path component of the configured command.
const HANDLER: &str = "nasd-fence-peer";

/// What is wrong with the host for a service.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostProblem {
    /// `drbdadm` does not know the resource, or does not answer.
    #[error("drbdadm cannot show resource {resource}: {reason}")]
    NoResource {
        /// The resource.
        resource: String,
        /// What it said.
        reason: String,
    },
    /// An option that breaks S1.
    #[error("resource {resource}: {option} is {actual}, must be {expected}")]
    Option {
        /// The resource.
        resource: String,
        /// The option, as drbd.conf(5) calls it.
        option: &'static str,
        /// What it is.
        actual: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A volume that the resource does not have, or whose disk is missing.
    #[error("volume {volume} of {resource}: {reason}")]
    Device {
        /// The resource.
        resource: String,
        /// The volume.
        volume: u16,
        /// What is missing.
        reason: String,
    },
    /// A write cache that a power cut empties.
    #[error(
        "{disk} below volume {volume} of {resource} has a volatile write cache: after a power cut of both nodes acknowledged writes may be missing"
    )]
    WriteCache {
        /// The resource.
        resource: String,
        /// The volume.
        volume: u16,
        /// The disk.
        disk: String,
    },
    /// No such interface.
    #[error("this host has no interface {interface}")]
    Interface {
        /// The name.
        interface: String,
    },
}

impl Remedy for HostProblem {
    fn code(&self) -> &'static str {
        match self {
            Self::NoResource { .. } => "host.drbd.resource",
            Self::Option { .. } => "host.drbd.option",
            Self::Device { .. } => "host.drbd.device",
            Self::WriteCache { .. } => "host.write_cache",
            Self::Interface { .. } => "host.interface",
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::NoResource { resource, .. } => {
                format!("define it in /etc/drbd.d/{resource}.res on both nodes")
            }
            Self::Option { option, expected, .. } => {
                format!("set {option} {expected}; on both nodes, then run drbdadm adjust")
            }
            Self::Device { .. } => "correct the resource file, or the volume number here".into(),
            Self::WriteCache { disk, .. } => format!(
                "switch it off (hdparm -W0, sdparm --clear WCE) or, if the disk keeps it over a power cut, write \"write through\" to /sys/block/{disk}/queue/write_cache; to accept the risk set unsafe_write_cache = true"
            ),
            Self::Interface { .. } => "use a name that ip link shows on this node".into(),
        }
    }
}

/// All that is wrong with this host.
#[derive(Debug, Error, Diagnostic)]
#[error("this host does not fit {file}: {}", listed(refusals))]
#[diagnostic(code("host.refused"))]
pub struct HostError {
    file: String,
    #[related]
    refusals: Vec<Refusal<HostProblem>>,
}

fn listed(refusals: &[Refusal<HostProblem>]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Checks every service against this host.
///
/// # Errors
/// Everything found, with the line of the service's `drbd` or `interface` key.
pub fn check(config: &Config) -> Result<(), HostError> {
    let mut refusals = Vec::new();
    let dumped = dump();
    for service in &config.services {
        let mut refuse = |span: &std::ops::Range<usize>, problem| {
            refusals.push(Refusal::new(config.origin(), span.clone(), problem));
        };
        if !Path::new("/sys/class/net").join(&service.interface).exists() {
            let interface = service.interface.clone();
            refuse(&service.spans.interface, HostProblem::Interface { interface });
        }
        match &dumped {
            Ok(xml) => {
                let host = nix::unistd::gethostname().unwrap_or_default();
                let found = judge(xml, &host.to_string_lossy(), service, &judge_disk);
                found.into_iter().for_each(|p| refuse(&service.spans.drbd, p));
            }
            Err(reason) => {
                let (resource, reason) = (service.drbd.clone(), reason.clone());
                refuse(&service.spans.drbd, HostProblem::NoResource { resource, reason });
            }
        }
    }
    if refusals.is_empty() {
        return Ok(());
    }
    Err(HostError { file: config.origin().name().to_owned(), refusals })
}

/// `drbdadm` owns the language of DRBD's files; this is what it makes of them, all resources and
/// the common section. A `drbdadm` that hangs is left to its thread.
fn dump() -> Result<String, String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let output = Command::new("drbdadm").arg("dump-xml").stdin(Stdio::null()).output();
        // Nobody waits any more when the time is over.
        drop(tell.send(output));
    });
    let output = told
        .recv_timeout(DUMP)
        .map_err(|_| format!("no answer within {DUMP:?}"))?
        .map_err(|e| format!("drbdadm cannot be started: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " "))
}

/// The `fence-peer` handlers that hold for a resource, as DRBD's files have them now.
///
/// # Errors
/// Why `drbdadm` could not tell, in words.
pub fn handlers_of(resource: &str) -> Result<Vec<String>, String> {
    let xml = dump()?;
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document =
        roxmltree::Document::parse_with_options(&xml, options).map_err(|e| e.to_string())?;
    let named =
        |n: &Node<'_, '_>| n.has_tag_name("resource") && n.attribute("name") == Some(resource);
    let own = document.descendants().find(named).ok_or("the resource is not in the dump")?;
    let common = document.descendants().find(|n| n.has_tag_name("common"));
    Ok(values(own, common, "fence-peer"))
}

/// What a resource's options must be (S1), with the section in which 8.4 and 9 keep them.
const MUST: &[(&str, &str)] = &[
    ("protocol", "C"),
    ("fencing", "resource-and-stonith"),
    ("rr-conflict", "disconnect"),
    ("after-sb-0pri", "disconnect"),
    ("after-sb-1pri", "disconnect"),
    ("after-sb-2pri", "disconnect"),
    ("on-no-data-accessible", "suspend-io"),
    ("allow-two-primaries", "no"),
];
/// DRBD's own defaults of those (drbd.conf(5)) and of what must not be set.
const DEFAULTS: &[(&str, &str)] = &[
    ("protocol", "C"),
    ("fencing", "dont-care"),
    ("rr-conflict", "disconnect"),
    ("after-sb-0pri", "disconnect"),
    ("after-sb-1pri", "disconnect"),
    ("after-sb-2pri", "disconnect"),
    ("on-no-data-accessible", "io-error"),
    ("allow-two-primaries", "no"),
];

/// A check of one volume's backing disk.
pub type DiskCheck = dyn Fn(&ServiceConfig, u16, &Path) -> Vec<HostProblem>;

/// Judges the text of `drbdadm dump-xml` for one service on the host of this name.
#[must_use]
pub fn judge(
    xml: &str,
    hostname: &str,
    service: &ServiceConfig,
    disk: &DiskCheck,
) -> Vec<HostProblem> {
    let resource = service.drbd.clone();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = match roxmltree::Document::parse_with_options(xml, options) {
        Ok(document) => document,
        Err(e) => return vec![HostProblem::NoResource { resource, reason: e.to_string() }],
    };
    let own = document
        .descendants()
        .find(|n| n.has_tag_name("resource") && n.attribute("name") == Some(&service.drbd));
    let Some(own) = own else {
        let reason = "it is not in the dump".to_owned();
        return vec![HostProblem::NoResource { resource, reason }];
    };
    let common = document.descendants().find(|n| n.has_tag_name("common"));
    let mut found = judge_options(&resource, own, common);
    found.extend(judge_volumes(own, hostname, service, disk));
    found
}

type Node<'a, 'b> = roxmltree::Node<'a, 'b>;

/// Every value that an option takes in the resource: sections of hosts, volumes and connections may
/// override the resource's own, and one bad value is enough. What the resource leaves open comes from
/// the common section or is DRBD's default.
fn values(resource: Node<'_, '_>, common: Option<Node<'_, '_>>, name: &str) -> Vec<String> {
    let all = |scope: Node<'_, '_>| {
        let options = scope.descendants().filter(|n| n.has_tag_name("option"));
        let named: Vec<_> = options
            .filter(|n| n.attribute("name") == Some(name))
            .map(|n| (overrides(&n), n.attribute("value").unwrap_or("yes").to_owned()))
            .collect();
        named
    };
    let own = all(resource);
    let mut found: Vec<_> = own.iter().map(|(_, value)| value.clone()).collect();
    if own.iter().all(|(part, _)| *part) {
        let default = DEFAULTS.iter().find(|(n, _)| *n == name).map_or("unset", |(_, v)| v);
        let inherited = common.and_then(|c| all(c).into_iter().next()).map(|(_, value)| value);
        found.push(inherited.unwrap_or_else(|| default.to_owned()));
    }
    found
}

/// Whether an option stands in a part of the resource only.
fn overrides(option: &Node<'_, '_>) -> bool {
    option.ancestors().any(|a| ["host", "volume", "connection"].iter().any(|t| a.has_tag_name(*t)))
}

fn judge_options(
    resource: &str,
    own: Node<'_, '_>,
    common: Option<Node<'_, '_>>,
) -> Vec<HostProblem> {
    let refuse = |option, actual, expected| HostProblem::Option {
        resource: resource.to_owned(),
        option,
        actual,
        expected,
    };
    let mut found = Vec::new();
    for (name, expected) in MUST {
        let wrong = values(own, common, name).into_iter().filter(|actual| actual != expected);
        found.extend(wrong.map(|actual| refuse(name, actual, expected)));
    }
    for handler in values(own, common, "fence-peer") {
        let program = handler.split_whitespace().next().unwrap_or_default();
        if Path::new(program).file_name().is_none_or(|f| f != HANDLER) {
            found.push(refuse("fence-peer", handler, "/usr/lib/nasd/nasd-fence-peer"));
        }
    }
    found
}

fn judge_volumes(
    own: Node<'_, '_>,
    hostname: &str,
    service: &ServiceConfig,
    check: &DiskCheck,
) -> Vec<HostProblem> {
    let host = own.descendants().find(|n| {
        n.has_tag_name("host")
            && n.attribute("name").is_some_and(|names| names.split(' ').any(|h| h == hostname))
    });
    let mut found = Vec::new();
    for fs in &service.filesystems {
        let wanted = fs.volume.to_string();
        let volume = host.and_then(|h| {
            h.descendants()
                .find(|n| n.has_tag_name("volume") && n.attribute("vnr") == Some(&wanted))
        });
        let disk = volume
            .and_then(|v| v.descendants().find(|n| n.has_tag_name("disk") && n.text().is_some()))
            .and_then(|d| d.text());
        match disk.map(str::trim) {
            Some(disk) => found.extend(check(service, fs.volume, Path::new(disk))),
            None => found.push(HostProblem::Device {
                resource: service.drbd.clone(),
                volume: fs.volume,
                reason: format!("the resource has no such volume with a disk on {hostname}"),
            }),
        }
    }
    found
}

fn judge_disk(service: &ServiceConfig, volume: u16, disk: &Path) -> Vec<HostProblem> {
    let resource = service.drbd.clone();
    let real = match fs::canonicalize(disk) {
        Ok(real) => real,
        Err(e) => {
            let reason = format!("{}: {e}", disk.display());
            return vec![HostProblem::Device { resource, volume, reason }];
        }
    };
    if !fs::metadata(&real).is_ok_and(|m| m.file_type().is_block_device()) {
        let reason = format!("{} is no block device", disk.display());
        return vec![HostProblem::Device { resource, volume, reason }];
    }
    if service.unsafe_write_cache {
        return Vec::new();
    }
    volatile_caches(&real)
        .into_iter()
        .map(|disk| HostProblem::WriteCache { resource: resource.clone(), volume, disk })
        .collect()
}

/// Whole disks below a device (through partitions and device-mapper) whose cache is volatile.
fn volatile_caches(device: &Path) -> Vec<String> {
    let Some(name) = device.file_name().map(|n| n.to_string_lossy().into_owned()) else {
        return Vec::new();
    };
    let entry = Path::new("/sys/class/block").join(&name);
    let mut below: Vec<PathBuf> = fs::read_dir(entry.join("slaves"))
        .map(|d| d.flatten().map(|e| Path::new("/dev").join(e.file_name())).collect())
        .unwrap_or_default();
    if below.is_empty() && entry.join("partition").exists() {
        let parent = fs::canonicalize(&entry).ok().and_then(|p| {
            p.parent().and_then(|p| p.file_name()).map(|n| Path::new("/dev").join(n))
        });
        below.extend(parent);
    }
    if !below.is_empty() {
        return below.iter().flat_map(|d| volatile_caches(d)).collect();
    }
    let cache = fs::read_to_string(entry.join("queue/write_cache")).unwrap_or_default();
    // "write through" is the only safe word; an unreadable file is not (S12).
    if cache.trim() == "write through" { Vec::new() } else { vec![name] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"<config file="/etc/drbd.conf">
      <common protocol="C">
        <section name="net"><option name="rr-conflict" value="disconnect"/></section>
        <section name="disk"><option name="fencing" value="resource-and-stonith"/></section>
        <section name="options"><option name="on-no-data-accessible" value="suspend-io"/></section>
        <section name="handlers"><option name="fence-peer" value="/usr/lib/nasd/nasd-fence-peer"/></section>
      </common>
      <resource name="r0" conf-file-line="/etc/drbd.d/r0.res:1">
        <host name="nas1"><volume vnr="0"><device minor="0">/dev/drbd0</device><disk>/dev/null</disk></volume></host>
        <host name="nas2"><volume vnr="0"><device minor="0">/dev/drbd0</device><disk>/dev/null</disk></volume></host>
      </resource>
    </config>"#;

    fn service() -> ServiceConfig {
        let text = r#"
            [cluster]
            name = "lab"
            coordinator = { etcd = { endpoints = ["http://192.0.2.1:2379", "http://192.0.2.2:2379", "http://192.0.2.3:2379"] } }
            [[node]]
            name = "nas1"
            address = "192.0.2.1:7410"
            [[node]]
            name = "nas2"
            address = "192.0.2.2:7410"
            [peer]
            ca = "/a"
            cert = "/b"
            key = "/c"
            [[service]]
            name = "vms"
            drbd = "r0"
            interface = "eth0"
            addresses = ["192.0.2.101/24"]
            unsafe_write_cache = true
            [[service.filesystem]]
            volume = 0
            fstype = "ext4"
            export = "/vms"
            clients = ["192.0.2.0/24"]
        "#;
        Config::parse("test", text).unwrap().services.remove(0)
    }

    fn judge_xml(xml: &str) -> Vec<HostProblem> {
        judge(xml, "nas1", &service(), &|_, _, _| Vec::new())
    }

    #[test]
    fn s1_an_override_on_one_volume_is_seen() {
        let volume = "<volume vnr=\"0\"><device minor=\"0\">";
        let bad = "<volume vnr=\"0\"><section name=\"disk\"><option name=\"fencing\" value=\"dont-care\"/></section><device minor=\"0\">";
        let found = judge_xml(&GOOD.replacen(volume, bad, 1));
        assert!(matches!(&found[..], [HostProblem::Option { option: "fencing", .. }]), "{found:?}");
    }

    #[test]
    fn a_path_that_is_no_block_device_is_refused() {
        let found = judge_disk(&service(), 0, Path::new("/dev/null"));
        assert!(matches!(&found[..], [HostProblem::Device { .. }]), "{found:?}");
    }

    #[test]
    fn a_good_resource_has_no_problem() {
        assert_eq!(judge_xml(GOOD), []);
    }

    #[test]
    fn s1_each_bad_option_is_named_with_its_value() {
        for (from, to, name) in [
            ("resource-and-stonith", "dont-care", "fencing"),
            (
                "name=\"rr-conflict\" value=\"disconnect\"",
                "name=\"rr-conflict\" value=\"retry-connect\"",
                "rr-conflict",
            ),
            ("suspend-io", "io-error", "on-no-data-accessible"),
            ("nasd-fence-peer", "crm-fence-peer.sh", "fence-peer"),
            (
                "<option name=\"rr-conflict\"",
                "<option name=\"allow-two-primaries\"/><option name=\"rr-conflict\"",
                "allow-two-primaries",
            ),
            (
                "<option name=\"rr-conflict\"",
                "<option name=\"protocol\" value=\"A\"/><option name=\"rr-conflict\"",
                "protocol",
            ),
        ] {
            let found = judge_xml(&GOOD.replace(from, to));
            let named =
                matches!(&found[..], [HostProblem::Option { option, .. }] if *option == name);
            assert!(named, "{name}: {found:?}");
        }
    }

    #[test]
    fn s12_rubbish_and_missing_parts_are_refused() {
        let no_resource =
            |xml: &str| matches!(judge_xml(xml)[..], [HostProblem::NoResource { .. }]);
        assert!(no_resource("not xml"));
        assert!(no_resource(&GOOD.replace("\"r0\"", "\"r7\"")));
        let found = judge_xml(&GOOD.replace("vnr=\"0\"", "vnr=\"3\""));
        assert!(matches!(found[..], [HostProblem::Device { volume: 0, .. }]), "{found:?}");
    }
}
