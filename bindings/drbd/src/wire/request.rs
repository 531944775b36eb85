//! Requests: which command, about which object, with which parameters.
//!
//! Keeps S3: the force flag of the role command is written for [`crate::Force::OperatorConfirmed`]
//! only; discard-my-data and tentative are filtered out of every connect.

use super::attr::{Attrs, Writer};
use crate::abi::Abi;
use crate::commands::{AttachSpec, ConnectSpec};
use crate::status::{ConnKey, Endpoint};

/// A request without its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub cmd: u8,
    pub minor: Option<u32>,
    pub attrs: Vec<u8>,
}

/// A volume as commands address it: the kernel checks that minor, resource and volume agree, so a
/// minor that was given to another resource meanwhile is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target<'a> {
    pub resource: &'a str,
    pub volume: u16,
    pub minor: u32,
}

/// Builds requests for one interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    pub abi: Abi,
}

/// Command numbers are one byte on the wire.
fn byte(cmd: u16) -> u8 {
    u8::try_from(cmd).unwrap_or(u8::MAX)
}

impl Requests {
    fn context(self, inner: Writer, rest: Writer) -> Vec<u8> {
        let context = Writer::default().nest(self.abi.table().tag_context, inner).finish();
        [context, rest.finish()].concat()
    }

    fn named(self, resource: &str) -> Writer {
        Writer::default().text(self.abi.table().ctx_resource, resource)
    }

    fn on_volume(self, cmd: u16, target: Target<'_>, rest: Writer) -> Request {
        let t = self.abi.table();
        let context = self.named(target.resource).u32(t.ctx_volume, u32::from(target.volume));
        Request { cmd: byte(cmd), minor: Some(target.minor), attrs: self.context(context, rest) }
    }

    fn on_resource(self, cmd: u16, context: Writer, rest: Writer) -> Request {
        Request { cmd: byte(cmd), minor: None, attrs: self.context(context, rest) }
    }

    /// A dump of everything. Never filtered by resource: 8.4's filter of an unknown name never ends,
    /// and its peer-device filter reports volumes as minors.
    pub(crate) fn dump(cmd: u16) -> Request {
        Request { cmd: byte(cmd), minor: None, attrs: Vec::new() }
    }

    fn role_parms(self, force: bool) -> Writer {
        let t = self.abi.table();
        let inner = match t.role_force_field() {
            Some(field) if force => Writer::default().flag(field, true),
            _ => Writer::default(),
        };
        Writer::default().nest(t.tag_set_role, inner)
    }

    /// Role of one volume (8.4).
    pub(crate) fn role_of_volume(self, primary: bool, force: bool, target: Target<'_>) -> Request {
        self.on_volume(self.role_cmd(primary), target, self.role_parms(force))
    }

    /// Role of the resource (9).
    pub(crate) fn role_of_resource(self, primary: bool, force: bool, resource: &str) -> Request {
        self.on_resource(self.role_cmd(primary), self.named(resource), self.role_parms(force))
    }

    fn role_cmd(self, primary: bool) -> u16 {
        let t = self.abi.table();
        if primary { t.cmd_primary } else { t.cmd_secondary }
    }

    /// How a connection is addressed: 8.4 by both addresses and *nothing else*, 9 by resource and
    /// node id.
    pub(crate) fn disconnect(
        self,
        resource: &str,
        key: ConnKey,
        ends: Option<(&Endpoint, &Endpoint)>,
        force: bool,
    ) -> Option<Request> {
        let t = self.abi.table();
        let context = match (key, ends) {
            (ConnKey::Peer(id), _) => self.named(resource).u32(t.ctx_peer_node_id?, id),
            (ConnKey::Only, Some((my, peer))) => {
                Writer::default().bytes(t.ctx_my_addr, &my.0).bytes(t.ctx_peer_addr, &peer.0)
            }
            (ConnKey::Only, None) => return None,
        };
        let inner = if force {
            Writer::default().flag(t.force_disconnect, true)
        } else {
            Writer::default()
        };
        let rest = Writer::default().nest(t.tag_disconnect, inner);
        Some(self.on_resource(t.cmd_disconnect, context, rest))
    }

    /// 8.4 takes the whole network configuration with a connect, 9 has it already.
    pub(crate) fn connect(self, resource: &str, spec: &ConnectSpec) -> Option<Request> {
        let t = self.abi.table();
        match spec {
            ConnectSpec::V9 { peer_node_id } => {
                let context = self.named(resource).u32(t.ctx_peer_node_id?, *peer_node_id);
                Some(self.on_resource(t.cmd_connect, context, Writer::default()))
            }
            ConnectSpec::V84 { my_addr, peer_addr, net } => {
                let context = self
                    .named(resource)
                    .bytes(t.ctx_my_addr, &my_addr.0)
                    .bytes(t.ctx_peer_addr, &peer_addr.0);
                let rest = Writer::default().nest(t.tag_net_conf, self.harmless_net_conf(net));
                Some(self.on_resource(t.cmd_connect, context, rest))
            }
        }
    }

    /// S3: a stored configuration must not carry an old order to discard data.
    fn harmless_net_conf(self, raw: &[u8]) -> Writer {
        let t = self.abi.table();
        let attrs = Attrs::parse(raw).unwrap_or_default();
        let forbidden = [t.net_discard_my_data, t.net_tentative];
        attrs
            .iter()
            .filter(|attr| !forbidden.contains(&Some(attr.kind)))
            .fold(Writer::default(), |writer, attr| writer.bytes(attr.kind, attr.data))
    }

    pub(crate) fn attach(self, target: Target<'_>, spec: &AttachSpec) -> Request {
        let t = self.abi.table();
        let mut disk = Writer::default()
            .text(t.backing_dev, &spec.backing_dev)
            .text(t.meta_dev, &spec.meta_dev)
            .bytes(t.meta_dev_idx, &spec.meta_dev_idx.to_wire().to_ne_bytes())
            .u32(t.on_io_error, spec.on_io_error.to_wire())
            .u32(t.disk_timeout, spec.disk_timeout_tenths());
        if let (Some(field), Some(fencing)) = (t.disk_fencing, spec.fencing) {
            disk = disk.u32(field, fencing.to_wire());
        }
        let rest = Writer::default().nest(t.tag_disk_conf, disk);
        self.on_volume(t.cmd_attach, target, rest)
    }

    pub(crate) fn detach(self, target: Target<'_>) -> Request {
        self.on_volume(self.abi.table().cmd_detach, target, Writer::default())
    }

    pub(crate) fn outdate(self, target: Target<'_>) -> Request {
        self.on_volume(self.abi.table().cmd_outdate, target, Writer::default())
    }

    /// Without `clear_bm`: clearing the bitmap declares that both copies are equal.
    pub(crate) fn new_current_uuid(self, target: Target<'_>) -> Request {
        self.on_volume(self.abi.table().cmd_new_uuid, target, Writer::default())
    }

    /// 8.4 answers for a volume, 9 for a peer's copy of it.
    pub(crate) fn timeout_type(self, target: Target<'_>, key: ConnKey) -> Option<Request> {
        let t = self.abi.table();
        let ConnKey::Peer(id) = key else {
            return Some(self.on_volume(t.cmd_timeout_type, target, Writer::default()));
        };
        let context = self
            .named(target.resource)
            .u32(t.ctx_volume, u32::from(target.volume))
            .u32(t.ctx_peer_node_id?, id);
        Some(self.on_resource(t.cmd_timeout_type, context, Writer::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::nests::Context;
    use std::net::SocketAddr;

    const TARGET: Target<'_> = Target { resource: "r0", volume: 1, minor: 11 };

    fn requests(abi: Abi) -> Requests {
        Requests { abi }
    }

    fn context(abi: Abi, request: &Request) -> Context {
        Context::decode(abi, &Attrs::parse(&request.attrs).unwrap()).unwrap()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn golden_promotion_on_8_4() {
        let request = requests(Abi::V84).role_of_volume(true, false, TARGET);
        let golden = [
            20, 0, 2, 0x80, // cfg_context, nested
            7, 0, 2, 0, b'r', b'0', 0, 0, // resource_name, padded
            8, 0, 1, 0, 1, 0, 0, 0, // volume
            4, 0, 6, 0x80, // set_role_parms, empty
        ];
        assert_eq!(request, Request { cmd: 14, minor: Some(11), attrs: golden.to_vec() });
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn golden_demotion_on_9() {
        let request = requests(Abi::V9).role_of_resource(false, false, "r0");
        let golden = [12, 0, 2, 0x80, 7, 0, 2, 0, b'r', b'0', 0, 0, 4, 0, 6, 0x80];
        assert_eq!(request, Request { cmd: 15, minor: None, attrs: golden.to_vec() });
    }

    #[test]
    fn s3_force_is_a_byte_and_only_there_when_asked_for() {
        for abi in [Abi::V84, Abi::V9] {
            for force in [false, true] {
                let request = requests(abi).role_of_resource(true, force, "r");
                let attrs = Attrs::parse(&request.attrs).unwrap();
                let parms = attrs.nest(6).unwrap().unwrap();
                assert_eq!(parms.get(1).and_then(|attr| attr.flag()), force.then_some(true));
            }
        }
    }

    fn ends() -> (Endpoint, Endpoint) {
        let my: SocketAddr = "10.0.0.1:7788".parse().unwrap();
        let peer: SocketAddr = "[fd00::2]:7788".parse().unwrap();
        (my.into(), peer.into())
    }

    #[test]
    fn disconnect_on_8_4_names_only_the_addresses() {
        let (my, peer) = ends();
        let request =
            requests(Abi::V84).disconnect("r0", ConnKey::Only, Some((&my, &peer)), true).unwrap();
        let want = Context { my_addr: Some(my), peer_addr: Some(peer), ..Context::default() };
        assert_eq!(context(Abi::V84, &request), want);
        assert_eq!((request.cmd, request.minor), (11, None));
        let attrs = Attrs::parse(&request.attrs).unwrap();
        assert_eq!(attrs.nest(12).unwrap().unwrap().get(1).unwrap().flag(), Some(true));
        assert!(requests(Abi::V84).disconnect("r0", ConnKey::Only, None, true).is_none());
    }

    #[test]
    fn disconnect_on_9_names_resource_and_peer_and_is_graceful_without_the_flag() {
        let request = requests(Abi::V9).disconnect("r0", ConnKey::Peer(2), None, false).unwrap();
        let context = context(Abi::V9, &request);
        assert_eq!((context.resource.as_deref(), context.peer_node_id), (Some("r0"), Some(2)));
        let attrs = Attrs::parse(&request.attrs).unwrap();
        assert_eq!(attrs.nest(12).unwrap().unwrap().get(1), None);
    }

    #[test]
    fn s3_connect_never_repeats_discard_my_data() {
        let (my_addr, peer_addr) = ends();
        let net = Writer::default().u32(6, 3).flag(25, true).flag(28, true).u32(9, 3).finish();
        let spec = ConnectSpec::V84 { my_addr, peer_addr, net };
        let request = requests(Abi::V84).connect("r0", &spec).unwrap();
        let attrs = Attrs::parse(&request.attrs).unwrap();
        let sent: Vec<u16> = attrs.nest(5).unwrap().unwrap().iter().map(|attr| attr.kind).collect();
        assert_eq!(sent, [6, 9]);
        assert_eq!(context(Abi::V84, &request).resource.as_deref(), Some("r0"));
    }

    #[test]
    fn timeout_type_is_asked_as_each_interface_wants_it() {
        let old = requests(Abi::V84).timeout_type(TARGET, ConnKey::Only).unwrap();
        assert_eq!((old.cmd, old.minor), (26, Some(11)));
        let new = requests(Abi::V9).timeout_type(TARGET, ConnKey::Peer(1)).unwrap();
        let context = context(Abi::V9, &new);
        assert_eq!((new.minor, context.volume, context.peer_node_id), (None, Some(1), Some(1)));
    }
}
