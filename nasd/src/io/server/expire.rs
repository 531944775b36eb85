//! Forgetting clients that are proven dead: their opens and locks are released and their records go, so that
//! no later grace waits for them.
//!
//! S7 has such a client dropped before a start of the server, not during grace. This does it while the server
//! runs, outside grace: that is before the *next* start. A list kept for that start would drop a client that
//! has come back meanwhile and reclaims; here the kernel tells, right before, that the client is silent, and
//! one that comes later finds itself expired and begins anew. S5 forbids expiry around a cut: a client that is
//! to be moved must find its state. So this begins only where removals of records are believed (S6, I9), and
//! one that a cut overtakes removes no record: the cut has removals ignored first.

use std::time::{Duration, Instant};

use super::super::{Answer, Refusal};
use super::nfs::{Nfs, at};

/// The kernel has the record removed before it ends the expiry: this bounds a tracker that is busy.
const GONE: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

impl Nfs {
    /// Expires clients by their owner strings. May hang while one of them has a call in execution.
    pub(super) fn expire(&self, names: &[Vec<u8>]) -> Result<Answer, Refusal> {
        self.may_expire()?;
        let expired = self.server().expire(names, self.setup().lease_s).map_err(refusal)?;
        tracing::warn!(expired, names = ?told(names), "clients expired");
        self.wait_until_gone(names)?;
        Ok(Answer::Expired { clients: u32::try_from(expired).unwrap_or(u32::MAX) })
    }

    /// Is there a server whose records would follow?
    fn may_expire(&self) -> Result<(), Refusal> {
        if !self.is_running()? {
            return Err(Refusal::NotRunning);
        }
        let Some(records) = self.snapshot() else { return Err(Refusal::RecordsNotLoaded) };
        let over = self.server().grace_over().map_err(at("reading grace"))?;
        if records.in_grace || !over {
            return Err(Refusal::InGrace);
        }
        if self.keeps_all() { Err(Refusal::RemovalsIgnored) } else { Ok(()) }
    }

    fn wait_until_gone(&self, names: &[Vec<u8>]) -> Result<(), Refusal> {
        let until = Instant::now() + GONE;
        loop {
            // A stop overtook this: they are expired, and their records stay.
            let gone = || Refusal::StillRecorded { names: told(names) };
            let records = self.snapshot().ok_or_else(gone)?;
            let left: Vec<_> = names.iter().filter(|name| records.names(name)).cloned().collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Refusal::StillRecorded { names: told(&left) });
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn told(names: &[Vec<u8>]) -> Vec<String> {
    names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

fn refusal(error: nasd_nfsd::Error) -> Refusal {
    match error {
        nasd_nfsd::Error::ClientLives { name, renewed_s, expired } => {
            Refusal::ClientLives { name, renewed_s, expired }
        }
        other => at("expiring clients")(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_lives_keeps_its_own_name() {
        let name = || "Linux NFSv4.2 hv1".to_owned();
        let lives = nasd_nfsd::Error::ClientLives { name: name(), renewed_s: Some(3), expired: 1 };
        let refused = refusal(lives);
        let told = refused.to_string();
        assert_eq!(refused, Refusal::ClientLives { name: name(), renewed_s: Some(3), expired: 1 });
        assert!(told.contains("3 s ago") && told.contains("hv1"), "{told}");
        let other = refusal(nasd_nfsd::Error::GraceNotRunning);
        assert!(matches!(other, Refusal::ServerStep { step, .. } if step == "expiring clients"));
    }
}
