//! What the kernel says, typed: events, and the configuration in dumps.

use super::DecodeError;
use super::attr::Attrs;
use super::message::Message;
use crate::abi::Abi;
use crate::enums::{ConnState, DiskState, NOTIFY_CONTINUES, NotifyKind, ReplState, Role};
use crate::model::{
    ConnectionInfo, DeviceInfo, DeviceStats, Event, Object, PeerDeviceInfo, PeerDeviceStats,
    ResourceInfo,
};
use crate::options::{DiskOptions, NetOptions, ResourceOptions};
use crate::status::{ConnKey, Endpoint, Suspended};

/// DRBD counts in sectors of this many bytes.
const SECTOR: u64 = 512;

/// `cfg_context`: which object a message is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    pub resource: Option<String>,
    pub volume: Option<u16>,
    pub my_addr: Option<Endpoint>,
    pub peer_addr: Option<Endpoint>,
    pub conn_name: Option<String>,
    pub peer_node_id: Option<u32>,
}

impl Context {
    pub(crate) fn decode(abi: Abi, attrs: &Attrs<'_>) -> Result<Self, DecodeError> {
        let t = abi.table();
        let Some(nest) = attrs.nest(t.tag_context)? else { return Ok(Self::default()) };
        let endpoint =
            |kind| nest.get(kind).filter(|a| !a.data.is_empty()).map(|a| Endpoint(a.data.to_vec()));
        Ok(Self {
            resource: nest.get(t.ctx_resource).map(|attr| attr.text()),
            volume: nest
                .get(t.ctx_volume)
                .and_then(|attr| attr.u32())
                .and_then(|volume| u16::try_from(volume).ok()),
            my_addr: endpoint(t.ctx_my_addr),
            peer_addr: endpoint(t.ctx_peer_addr),
            conn_name: nest.opt(t.ctx_conn_name).map(|attr| attr.text()),
            peer_node_id: nest.opt(t.ctx_peer_node_id).and_then(|attr| attr.u32()),
        })
    }

    pub(crate) fn key(&self, abi: Abi) -> Result<ConnKey, DecodeError> {
        match (abi, self.peer_node_id) {
            (Abi::V84, _) => Ok(ConnKey::Only),
            (Abi::V9, Some(id)) => Ok(ConnKey::Peer(id)),
            (Abi::V9, None) => Err(DecodeError::Missing("peer_node_id")),
        }
    }

    fn resource(&self) -> Result<String, DecodeError> {
        self.resource.clone().ok_or(DecodeError::Missing("resource_name"))
    }

    fn volume(&self) -> Result<u16, DecodeError> {
        self.volume.ok_or(DecodeError::Missing("volume"))
    }
}

/// Decodes a notification. `None`: it is none of those that the model follows (8.4's legacy
/// broadcast, events of a later version).
pub(crate) fn event(abi: Abi, message: &Message<'_>) -> Result<Option<Event>, DecodeError> {
    let t = abi.table();
    let cmd = u16::from(message.cmd);
    let attrs = Attrs::parse(message.attrs)?;
    let context = Context::decode(abi, &attrs)?;
    let object = if cmd == t.ev_resource {
        Object::Resource(resource_info(abi, &attrs)?)
    } else if cmd == t.ev_device {
        device(abi, message, &context, &attrs)?
    } else if cmd == t.ev_connection {
        connection(abi, &context, &attrs)?
    } else if cmd == t.ev_peer_device {
        peer_device(abi, &context, &attrs)?
    } else if cmd == t.ev_helper {
        helper(abi, &context, &attrs)?
    } else if cmd == t.ev_initial_done {
        Object::InitialStateDone
    } else if Some(cmd) == t.ev_path {
        Object::Path
    } else {
        return Ok(None);
    };
    let resource = match object {
        Object::InitialStateDone => String::new(),
        _ => context.resource()?,
    };
    let raw = notify_type(abi, &attrs)?;
    Ok(Some(Event {
        seq: message.seq,
        kind: NotifyKind::from_wire(raw & !NOTIFY_CONTINUES),
        continues: raw & NOTIFY_CONTINUES != 0,
        resource,
        object,
    }))
}

fn notify_type(abi: Abi, attrs: &Attrs<'_>) -> Result<u32, DecodeError> {
    let t = abi.table();
    attrs
        .nest(t.tag_notification)?
        .and_then(|nest| nest.get(t.nh_type)?.u32())
        .ok_or(DecodeError::Missing("nh_type"))
}

fn resource_info(abi: Abi, attrs: &Attrs<'_>) -> Result<Option<ResourceInfo>, DecodeError> {
    let t = abi.table();
    let Some(nest) = attrs.nest(t.tag_resource_info)? else { return Ok(None) };
    let role = nest.get(t.res_role).and_then(|attr| attr.u32());
    let flag = |kind| nest.get(kind).and_then(|attr| attr.flag());
    let must = |kind, name| flag(kind).ok_or(DecodeError::Missing(name));
    Ok(Some(ResourceInfo {
        role: Role::from_wire(role.ok_or(DecodeError::Missing("res_role"))?),
        suspended: Suspended {
            user: must(t.res_susp, "res_susp")?,
            no_data: must(t.res_susp_nod, "res_susp_nod")?,
            fencing: must(t.res_susp_fen, "res_susp_fen")?,
            quorum: t.res_susp_quorum.and_then(flag).unwrap_or(false),
        },
        fail_io: t.res_fail_io.and_then(flag).unwrap_or(false),
    }))
}

fn device(
    abi: Abi,
    message: &Message<'_>,
    context: &Context,
    attrs: &Attrs<'_>,
) -> Result<Object, DecodeError> {
    let t = abi.table();
    let info = attrs.nest(t.tag_device_info)?.map(|nest| {
        let state = nest.get(t.dev_disk_state).and_then(|attr| attr.u32());
        Ok(DeviceInfo {
            disk: DiskState::from_wire(abi, state.ok_or(DecodeError::Missing("dev_disk_state"))?),
            has_quorum: nest.opt(t.dev_has_quorum).and_then(|attr| attr.flag()),
            is_open: nest.opt(t.dev_is_open).and_then(|attr| attr.flag()),
        })
    });
    Ok(Object::Device {
        volume: context.volume()?,
        minor: message.minor.ok_or(DecodeError::Missing("minor"))?,
        info: info.transpose()?,
        stats: attrs.nest(t.tag_device_stats)?.map(|nest| device_stats(abi, &nest)),
    })
}

fn device_stats(abi: Abi, nest: &Attrs<'_>) -> DeviceStats {
    let t = abi.table();
    let history = nest.get(t.history_uuids).map_or(&[][..], |attr| attr.data);
    DeviceStats {
        size: nest
            .get(t.dev_size)
            .and_then(|attr| attr.u64())
            .map(|sectors| sectors.saturating_mul(SECTOR)),
        upper_pending: nest.get(t.dev_upper_pending).and_then(|attr| attr.u32()),
        lower_pending: nest.get(t.dev_lower_pending).and_then(|attr| attr.u32()),
        current_uuid: nest.get(t.dev_current_uuid).and_then(|attr| attr.u64()),
        // 8.4 sends fewer bytes than 9 (its length counts entries, not bytes): take whole entries.
        history_uuids: history
            .as_chunks::<8>()
            .0
            .iter()
            .map(|chunk| u64::from_ne_bytes(*chunk))
            .filter(|uuid| *uuid != 0)
            .collect(),
    }
}

fn connection(abi: Abi, context: &Context, attrs: &Attrs<'_>) -> Result<Object, DecodeError> {
    let t = abi.table();
    let info = attrs.nest(t.tag_connection_info)?.map(|nest| {
        let number = |kind| nest.get(kind).and_then(|attr| attr.u32());
        let state = number(t.conn_state).ok_or(DecodeError::Missing("conn_connection_state"))?;
        let role = number(t.conn_role).ok_or(DecodeError::Missing("conn_role"))?;
        Ok(ConnectionInfo { state: ConnState::from_wire(state), peer_role: Role::from_wire(role) })
    });
    Ok(Object::Connection {
        key: context.key(abi)?,
        name: context.conn_name.clone(),
        my_addr: context.my_addr.clone(),
        peer_addr: context.peer_addr.clone(),
        info: info.transpose()?,
    })
}

fn peer_device(abi: Abi, context: &Context, attrs: &Attrs<'_>) -> Result<Object, DecodeError> {
    let t = abi.table();
    let info = attrs.nest(t.tag_peer_device_info)?.map(|nest| {
        let number = |kind| nest.get(kind).and_then(|attr| attr.u32());
        let repl = number(t.peer_repl_state).ok_or(DecodeError::Missing("peer_repl_state"))?;
        let disk = number(t.peer_disk_state).ok_or(DecodeError::Missing("peer_disk_state"))?;
        let pauses = [t.peer_susp_user, t.peer_susp_peer, t.peer_susp_dependency];
        Ok(PeerDeviceInfo {
            repl: ReplState::from_wire(repl),
            disk: DiskState::from_wire(abi, disk),
            resync_suspended: pauses.into_iter().filter_map(number).any(|value| value != 0),
        })
    });
    let stats = attrs.nest(t.tag_peer_device_stats)?.map(|nest| {
        let wide = |kind| nest.get(kind).and_then(|attr| attr.u64());
        let bytes = |kind| wide(kind).map(|sectors| sectors.saturating_mul(SECTOR));
        PeerDeviceStats {
            out_of_sync: bytes(t.peer_out_of_sync),
            resync_total: t.peer_rs_total.and_then(bytes),
            bitmap_uuid: wide(t.peer_bitmap_uuid),
        }
    });
    let (key, volume) = (context.key(abi)?, context.volume()?);
    Ok(Object::PeerDevice { key, volume, info: info.transpose()?, stats })
}

fn helper(abi: Abi, context: &Context, attrs: &Attrs<'_>) -> Result<Object, DecodeError> {
    let t = abi.table();
    let nest = attrs.nest(t.tag_helper)?.ok_or(DecodeError::Missing("helper"))?;
    let name = nest.get(t.helper_name).ok_or(DecodeError::Missing("helper_name"))?.text();
    let status = nest.get(t.helper_status).and_then(|attr| attr.u32()).unwrap_or(0);
    Ok(Object::Helper { volume: context.volume, name, status })
}

/// What a configuration dump (30, 31, 32) says about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Config {
    Resource(ResourceOptions),
    Disk(u16, DiskOptions),
    Net { context: Context, options: Option<NetOptions> },
}

/// Decodes one message of a configuration dump: the resource's name and what is said.
/// `None`: the message is about nothing that we follow.
pub(crate) fn config(
    abi: Abi,
    message: &Message<'_>,
) -> Result<Option<(String, Config)>, DecodeError> {
    let t = abi.table();
    let cmd = u16::from(message.cmd);
    let attrs = Attrs::parse(message.attrs)?;
    let mut context = Context::decode(abi, &attrs)?;
    let config = if cmd == t.cmd_resources {
        let nest = attrs.nest(t.tag_res_opts)?;
        nest.map(|nest| Config::Resource(ResourceOptions::decode(abi, &nest)))
    } else if cmd == t.cmd_devices {
        let nest = attrs.nest(t.tag_disk_conf)?;
        let volume = context.volume()?;
        nest.map(|nest| Config::Disk(volume, DiskOptions::decode(abi, &nest)))
    } else if cmd == t.cmd_connections {
        let options = attrs.get(t.tag_net_conf).map(|attr| NetOptions::decode(abi, attr.data));
        first_path(abi, &attrs, &mut context)?;
        Some(Config::Net { context: context.clone(), options: options.transpose()? })
    } else {
        None
    };
    config.map(|config| Ok((context.resource()?, config))).transpose()
}

/// 9 has the addresses in path nests beside the context; 8.4 in the context.
fn first_path(abi: Abi, attrs: &Attrs<'_>, context: &mut Context) -> Result<(), DecodeError> {
    let t = abi.table();
    let Some(tag) = t.tag_path_parms else { return Ok(()) };
    let Some(path) = attrs.iter().find(|attr| attr.kind == tag) else { return Ok(()) };
    let path = Attrs::parse(path.data)?;
    let first = |kind: Option<u16>| path.iter().find(|attr| Some(attr.kind) == kind);
    let endpoint = |kind| first(kind).map(|attr| Endpoint(attr.data.to_vec()));
    context.my_addr = context.my_addr.take().or(endpoint(t.path_my_addr));
    context.peer_addr = context.peer_addr.take().or(endpoint(t.path_peer_addr));
    Ok(())
}
