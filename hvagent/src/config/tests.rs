//! What is taken and what is refused, with lines and remedies.

use super::*;

const GOOD: &str = r#"
host = "hv1"
lockspaces = ["vms"]
[[nasd]]
name = "nas1"
address = "10.77.0.11:7410"
[[nasd]]
name = "nas2"
address = "[fd77::12]:7410"
[peer]
ca = "/etc/nasd/ca.pem"
cert = "/etc/nasd/hv1.pem"
key = "/etc/nasd/hv1.key"
[[service]]
name = "vms"
addresses = ["10.77.0.50"]
[interval]
busy = "100ms"
state = "3s"
"#;

#[test]
fn the_example_is_taken() {
    let text = include_str!("../../../systemd/examples/hvagent.toml");
    let config = Config::parse("hvagent.toml", text).unwrap();
    assert_eq!(config.nasd.len(), 2);
}

/// Line and words of each fault.
fn faults(text: &str) -> Vec<(usize, String)> {
    match Config::parse("test.toml", text).unwrap_err() {
        ConfigError::Faults { faults, .. } => {
            faults.into_iter().map(|f| (f.line, f.problem.to_string())).collect()
        }
        other => panic!("{other}"),
    }
}

fn only(text: &str, line: usize, words: &str) {
    let found = faults(text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 == line && found[0].1.contains(words), "{found:?}");
}

#[test]
fn a_whole_file_is_taken() {
    let config = Config::parse("test.toml", GOOD).unwrap();
    assert_eq!(config.host_name(), "hv1");
    assert_eq!(config.nasd.len(), 2);
    assert_eq!(config.services["vms"], vec![IpAddr::from([10, 77, 0, 50])]);
    assert_eq!(config.intervals.busy, Duration::from_millis(100));
    assert_eq!(config.intervals.state, Duration::from_secs(3));
    assert_eq!(config.intervals.rest, Intervals::default().rest);
}

#[test]
fn an_empty_file_only_watches() {
    let config = Config::parse("test.toml", "").unwrap();
    assert_eq!(config, Config::default());
    assert!(!config.host_name().is_empty());
}

#[test]
fn faults_name_line_and_remedy() {
    only(&GOOD.replace("10.77.0.11:7410", "nas1:7410"), 6, "IP address with a port");
    only(&GOOD.replace("nas2", "nas1"), 8, "twice");
    only(&GOOD.replace("/etc/nasd/ca.pem", "ca.pem"), 11, "absolute");
    only(&GOOD.replace("\"10.77.0.50\"", ""), 16, "no addresses");
    only(&GOOD.replace("10.77.0.50", "10.77.0.50/24"), 16, "not an IP address");
    only(&GOOD.replace("100ms", "5s"), 18, "outside 50 ms to 1000 ms");
    only(&GOOD.replace("100ms", "fast"), 18, "not a duration");
    only(&GOOD.replace("busy", "bussy"), 18, "unknown field");
    let error = Config::parse("test.toml", &GOOD.replace("100ms", "fast")).unwrap_err();
    assert!(error.to_string().contains("line 18"), "{error}");
    assert!(error.to_string().contains("write it as"), "{error}");
}

#[test]
fn all_faults_are_told_at_once() {
    let text = GOOD.replace("100ms", "fast").replace("\"3s\"", "\"3h\"").replace("\"hv1\"", "\"\"");
    assert_eq!(faults(&text).len(), 3);
}

#[test]
fn a_nasd_without_keys_is_refused() {
    only("[[nasd]]\nname = \"a\"\naddress = \"10.0.0.1:7410\"\n", 1, "without [peer]");
}
