//! The example that administrators copy is accepted as it stands. It does not look at this host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use nasd::config::{Config, CoordinatorConfig};

fn example() -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/examples/nasd.toml");
    Config::load(&path).unwrap_or_else(|e| panic!("{e:?}"))
}

#[test]
fn the_example_is_a_good_configuration() {
    let config = example();
    assert!(
        matches!(config.coordinator, CoordinatorConfig::Etcd { ref endpoints, .. } if endpoints.len() == 3)
    );
    let vms = config.service("vms").unwrap();
    assert_eq!(vms.drbd, "vms");
    assert_eq!(vms.filesystems[0].export, "/vms");
}

/// DRBD's example and nasd's speak of the same nodes and the same resource.
#[test]
fn the_examples_fit_each_other() {
    let config = example();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/examples/drbd.d/vms.res");
    let resource = std::fs::read_to_string(path).unwrap();
    assert!(resource.contains(&format!("resource {} {{", config.services[0].drbd)));
    for node in &config.nodes {
        let on = format!("on {} {{ address {}:", node.name.0, node.address.ip());
        assert!(resource.contains(&on), "no `{on}`");
    }
}
