//! Whether a time service keeps this host's clock right, as systemd-timedated tells.
//!
//! It reads the kernel's own state, whichever program sets the clock. One call under a deadline (S10).

use std::time::Duration;

use zbus::Connection;
use zbus::proxy::CacheProperties;

use super::report::Known;

/// It is started for the question.
const LIMIT: Duration = Duration::from_secs(3);

/// systemd-timedated.
#[zbus::proxy(
    interface = "org.freedesktop.timedate1",
    default_service = "org.freedesktop.timedate1",
    default_path = "/org/freedesktop/timedate1"
)]
trait TimeDate {
    /// The kernel's clock is kept right.
    #[zbus(property(emits_changed_signal = "false"), name = "NTPSynchronized")]
    fn ntp_synchronized(&self) -> zbus::Result<bool>;
}

/// Asks.
pub async fn synchronised(bus: &Connection) -> Known<bool> {
    let ask = async {
        let proxy = TimeDateProxy::builder(bus).cache_properties(CacheProperties::No);
        proxy.build().await?.ntp_synchronized().await
    };
    match tokio::time::timeout(LIMIT, ask).await {
        Ok(answer) => Known::of(answer),
        Err(_) => Known::Unknown(format!("systemd-timedated did not answer within {LIMIT:?}")),
    }
}
