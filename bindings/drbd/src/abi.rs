//! The two interfaces of DRBD and their numbers, chosen at run time by the family's version.
//!
//! Owns the tables (from [`crate::generated`]) that the codec is parameterised by. Keeps S12: a
//! family version that is neither is refused, because reading 9's disk states with 8.4's table
//! turns Consistent into UpToDate.

use crate::generated::{v9, v84};

/// Which of the two interfaces the loaded module speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Abi {
    /// In-tree DRBD 8.4: generic-netlink family version 1.
    V84,
    /// LINBIT DRBD 9: generic-netlink family version 2.
    V9,
}

impl Abi {
    /// The interface for a family version as CTRL reports it (`GENL_MAGIC_VERSION`).
    #[must_use]
    pub fn from_family_version(version: u32) -> Option<Self> {
        match version {
            1 => Some(Self::V84),
            2 => Some(Self::V9),
            _ => None,
        }
    }

    /// The family version to put into requests; 9 refuses any other than its own.
    #[must_use]
    pub fn family_version(self) -> u8 {
        match self {
            Self::V84 => 1,
            Self::V9 => 2,
        }
    }

    pub(crate) fn table(self) -> &'static Table {
        match self {
            Self::V84 => &V84,
            Self::V9 => &V9,
        }
    }
}

/// Attribute and command numbers fit 16 bits; the generated constants are wider.
const fn narrow(number: u32) -> u16 {
    assert!(number < 0x4000, "a netlink type has 14 bits");
    number as u16
}

macro_rules! tables {
    (both { $($field:ident: $name:ident,)* } v84 { $($f84:ident: $n84:ident,)* } v9 { $($f9:ident: $n9:ident,)* }) => {
        /// Numbers of one interface. `None`: the interface does not have it.
        #[derive(Debug)]
        pub(crate) struct Table {
            $(pub $field: u16,)*
            $(pub $f84: Option<u16>,)*
            $(pub $f9: Option<u16>,)*
        }

        static V84: Table = Table {
            $($field: narrow(v84::$name),)*
            $($f84: Some(narrow(v84::$n84)),)*
            $($f9: None,)*
        };

        static V9: Table = Table {
            $($field: narrow(v9::$name),)*
            $($f84: None,)*
            $($f9: Some(narrow(v9::$n9)),)*
        };
    };
}

tables! {
    both {
        cmd_connect: DRBD_ADM_CONNECT,
        cmd_disconnect: DRBD_ADM_DISCONNECT,
        cmd_attach: DRBD_ADM_ATTACH,
        cmd_primary: DRBD_ADM_PRIMARY,
        cmd_secondary: DRBD_ADM_SECONDARY,
        cmd_new_uuid: DRBD_ADM_NEW_C_UUID,
        cmd_detach: DRBD_ADM_DETACH,
        cmd_outdate: DRBD_ADM_OUTDATE,
        cmd_timeout_type: DRBD_ADM_GET_TIMEOUT_TYPE,
        cmd_resources: DRBD_ADM_GET_RESOURCES,
        cmd_devices: DRBD_ADM_GET_DEVICES,
        cmd_connections: DRBD_ADM_GET_CONNECTIONS,
        cmd_initial_state: DRBD_ADM_GET_INITIAL_STATE,
        ev_resource: DRBD_RESOURCE_STATE,
        ev_device: DRBD_DEVICE_STATE,
        ev_connection: DRBD_CONNECTION_STATE,
        ev_peer_device: DRBD_PEER_DEVICE_STATE,
        ev_helper: DRBD_HELPER,
        ev_initial_done: DRBD_INITIAL_STATE_DONE,
        tag_reply: DRBD_NLA_CFG_REPLY,
        tag_context: DRBD_NLA_CFG_CONTEXT,
        tag_disk_conf: DRBD_NLA_DISK_CONF,
        tag_res_opts: DRBD_NLA_RESOURCE_OPTS,
        tag_net_conf: DRBD_NLA_NET_CONF,
        tag_set_role: DRBD_NLA_SET_ROLE_PARMS,
        tag_timeout: DRBD_NLA_TIMEOUT_PARMS,
        tag_disconnect: DRBD_NLA_DISCONNECT_PARMS,
        tag_resource_info: DRBD_NLA_RESOURCE_INFO,
        tag_device_info: DRBD_NLA_DEVICE_INFO,
        tag_connection_info: DRBD_NLA_CONNECTION_INFO,
        tag_peer_device_info: DRBD_NLA_PEER_DEVICE_INFO,
        tag_device_stats: DRBD_NLA_DEVICE_STATISTICS,
        tag_peer_device_stats: DRBD_NLA_PEER_DEVICE_STATISTICS,
        tag_notification: DRBD_NLA_NOTIFICATION_HEADER,
        tag_helper: DRBD_NLA_HELPER,
        reply_text: T_info_text,
        ctx_volume: T_ctx_volume,
        ctx_resource: T_ctx_resource_name,
        ctx_my_addr: T_ctx_my_addr,
        ctx_peer_addr: T_ctx_peer_addr,
        backing_dev: T_backing_dev,
        meta_dev: T_meta_dev,
        meta_dev_idx: T_meta_dev_idx,
        on_io_error: T_on_io_error,
        disk_timeout: T_disk_timeout,
        on_no_data: T_on_no_data,
        wire_protocol: T_wire_protocol,
        connect_int: T_connect_int,
        timeout: T_timeout,
        ping_int: T_ping_int,
        ping_timeo: T_ping_timeo,
        ko_count: T_ko_count,
        after_sb_0p: T_after_sb_0p,
        after_sb_1p: T_after_sb_1p,
        after_sb_2p: T_after_sb_2p,
        rr_conflict: T_rr_conflict,
        two_primaries: T_two_primaries,
        always_asbp: T_always_asbp,
        force_disconnect: T_force_disconnect,
        timeout_type: T_timeout_type,
        res_role: T_res_role,
        res_susp: T_res_susp,
        res_susp_nod: T_res_susp_nod,
        res_susp_fen: T_res_susp_fen,
        dev_disk_state: T_dev_disk_state,
        conn_state: T_conn_connection_state,
        conn_role: T_conn_role,
        peer_repl_state: T_peer_repl_state,
        peer_disk_state: T_peer_disk_state,
        peer_susp_user: T_peer_resync_susp_user,
        peer_susp_peer: T_peer_resync_susp_peer,
        peer_susp_dependency: T_peer_resync_susp_dependency,
        dev_size: T_dev_size,
        dev_upper_pending: T_dev_upper_pending,
        dev_lower_pending: T_dev_lower_pending,
        dev_current_uuid: T_dev_current_uuid,
        history_uuids: T_history_uuids,
        peer_out_of_sync: T_peer_dev_out_of_sync,
        peer_bitmap_uuid: T_peer_dev_bitmap_uuid,
        nh_type: T_nh_type,
        helper_name: T_helper_name,
        helper_status: T_helper_status,
    }
    v84 {
        role_assume_uptodate: T_assume_uptodate,
        disk_fencing: T_fencing,
        net_discard_my_data: T_discard_my_data,
        net_tentative: T_tentative,
    }
    v9 {
        ctx_conn_name: T_ctx_conn_name,
        ctx_peer_node_id: T_ctx_peer_node_id,
        role_force: T_force,
        net_fencing: T_fencing_policy,
        auto_promote: T_auto_promote,
        node_id: T_node_id,
        quorum: T_quorum,
        on_no_quorum: T_on_no_quorum,
        res_susp_quorum: T_res_susp_quorum,
        res_fail_io: T_res_fail_io,
        dev_has_quorum: T_dev_has_quorum,
        dev_is_open: T_dev_is_open,
        peer_rs_total: T_peer_dev_rs_total,
        tag_path_parms: DRBD_NLA_PATH_PARMS,
        path_my_addr: T_my_addr,
        path_peer_addr: T_peer_addr,
        ev_path: DRBD_PATH_STATE,
    }
}

impl Table {
    /// The field of the role command that overrides every check; spelled differently by the two.
    pub(crate) fn role_force_field(&self) -> Option<u16> {
        self.role_force.or(self.role_assume_uptodate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_select_the_table_and_others_are_refused() {
        assert_eq!(Abi::from_family_version(1), Some(Abi::V84));
        assert_eq!(Abi::from_family_version(2), Some(Abi::V9));
        assert_eq!(Abi::from_family_version(0), None);
        assert_eq!(Abi::from_family_version(3), None);
    }

    /// The numbers as measured and read, not as generated: a wrong header must not pass.
    #[test]
    fn commands_and_tags_are_those_of_the_kernel() {
        for abi in [Abi::V84, Abi::V9] {
            let t = abi.table();
            let commands = [t.cmd_connect, t.cmd_disconnect, t.cmd_attach, t.cmd_primary];
            assert_eq!(commands, [10, 11, 12, 14]);
            assert_eq!([t.cmd_secondary, t.cmd_outdate, t.cmd_timeout_type], [15, 25, 26]);
            assert_eq!([t.cmd_resources, t.cmd_devices, t.cmd_connections], [30, 31, 32]);
            assert_eq!(t.cmd_initial_state, 38);
            assert_eq!([t.ev_resource, t.ev_device, t.ev_connection], [34, 35, 36]);
            assert_eq!([t.ev_peer_device, t.ev_helper, t.ev_initial_done], [37, 40, 41]);
            assert_eq!([t.tag_set_role, t.tag_disconnect, t.tag_resource_info], [6, 12, 15]);
            assert_eq!([t.tag_device_stats, t.dev_current_uuid], [20, 12]);
            assert_eq!(t.role_force_field(), Some(1));
        }
        assert_eq!(V9.ev_path, Some(48));
        assert_eq!(V84.disk_fencing, Some(7));
        assert_eq!(V9.net_fencing, Some(30));
    }
}
