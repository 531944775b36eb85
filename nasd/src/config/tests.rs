//! A table of bad files, each with the line and words of its refusal; digest and accessors.

use super::*;

const GOOD: &str = r#"[cluster]
name = "lab"
coordinator = { etcd = { endpoints = ["https://10.77.0.11:2379", "https://10.77.0.12:2379", "https://10.77.0.13:2379"], ca = "/ca", cert = "/cert", key = "/key" } }
[[node]]
name = "nas1"
address = "10.77.0.11:7410"
[[node]]
name = "nas2"
address = "10.77.0.12:7410"
[peer]
ca = "/etc/nasd/ca.pem"
cert = "/etc/nasd/node.pem"
key = "/etc/nasd/node.key"
[right]
ttl = "1500ms"
valid_lft = "5s"
[control]
socket = "/run/nasd/control.sock"
[[service]]
name = "vms"
drbd = "r0"
interface = "eth0"
addresses = ["10.77.0.101/24", "fd77::101/64"]
gateway = "10.77.0.1"
mode = "macvlan"
threads = 8
lease = "15s"
grace = "90s"
preferred = "nas1"
  [[service.filesystem]]
  volume = 0
  fstype = "ext4"
  options = ["noatime"]
  export = "/vms"
  clients = ["10.77.0.0/24"]
[[service]]
name = "iso"
drbd = "r1"
interface = "eth0"
addresses = ["10.77.0.102/24"]
  [[service.filesystem]]
  volume = 0
  fstype = "xfs"
  export = "/iso"
  clients = ["10.77.0.21", "*"]
  rw = false
"#;

fn good() -> Config {
    Config::parse("nasd.toml", GOOD).unwrap()
}

/// The good file with the first occurrence of a text replaced.
fn changed(from: &str, to: &str) -> String {
    GOOD.replacen(from, to, 1)
}

fn refusals(text: &str) -> Vec<Refusal<Problem>> {
    match Config::parse("nasd.toml", text) {
        Err(ConfigError::Refused { refusals, .. }) => refusals,
        other => panic!("not refused: {other:?}\n{text}"),
    }
}

/// Text to replace (its first occurrence), replacement, line of the refusal, words of the refusal.
const BAD: &[(&str, &str, usize, &str)] = &[
    ("lease = \"15s\"", "leese = \"15s\"", 27, "unknown field `leese`"),
    ("name = \"lab\"", "nmae = \"lab\"", 2, "unknown field `nmae`"),
    ("threads = 8", "threads = \"8\"", 26, "invalid type"),
    ("threads = 8", "threads = 0", 26, "outside 1 to 512"),
    ("threads = 8", "priority = 101", 26, "outside 0 to 100"),
    ("threads = 8", "threads =", 26, ""),
    ("name = \"lab\"", "name = \"Lab\"", 2, "cannot be a cluster name"),
    ("name = \"iso\"", "name = \"vms\"", 37, "service name \"vms\" is already used on line 20"),
    ("drbd = \"r1\"", "drbd = \"r0\"", 38, "DRBD resource \"r0\" is already used on line 21"),
    (
        "export = \"/iso\"",
        "export = \"/vms\"",
        44,
        "export path \"/vms\" is already used on line 34",
    ),
    ("10.77.0.102/24", "10.77.0.101/24", 40, "address \"10.77.0.101\" is already used on line 23"),
    ("10.77.0.102/24", "10.77.0.12/24", 40, "address \"10.77.0.12\" is already used on line 9"),
    ("10.77.0.102/24", "10.77.0.13/24", 3, "a floating address of a service"),
    ("10.77.0.102/24", "10.77.0.102", 40, "the prefix length is missing"),
    ("10.77.0.102/24", "10.77.0.255/24", 40, "broadcast"),
    ("10.77.0.102/24", "127.0.0.5/8", 40, "loopback"),
    ("fd77::101/64", "fe80::1/64", 23, "link-local"),
    ("addresses = [\"10.77.0.102/24\"]", "addresses = []", 40, "addresses is empty"),
    ("gateway = \"10.77.0.1\"", "gateway = \"10.78.0.1\"", 24, "not in the network"),
    ("gateway = \"10.77.0.1\"", "gateway = \"fd77::1\"", 24, "not an IP address"),
    ("mode = \"macvlan\"", "mode = \"ipvlan\"", 25, "\"ipvlan\" is not supported"),
    ("mode = \"macvlan\"", "mac = \"03:00:00:00:00:01\"", 25, "a group address"),
    ("lease = \"15s\"", "lease = \"15\"", 27, "not a number followed by ms, s, m or h"),
    ("lease = \"15s\"", "lease = \"9s\"", 27, "outside 10s to 3600s"),
    ("lease = \"15s\"", "lease = \"10500ms\"", 27, "whole number of seconds"),
    ("grace = \"90s\"", "grace = \"14s\"", 28, "shorter than lease 15s"),
    ("grace = \"90s\"", "grace = \"2h\"", 28, "outside"),
    ("preferred = \"nas1\"", "preferred = \"nas3\"", 29, "not one of the two nodes"),
    ("volume = 0", "volume = -1", 31, "outside 0 to 65535"),
    ("\"ext4\"", "\"btrfs\"", 32, "\"btrfs\" is not supported"),
    ("\"noatime\"", "\"nobarrier\"", 33, "does not wait for the disk"),
    ("\"noatime\"", "\"noatime,noload\"", 33, "without commas"),
    ("\"/vms\"", "\"/\"", 34, "cannot be a export path"),
    ("\"/vms\"", "\"/a/../b\"", 34, "cannot be a export path"),
    ("\"10.77.0.0/24\"", "\"hv1.example.org\"", 35, "neither an address"),
    ("\"10.77.0.0/24\"", "\"*.example.org\"", 35, "neither an address"),
    ("\"10.77.0.0/24\"", "\"10.77.0.5/24\"", 35, "host bits"),
    ("\"10.77.0.0/24\"", "", 35, "clients is empty"),
    ("\"nas2\"", "\"nas1\"", 8, "node name \"nas1\" is already used on line 5"),
    ("10.77.0.12:7410", "10.77.0.11:7410", 9, "node address"),
    ("[peer]", "[node.fence]\nagent = \"fence_x\"\n[peer]", 11, "agent"),
    (
        "[peer]",
        "[node.fence]\nagent = \"/usr/sbin/fence_x\"\nparameters = { action = \"on\" }\n[peer]",
        12,
        "fence parameter \"action\"",
    ),
    (
        "[peer]",
        "[node.fence]\nagent = \"/usr/sbin/fence_x\"\nparameters = { ip = [\"a\"] }\n[peer]",
        12,
        "fence parameter \"ip\"",
    ),
    ("[control]", "[agents]\nwait = \"0s\"\n[control]", 18, "wait = 0s is outside 1s to 600s"),
    ("[control]", "[agents]\nwait = \"15\"\n[control]", 18, "not a number followed by"),
    ("[control]", "[agents]\nrequired = [\"nas2\"]\n[control]", 18, "which is a NAS node"),
    ("[control]", "[agents]\nrequired = [\"h v\"]\n[control]", 18, "cannot be a hypervisor"),
    (
        "[control]",
        "[agents]\nrequired = [\"hv1\",\n\"hv1\"]\n[control]",
        19,
        "hypervisor \"hv1\" is already used on line 18",
    ),
    ("[control]", "[agents]\nrequire = []\n[control]", 18, "unknown field `require`"),
    ("[control]", "[watchdog]\ndevice = \"watchdog0\"\n[control]", 18, "device"),
    (
        "[peer]",
        "heartbeat = \"10.78.0.12:0\"\n[peer]",
        10,
        "heartbeat \"10.78.0.12:0\" is not an IP address with a port",
    ),
    ("[peer]", "heartbeat = \"10.77.0.12:7411\"\n[peer]", 10, "no second path"),
    (
        "[peer]",
        "heartbeat = \"10.77.0.11:7410\"\n[peer]",
        10,
        "node address \"10.77.0.11:7410\" is already used on line 6",
    ),
    ("[peer]", "heartbeat = \"10.77.0.102:7410\"\n[peer]", 41, "already used on line 10"),
    ("[peer]", "heartbeat = \"10.78.0.12:7410\"\n[peer]", 5, "node nas1 has none"),
    ("10.77.0.12:7410", "nas2:7410", 9, "not an IP address with a port"),
    ("10.77.0.12:7410", "10.77.0.12:0", 9, "not an IP address with a port"),
    (
        "[peer]",
        "[[node]]\nname = \"nas3\"\naddress = \"10.77.0.14:1\"\n[peer]",
        10,
        "3 [[node]] tables",
    ),
    ("/etc/nasd/ca.pem", "ca.pem", 11, "not an absolute path"),
    ("ttl = \"1500ms\"", "ttl = \"100ms\"", 15, "outside 300ms to 10s"),
    ("ttl = \"1500ms\"", "heartbeat = \"600ms\"", 15, "more than a third"),
    ("valid_lft = \"5s\"", "valid_lft = \"2s\"", 16, "below ttl"),
    (", ca = \"/ca\"", "", 3, "ca is missing"),
    (", \"https://10.77.0.13:2379\"", "", 3, "2 etcd endpoints"),
    ("\"https://10.77.0.13:2379\"", "\"10.77.0.13:2379\"", 3, "not a URL"),
    ("\"https://10.77.0.13:2379\"", "\"http://10.77.0.13:2379\"", 3, "plain http"),
    ("key = \"/key\" }", "key = \"/key\" }, file = { path = \"/f\" }", 3, "names 2 stores"),
];

#[test]
fn every_bad_file_is_refused_with_its_line() {
    for (from, to, line, words) in BAD {
        assert!(GOOD.contains(from), "the table's {from} is not in the good file");
        let found = refusals(&changed(from, to));
        let hit = found.iter().find(|r| r.line() == *line && r.to_string().contains(words));
        let all: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert!(hit.is_some(), "{from} → {to}: wanted line {line} with {words:?}, got {all:#?}");
        assert!(hit.is_some_and(|r| !r.problem.remedy().is_empty()));
    }
}

#[test]
fn all_faults_are_told_at_once_in_the_order_of_the_file() {
    let text = changed("grace = \"90s\"", "grace = \"9s\"").replacen("r1", "r0", 1);
    let lines: Vec<_> = refusals(&text).iter().map(Refusal::line).collect();
    assert_eq!(lines, [28, 38]);
}

fn file_coordinator(second: &str) -> String {
    let start = GOOD.find("coordinator =").unwrap();
    let end = start + GOOD[start..].find('\n').unwrap();
    let line = "coordinator = { file = { path = \"/run/records.json\" } }";
    format!("{}{line}{}", &GOOD[..start], &GOOD[end..]).replacen("10.77.0.12:7410", second, 1)
}

#[test]
fn the_file_coordinator_refuses_a_node_elsewhere() {
    let found = refusals(&file_coordinator("10.77.0.12:7410"));
    assert!(matches!(found[0].problem, Problem::FileElsewhere { .. }) && found[0].line() == 3);
    assert!(Config::parse("x", &file_coordinator("10.77.0.11:7411")).is_ok());
}

#[test]
fn nested_exports_duplicate_volumes_and_fsids_are_refused() {
    let more = "  [[service.filesystem]]\n  volume = 0\n  fstype = \"xfs\"\n  export = \"/iso/old\"\n  clients = [\"*\"]\n";
    let found = refusals(&format!("{GOOD}{more}"));
    assert!(
        found
            .iter()
            .any(|r| r.line() == 48 && r.to_string().contains("volume \"0\" is already used"))
    );
    assert!(found.iter().any(|r| r.line() == 50 && matches!(r.problem, Problem::Nested { .. })));
    let id = "  fsid = \"2f6f1c3e-0000-4000-8000-000000000001\"\n  fstype";
    let found = refusals(&GOOD.replace("  fstype", id));
    assert!(found[0].to_string().contains("fsid") && found[0].line() == 44, "{found:?}");
}

#[test]
fn accessors_name_everything_from_the_service() {
    let config = good();
    let vms = config.service("vms").unwrap();
    assert_eq!(vms.scope(), "lab.vms");
    assert_eq!(vms.netns_name(), "nasd-vms");
    assert_eq!(vms.mountpoint(&vms.filesystems[0]), Path::new("/srv/nasd/vms/vms"));
    assert_eq!(vms.run_dir(), Path::new("/run/nasd/vms"));
    assert_eq!(config.this_node("nas1.example.org").unwrap().name, NodeName::from("nas1"));
    assert!(config.this_node("nas3").is_none());
    assert_eq!(config.peer_of(&"nas1".into()).unwrap().name, NodeName::from("nas2"));
    assert!(config.peer_of(&"nas3".into()).is_none());
    assert_ne!(vms.mac(), config.service("iso").unwrap().mac());
    assert_eq!(config.service("iso").unwrap().grace, Duration::from_secs(90));
}

#[test]
fn the_digest_ignores_paths_of_keys_and_nothing_else() {
    let digest = |text: &str| Config::parse("x", text).unwrap().digest();
    let same = good().digest();
    assert_eq!(same.len(), 64);
    for (from, to) in [
        ("/etc/nasd/node.key", "/root/k"),
        ("\"/key\"", "\"/k\""),
        ("[right]", "# note\n[right]"),
        ("control.sock", "c"),
    ] {
        assert_eq!(digest(&changed(from, to)), same, "{from}");
    }
    // Without a preferred node, whose name is one of those that change.
    let plain = changed("preferred = \"nas1\"\n", "");
    let base = digest(&plain);
    for (from, to) in [
        ("\"15s\"", "\"16s\""),
        ("r1", "r2"),
        ("noatime", "relatime"),
        ("10.77.0.21", "10.77.0.22"),
        ("\"1500ms\"", "\"1600ms\""),
        ("threads = 8", "threads = 9"),
        ("nas1", "nas0"),
        ("/iso", "/img"),
        ("rw = false", "no_root_squash = true"),
        ("\"xfs\"", "\"ext4\""),
        ("eth0", "eth1"),
        ("10.77.0.13", "10.77.0.14"),
    ] {
        assert_ne!(digest(&plain.replacen(from, to, 1)), base, "{from}");
    }
}

/// Both nodes with a second path.
fn two_paths() -> String {
    let with = |text: String, node: &str, second: &str| {
        let more = format!("{node}\"\nheartbeat = \"{second}\"");
        text.replacen(&format!("{node}\""), &more, 1)
    };
    let text = with(GOOD.to_owned(), "10.77.0.11:7410", "10.78.0.11:7410");
    with(text, "10.77.0.12:7410", "[fd78::12]:7410")
}

#[test]
fn a_second_path_is_optional_and_must_be_equal_on_both_nodes() {
    assert_eq!(good().nodes[0].heartbeat, None);
    assert!(!serde_json::to_string(&good()).unwrap().contains("heartbeat\":null"));
    let config = Config::parse("nasd.toml", &two_paths()).unwrap();
    let second = config.nodes.each_ref().map(|n| n.heartbeat.unwrap().to_string());
    assert_eq!(second, ["10.78.0.11:7410", "[fd78::12]:7410"]);
    assert_ne!(config.digest(), good().digest());
}

#[test]
fn a_refusal_renders_with_code_label_and_help() {
    let found = refusals(&changed("grace = \"90s\"", "grace = \"14s\""));
    let mut text = String::new();
    miette::NarratableReportHandler::new().render_report(&mut text, &found[0]).unwrap();
    assert!(text.contains("config.grace") && text.contains("set grace to 15s or more"), "{text}");
}

#[test]
fn watchdog_and_fence_agent_are_optional_and_their_secrets_stay_inside() {
    assert_eq!((good().watchdog.clone(), good().nodes[0].fence.clone()), (None, None));
    let text = changed(
        "[peer]",
        "[node.fence]\nagent = \"/usr/sbin/fence_ipmilan\"\ntimeout = \"30s\"\n\
         parameters = { ip = \"10.77.1.2\", password = \"secret\", lanplus = true, port = 623 }\n\
         [watchdog]\ndevice = \"/dev/watchdog\"\n[peer]",
    );
    let config = Config::parse("nasd.toml", &text).unwrap();
    assert_eq!(config.watchdog.as_deref(), Some(Path::new("/dev/watchdog")));
    assert_eq!(config.nodes[0].fence, None);
    let agent = config.nodes[1].fence.clone().unwrap();
    assert_eq!(agent.timeout, Duration::from_secs(30));
    let value = |name: &str| agent.parameters[name].clone();
    assert_eq!((value("lanplus"), value("port")), ("1".to_owned(), "623".to_owned()));
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn agents_are_optional_and_change_the_digest_only_when_set() {
    assert_eq!(good().agents, AgentsConfig::default());
    assert!(!serde_json::to_string(&good()).unwrap().contains("agents"));
    let text =
        changed("[control]", "[agents]\nwait = \"40s\"\nrequired = [\"hv2\", \"hv1\"]\n[control]");
    let config = Config::parse("nasd.toml", &text).unwrap();
    assert_eq!(config.agents.wait, Duration::from_secs(40));
    assert_eq!(config.agents.required, ["hv1", "hv2"]);
    assert_ne!(config.digest(), good().digest());
}
