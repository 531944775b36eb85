//! The checks of `[[service]]` and `[[service.filesystem]]`.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::problem::Problem;
use super::raw::{self, Text};
use super::validate::{Checker, Context, LEASE, NAME_RULE, Unique, WORD_RULE};
use super::values::{Cidr, ClientMatch, Fsid, Mac, ValueError};
use super::values::{is_export, is_interface, is_name, is_word};
use super::{FilesystemConfig, FsType, InterfaceMode, ServiceConfig, ServiceSpans};
use crate::core::record::NodeName;

/// DRBD volumes (`DRBD_VOLUME_MAX` of `drbd_limits.h`).
const VOLUME_MAX: i64 = 65535;
/// Of a service that says nothing.
const PRIORITY: u8 = 50;
/// More threads than this only queue on one disk.
const THREADS_MAX: i64 = 512;
/// Failback sooner than this would be flapping.
const FAILBACK: (Duration, Duration) =
    (Duration::from_secs(30), Duration::from_secs(7 * 24 * 3600));
/// Options that would let an acknowledged write be lost, or that nasd must control itself.
const BAD_OPTIONS: &[(&str, &str)] = &[
    ("nobarrier", "it does not wait for the disk's cache"),
    ("barrier=0", "it does not wait for the disk's cache"),
    ("errors=continue", "it goes on with a damaged file system"),
    ("data=writeback", "after a crash files may show old content"),
    ("norecovery", "it does not replay the journal"),
    ("noload", "it does not replay the journal"),
    ("ro", "the service is to be written; an export has rw = false for that"),
    ("remount", "nasd mounts by itself"),
    ("loop", "the device is a DRBD volume"),
    ("nofail", "a failed mount must be seen"),
];

impl Checker<'_> {
    pub(super) fn service(
        &mut self,
        raw: &raw::Service,
        context: &Context<'_>,
        unique: &mut Unique,
    ) -> ServiceConfig {
        let name = self.name("service name", &raw.name, is_name, NAME_RULE);
        self.once(&mut unique.names, name.clone(), raw.name.span());
        let drbd = self.name("DRBD resource", &raw.drbd, is_word, WORD_RULE);
        self.once(&mut unique.resources, drbd.clone(), raw.drbd.span());
        let rule = "the interface's name as ip link shows it, at most 15 characters";
        let interface = self.name("interface", &raw.interface, is_interface, rule);
        let addresses = self.addresses(&raw.addresses, unique);
        let lease = self.seconds("lease", raw.lease.as_ref(), LEASE, Duration::from_secs(15));
        let grace = self.grace(raw, lease);
        let scope = format!("{}.{name}", context.cluster);
        let mac = self.mac(raw, &scope, unique);
        ServiceConfig {
            drbd,
            interface,
            gateway: self.gateway("gateway", raw.gateway.as_ref(), &addresses).and_then(v4),
            gateway6: self.gateway("gateway6", raw.gateway6.as_ref(), &addresses).and_then(v6),
            addresses,
            mode: self.mode(raw.mode.as_ref()),
            threads: u16::try_from(self.threads(raw)).unwrap_or(8),
            priority: u8::try_from(self.priority(raw)).unwrap_or(PRIORITY),
            lease,
            grace,
            preferred: self.preferred(raw.preferred.as_ref(), context),
            failback_after: raw.failback_after.as_ref().map(|text| {
                self.time("failback_after", Some(text), FAILBACK, Duration::from_secs(300))
            }),
            unsafe_write_cache: raw.unsafe_write_cache,
            filesystems: self.filesystems(raw, &name, context, unique),
            scope,
            mac,
            spans: ServiceSpans { drbd: raw.drbd.span(), interface: raw.interface.span() },
            name,
        }
    }

    fn grace(&mut self, raw: &raw::Service, lease: Duration) -> Duration {
        let grace =
            self.seconds("grace", raw.grace.as_ref(), LEASE, Duration::from_secs(90).max(lease));
        if grace < lease {
            let at = raw.grace.as_ref().map_or(0..0, Spanned::span);
            self.refuse(at, Problem::GraceBelowLease { grace, lease });
        }
        grace
    }

    fn addresses(&mut self, raw: &Spanned<Vec<Text>>, unique: &mut Unique) -> Vec<Cidr> {
        if raw.get_ref().is_empty() {
            self.refuse(raw.span(), Problem::Empty { what: "addresses" });
        }
        let mut good = Vec::new();
        for text in raw.get_ref() {
            let cidr = match text.get_ref().parse::<Cidr>() {
                Ok(cidr) => cidr,
                Err(source) => {
                    self.bad_value("addresses", text, "\"10.77.0.101/24\"", source);
                    continue;
                }
            };
            let address = cidr.address();
            if let Some(what) = unusable(&cidr) {
                self.refuse(text.span(), Problem::Unusable { address, what });
            }
            self.once(&mut unique.addresses, address, text.span());
            unique.floating.insert(address);
            good.push(cidr);
        }
        good
    }

    fn gateway(&mut self, key: &'static str, text: Option<&Text>, own: &[Cidr]) -> Option<IpAddr> {
        let text = text?;
        let of_family = |g: &IpAddr| g.is_ipv4() == (key == "gateway");
        let Some(gateway) = text.get_ref().parse::<IpAddr>().ok().filter(of_family) else {
            let example = if key == "gateway" { "\"10.77.0.1\"" } else { "\"fd77::1\"" };
            self.bad_value(key, text, example, ValueError::Address);
            return None;
        };
        // An IPv6 router is usually named by its link-local address, which shares no prefix.
        let link_local = matches!(gateway, IpAddr::V6(g) if g.is_unicast_link_local());
        let near = own.iter().any(|c| c.contains(gateway) && c.address() != gateway);
        if !near && !link_local {
            self.refuse(text.span(), Problem::GatewayOutside { key, gateway });
        }
        Some(gateway)
    }

    fn mac(&mut self, raw: &raw::Service, scope: &str, unique: &mut Unique) -> Mac {
        let (mac, at) = match &raw.mac {
            None => (Mac::derived(scope), raw.name.span()),
            Some(text) => match text.get_ref().parse() {
                Ok(mac) => (mac, text.span()),
                Err(source) => {
                    self.bad_value("mac", text, "\"02:00:5e:10:00:01\"", source);
                    return Mac::derived(scope);
                }
            },
        };
        self.once(&mut unique.macs, mac, at);
        mac
    }

    fn mode(&mut self, text: Option<&Text>) -> InterfaceMode {
        if let Some(text) = text.filter(|t| t.get_ref() != "macvlan") {
            let value = text.get_ref().clone();
            self.refuse(
                text.span(),
                Problem::Choice { key: "mode", value, allowed: "\"macvlan\"" },
            );
        }
        InterfaceMode::Macvlan
    }

    fn threads(&mut self, raw: &raw::Service) -> i64 {
        let Some(threads) = &raw.threads else { return 8 };
        self.number("threads", threads, 1, THREADS_MAX)
    }

    fn priority(&mut self, raw: &raw::Service) -> i64 {
        let Some(priority) = &raw.priority else { return PRIORITY.into() };
        self.number("priority", priority, 0, 100)
    }

    fn number(&mut self, key: &'static str, at: &Spanned<i64>, min: i64, max: i64) -> i64 {
        let value = *at.get_ref();
        if !(min..=max).contains(&value) {
            self.refuse(at.span(), Problem::NumberRange { key, value, min, max });
        }
        value.clamp(min, max)
    }

    fn preferred(&mut self, text: Option<&Text>, context: &Context<'_>) -> Option<NodeName> {
        let text = text?;
        let name = NodeName(text.get_ref().clone());
        if !context.nodes.iter().any(|n| n.name == name) {
            self.refuse(text.span(), Problem::UnknownNode { value: name.0.clone() });
        }
        Some(name)
    }

    fn filesystems(
        &mut self,
        raw: &raw::Service,
        service: &str,
        context: &Context<'_>,
        unique: &mut Unique,
    ) -> Vec<FilesystemConfig> {
        if raw.filesystems.is_empty() {
            self.refuse(raw.name.span(), Problem::Empty { what: "[[service.filesystem]]" });
        }
        let mut all = Vec::new();
        let mut seen: Vec<(u16, Range<usize>)> = Vec::new();
        for fs in &raw.filesystems {
            let config = self.filesystem(fs, service, context, unique);
            if let Some((_, first)) = seen.iter().find(|(v, _)| *v == config.volume) {
                let first = self.line_of(first);
                let value = config.volume.to_string();
                self.refuse(fs.volume.span(), Problem::Duplicate { what: "volume", value, first });
            }
            self.not_nested(&fs.export, &raw.filesystems);
            seen.push((config.volume, fs.volume.span()));
            all.push(config);
        }
        all
    }

    /// A mount point below another one hides it or is hidden by it, depending on the order.
    fn not_nested(&mut self, export: &Text, all: &[raw::Filesystem]) {
        let inner = export.get_ref();
        let above = |o: &&raw::Filesystem| {
            inner.strip_prefix(o.export.get_ref().as_str()).is_some_and(|r| r.starts_with('/'))
        };
        if let Some(outer) = all.iter().find(above).map(|o| &o.export) {
            let first = self.line_of(&outer.span());
            let (inner, outer) = (inner.clone(), outer.get_ref().clone());
            self.refuse(export.span(), Problem::Nested { inner, outer, first });
        }
    }

    fn filesystem(
        &mut self,
        raw: &raw::Filesystem,
        service: &str,
        context: &Context<'_>,
        unique: &mut Unique,
    ) -> FilesystemConfig {
        let volume = u16::try_from(self.number("volume", &raw.volume, 0, VOLUME_MAX)).unwrap_or(0);
        let rule = "an absolute path of letters, digits, '-', '_' and '.', not /";
        let export = self.name("export path", &raw.export, is_export, rule);
        // Clients of several services would mix equal paths up; S6 wants them apart.
        self.once(&mut unique.exports, export.clone(), raw.export.span());
        let fsid = self.fsid(raw, context.cluster, service, &export);
        let at = raw.fsid.as_ref().unwrap_or(&raw.export).span();
        self.once(&mut unique.fsids, fsid, at);
        for option in &raw.options {
            self.mount_option(option);
        }
        FilesystemConfig {
            volume,
            fstype: self.fstype(&raw.fstype),
            options: raw.options.iter().map(|o| o.get_ref().clone()).collect(),
            export,
            fsid,
            clients: self.clients(&raw.clients),
            rw: raw.rw.unwrap_or(true),
            no_root_squash: raw.no_root_squash,
            anonuid: raw.anonuid,
            anongid: raw.anongid,
        }
    }

    fn fsid(&mut self, raw: &raw::Filesystem, cluster: &str, service: &str, export: &str) -> Fsid {
        let derived = Fsid::derived(cluster, service, export);
        let Some(text) = &raw.fsid else { return derived };
        text.get_ref().parse().unwrap_or_else(|source| {
            self.bad_value("fsid", text, "a UUID", source);
            derived
        })
    }

    fn fstype(&mut self, text: &Text) -> FsType {
        match text.get_ref().as_str() {
            "ext4" => FsType::Ext4,
            "xfs" => FsType::Xfs,
            other => {
                let (value, allowed) = (other.to_owned(), "\"ext4\" or \"xfs\"");
                self.refuse(text.span(), Problem::Choice { key: "fstype", value, allowed });
                FsType::Ext4
            }
        }
    }

    fn mount_option(&mut self, option: &Text) {
        let text = option.get_ref();
        let odd = text.is_empty() || text.contains([',', ' ', '\0']);
        let bad = BAD_OPTIONS.iter().find(|(name, _)| name == text).map(|(_, why)| *why);
        if let Some(why) = bad.or(odd.then_some("one option each, without commas and blanks")) {
            self.refuse(option.span(), Problem::MountOption { option: text.clone(), why });
        }
    }

    fn clients(&mut self, raw: &Spanned<Vec<Text>>) -> Vec<ClientMatch> {
        if raw.get_ref().is_empty() {
            self.refuse(raw.span(), Problem::Empty { what: "clients" });
        }
        raw.get_ref().iter().filter_map(|text| self.client(text)).collect()
    }

    fn client(&mut self, text: &Text) -> Option<ClientMatch> {
        let value = text.get_ref();
        if value == "*" {
            return Some(ClientMatch::Anybody);
        }
        if let Ok(address) = value.parse::<IpAddr>() {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            return Cidr::new(address, whole).map(ClientMatch::Network);
        }
        let Ok(given) = value.parse::<Cidr>() else {
            self.refuse(text.span(), Problem::ClientName { value: value.clone() });
            return None;
        };
        if given.address() != given.network() {
            self.refuse(text.span(), Problem::HostBits { given, network: given.network() });
        }
        Some(ClientMatch::Network(given))
    }
}

fn v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    if let IpAddr::V4(a) = address { Some(a) } else { None }
}

fn v6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    if let IpAddr::V6(a) = address { Some(a) } else { None }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// What is wrong with a floating address, if anything is.
fn unusable(cidr: &Cidr) -> Option<&'static str> {
    let address = cidr.address();
    if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if is_link_local(address) {
        Some("a link-local address")
    } else if cidr.broadcast().is_some_and(|b| IpAddr::V4(b) == address) {
        Some("the broadcast address of its network")
    } else if !cidr.is_single()
        && address.is_ipv4()
        && address == cidr.network()
        && cidr.prefix() < 31
    {
        Some("the address of its network")
    } else {
        None
    }
}
