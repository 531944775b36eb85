//! `migrate-vm`: live migrations while the storage stays where it is.

use super::super::{Ctx, Scenario};
use super::domain::Hyper;
use crate::error::LabError;
use crate::report::Percentiles;

/// There and back.
pub const MIGRATE: Scenario = Scenario {
    name: "migrate-vm",
    summary: "live migration of a guest from hv1 to hv2 and back, 3 times",
    engine: None,
    nightly: false,
    clients: 2,
    run: migrate_vm,
};

/// Migrations, there and back.
const COUNT: u64 = 6;

fn migrate_vm(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    let (mut took, mut windows) = (Vec::new(), Vec::new());
    for number in 1..=COUNT {
        let migrated = hyper.migrate(ctx)?;
        let what = format!("migration {number}: {}", migrated.words);
        ctx.demand(migrated.ok, &what);
        took.push(migrated.took.as_secs_f64() * 1000.0);
        windows.push(migrated.window);
        hyper.settle(ctx)?;
    }
    let took = serde_json::to_value(Percentiles::of(&took)).unwrap_or_default();
    ctx.report.extra.insert("migration_ms".into(), took);
    hyper.conclude(ctx, &windows)?;
    let downtime = ctx.report.migrations.and_then(|m| m.downtime_ms.max);
    ctx.bound("migration's downtime max ms", downtime, 5000.0);
    Ok(())
}
