//! `boot`: the lab itself works: all nodes answer, see each other, agree in etcd, replicate with DRBD.

use std::time::Duration;

use super::{Ctx, Scenario};
use crate::error::LabError;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "boot",
    summary: "all nodes boot, see each other, agree in etcd and replicate with DRBD",
    engine: None,
    nightly: false,
    clients: 2,
    run,
};

fn run(ctx: &mut Ctx) -> Result<(), LabError> {
    let limit = ctx.patience(Duration::from_secs(10));
    let nodes: Vec<_> = ctx.lab.nodes().cloned().collect();
    for node in &nodes {
        let said = ctx.lab.check(&node.name, &["uname", "-n"], limit)?;
        ctx.demand(said.trim() == node.name, &format!("{} has its name", node.name));
        for peer in &nodes {
            let ping =
                format!("ping -c1 -W2 {} && ping -c1 -W2 {}", peer.address(), peer.address6());
            let out = ctx.lab.exec(&node.name, &["sh", "-c", &ping], limit)?;
            ctx.demand(out.ok(), &format!("{} reaches {}", node.name, peer.name));
        }
    }
    ctx.lab.wait_etcd()?;
    ctx.lab.drbd_init()
}
