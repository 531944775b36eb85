//! The shape of `nasd.toml` as serde sees it: texts and numbers with their places, nothing checked.
//!
//! Every table denies unknown keys: a misspelt safety option must not be ignored silently (S12).

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

/// A text with its place.
pub type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    pub cluster: Cluster,
    #[serde(default, rename = "node")]
    pub nodes: Vec<Spanned<Node>>,
    pub peer: Peer,
    #[serde(default)]
    pub right: Right,
    #[serde(default)]
    pub control: Control,
    pub watchdog: Option<Watchdog>,
    #[serde(default)]
    pub agents: Agents,
    #[serde(default, rename = "service")]
    pub services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub name: Text,
    pub coordinator: Spanned<Coordinator>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coordinator {
    pub etcd: Option<Etcd>,
    pub file: Option<File>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    pub endpoints: Spanned<Vec<Text>>,
    pub ca: Option<Text>,
    pub cert: Option<Text>,
    pub key: Option<Text>,
    pub deadline: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: Text,
    pub address: Text,
    pub heartbeat: Option<Text>,
    pub fence: Option<Fence>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    pub agent: Text,
    #[serde(default)]
    pub parameters: BTreeMap<String, Spanned<toml::Value>>,
    pub timeout: Option<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watchdog {
    pub device: Text,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub ca: Text,
    pub cert: Text,
    pub key: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Right {
    pub ttl: Option<Text>,
    pub heartbeat: Option<Text>,
    pub valid_lft: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub socket: Option<Text>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agents {
    pub wait: Option<Text>,
    #[serde(default)]
    pub required: Vec<Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub name: Text,
    pub drbd: Text,
    pub interface: Text,
    pub addresses: Spanned<Vec<Text>>,
    pub gateway: Option<Text>,
    pub gateway6: Option<Text>,
    pub mac: Option<Text>,
    pub mode: Option<Text>,
    pub threads: Option<Spanned<i64>>,
    pub priority: Option<Spanned<i64>>,
    pub lease: Option<Text>,
    pub grace: Option<Text>,
    pub preferred: Option<Text>,
    pub failback_after: Option<Text>,
    #[serde(default)]
    pub unsafe_write_cache: bool,
    #[serde(default, rename = "filesystem")]
    pub filesystems: Vec<Filesystem>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    pub volume: Spanned<i64>,
    pub fstype: Text,
    #[serde(default)]
    pub options: Vec<Text>,
    pub export: Text,
    pub fsid: Option<Text>,
    pub clients: Spanned<Vec<Text>>,
    pub rw: Option<bool>,
    #[serde(default)]
    pub no_root_squash: bool,
    pub anonuid: Option<u32>,
    pub anongid: Option<u32>,
}
