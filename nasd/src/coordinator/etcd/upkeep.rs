//! The cluster's fitness for a failover: reach, the NOSPACE alarm, and where its leader is.
//!
//! A leader on a NAS node dies with it, and every compare-and-set of the takeover then waits for an
//! election (1 s and more). So the node beside whose member the leader is hands the leadership to the
//! third member, if that one is healthy. Nothing here is a condition of safety.

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Client, StatusResponse};
use futures_util::future::join_all;

use super::{Etcd, Failure};

/// Between two looks at the reach.
const LOOK: Duration = Duration::from_secs(5);
/// Every so many looks the members' state is read as well.
const MEMBERS_EVERY: u32 = 2;
/// What was heard of the reach is worth something for so long.
const FRESH: Duration = Duration::from_secs(12);
/// Time for one member to tell its state.
const STATUS: Duration = Duration::from_secs(1);
/// Raft entries that the next leader may lag behind; more and it would hold writes up.
const LAG: u64 = 1000;

/// What is known of the cluster without asking.
#[derive(Debug, Default)]
pub(super) struct Condition {
    last: Mutex<Option<(Instant, bool)>>,
    alarm: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Condition {
    /// A call ended. A refusal is an answer too, but one that leaves nothing to write with.
    pub(super) fn note(&self, failure: Option<&Failure>) {
        *lock(&self.last) = Some((Instant::now(), failure.is_none()));
        if let Some(failure) = failure.filter(|f| f.full) {
            *lock(&self.alarm) = Some(failure.reason.clone());
        }
    }

    /// Whether it could be written; unknown when nobody asked lately.
    pub(super) fn reach(&self) -> Option<bool> {
        let (at, answered) = (*lock(&self.last))?;
        (at.elapsed() < FRESH).then(|| answered && lock(&self.alarm).is_none())
    }

    pub(super) fn alarm(&self) -> Option<String> {
        lock(&self.alarm).clone()
    }

    fn set_alarm(&self, told: Option<String>) {
        let mut alarm = lock(&self.alarm);
        match (&*alarm, &told) {
            (None, Some(what)) => tracing::error!(
                alarm = what,
                "etcd writes nothing: no failover is possible; make room (compact, defrag), then etcdctl alarm disarm"
            ),
            (Some(_), None) => tracing::info!("etcd's alarm is gone"),
            _ => {}
        }
        *alarm = told;
    }
}

/// One member as it described itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    id: u64,
    leader: u64,
    index: u64,
    healthy: bool,
    /// On one of the NAS nodes.
    nas: bool,
    /// On this node.
    here: bool,
}

impl Etcd {
    /// Looks for ever. This node's member is asked first, unless it was found silent since the last look:
    /// a takeover's first call must not go to a member that died with the owner.
    pub(super) fn look_after(&self, here: IpAddr, nas: Vec<IpAddr>) {
        let store = self.clone();
        tokio::spawn(async move {
            let mut places = store.places().await;
            for look in 0_u32.. {
                if let Some(mine) = places.iter().position(|at| at.contains(&here)) {
                    store.best.store(mine, Ordering::Relaxed);
                }
                // Its end is noted by `ask`; nothing is done with the answer.
                drop(store.get(format!("{}/reach", store.root)).await);
                if look % MEMBERS_EVERY == 0 {
                    // Names may not have been known yet when nasd started.
                    if places.iter().any(Vec::is_empty) {
                        places = store.places().await;
                    }
                    store.look_at_members(here, &nas, &places).await;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
    }

    /// The addresses of each endpoint; empty where a name has none.
    async fn places(&self) -> Vec<Vec<IpAddr>> {
        join_all(self.endpoints.iter().map(|endpoint| async move {
            let found = tokio::time::timeout(STATUS, resolve(endpoint)).await;
            found.unwrap_or_default()
        }))
        .await
    }

    async fn look_at_members(&self, here: IpAddr, nas: &[IpAddr], places: &[Vec<IpAddr>]) {
        let told = join_all(self.members.iter().map(status)).await;
        if told.iter().any(Option::is_some) {
            let full = told.iter().flatten().flat_map(|s| s.errors());
            let full = full.filter(|e| e.contains("NOSPACE")).cloned().collect::<Vec<_>>();
            self.condition.set_alarm((!full.is_empty()).then(|| full.join("; ")));
        }
        let seen: Vec<_> = told
            .iter()
            .zip(places)
            .map(|(told, at)| {
                let told = told.as_ref()?;
                Some(Seen {
                    id: told.header()?.member_id(),
                    leader: told.leader(),
                    index: told.raft_index(),
                    healthy: told.errors().is_empty() && !told.is_learner(),
                    nas: nas.iter().any(|n| at.contains(n)),
                    here: at.contains(&here),
                })
            })
            .collect();
        if let Some((leader, target)) = transfer(&seen)
            && let Some(member) = self.members.get(leader)
        {
            self.move_leader(member, target).await;
        }
    }

    async fn move_leader(&self, member: &Client, target: u64) {
        let mut client = member.maintenance_client();
        match tokio::time::timeout(self.deadline, client.move_leader(target)).await {
            Ok(Ok(_)) => tracing::info!(
                to = format!("{target:016x}"),
                "etcd's leader was on this node and is on the third member now"
            ),
            Ok(Err(error)) => tracing::warn!(%error, "etcd's leader stays on this node"),
            Err(_) => tracing::warn!("etcd's leader stays on this node: no answer"),
        }
    }
}

async fn status(member: &Client) -> Option<StatusResponse> {
    let mut client = member.maintenance_client();
    tokio::time::timeout(STATUS, client.status()).await.ok()?.ok()
}

async fn resolve(endpoint: &str) -> Vec<IpAddr> {
    let place = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let place = place.split('/').next().unwrap_or_default();
    match tokio::net::lookup_host(place).await {
        Ok(found) => found.map(|a| a.ip().to_canonical()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Who hands over to whom: the member on this node, if it leads, to a healthy one that is on no NAS
/// node and knows the same leader.
fn transfer(seen: &[Option<Seen>]) -> Option<(usize, u64)> {
    let leads = |s: &Seen| s.here && s.id == s.leader;
    let (at, leader) =
        seen.iter().enumerate().find_map(|(i, s)| s.filter(leads).map(|s| (i, s)))?;
    let fit = |s: &&Seen| {
        !s.nas && s.healthy && s.leader == leader.id && s.index.saturating_add(LAG) > leader.index
    };
    Some((at, seen.iter().flatten().find(fit)?.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, nas: bool, here: bool) -> Option<Seen> {
        Some(Seen { id, leader: 1, index: 5000, healthy: true, nas, here })
    }

    #[test]
    fn the_leader_leaves_this_node_for_a_healthy_third() {
        let good = [member(1, true, true), member(2, true, false), member(3, false, false)];
        assert_eq!(transfer(&good), Some((0, 3)));
        let not_here = [member(1, true, false), member(2, true, true), member(3, false, false)];
        assert_eq!(transfer(&not_here), None, "the other node's business");
        let ill = |change: fn(&mut Seen)| {
            let mut all = good;
            all[2].as_mut().map(change);
            transfer(&all)
        };
        assert_eq!(ill(|s| s.healthy = false), None);
        assert_eq!(ill(|s| s.leader = 9), None, "it is cut off, or an election runs");
        assert_eq!(ill(|s| s.index = 3), None, "it lags");
        assert_eq!(transfer(&[good[0], good[1], None]), None, "it does not answer");
        let third_leads = good.map(|m| m.map(|s| Seen { leader: 3, ..s }));
        assert_eq!(transfer(&third_leads), None);
    }

    #[test]
    fn a_full_database_is_no_reach() {
        let condition = Condition::default();
        assert_eq!(condition.reach(), None);
        condition.note(None);
        assert_eq!(condition.reach(), Some(true));
        condition.set_alarm(Some("NOSPACE".into()));
        assert_eq!(condition.reach(), Some(false));
        condition.set_alarm(None);
        condition.note(Some(&Failure { reason: "late".into(), definite: false, full: false }));
        assert_eq!(condition.reach(), Some(false));
    }
}
