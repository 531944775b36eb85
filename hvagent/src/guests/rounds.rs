//! The rounds in which guests are resumed: one after the other, then a look, at most [`resume::TRIES`].
//!
//! A task of its own for each, one at a time for the whole host, so that neither the agent nor the
//! guests' task waits for them (S10). Phase and leases are looked at before **each** resume, as both may
//! change in between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zbus::OwnedObjectPath;

use super::hypervisor::Hypervisor;
use super::leases::{self, Leases, Places};
use super::resume::{self, Outcome};
use crate::core::phase::Phase;

/// The mounts' phases as they are now, for those who must not act in others.
#[derive(Debug, Clone, Default)]
pub(super) struct Phases(Arc<Mutex<BTreeMap<PathBuf, Phase>>>);

impl Phases {
    pub(super) fn set(&self, mount: &Path, phase: Phase) {
        self.lock().insert(mount.to_owned(), phase);
    }

    /// A mount of which nothing was told is not known to take opens.
    pub(super) fn get(&self, mount: &Path) -> Phase {
        self.lock().get(mount).copied().unwrap_or(Phase::Normal)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Phase>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One guest to look at.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) path: OwnedObjectPath,
    pub(super) name: String,
}

/// How often each guest was tried in this move. Held locked while a round runs.
pub(super) type Tries = Arc<tokio::sync::Mutex<BTreeMap<String, u32>>>;

/// Everything a run needs.
#[derive(Debug, Clone)]
pub(super) struct Run<H> {
    pub(super) hypervisor: H,
    pub(super) mount: PathBuf,
    pub(super) guests: Vec<Candidate>,
    pub(super) phases: Phases,
    pub(super) places: Places,
    pub(super) tries: Tries,
    /// Between a round and the look that follows.
    pub(super) look_again: Duration,
}

impl<H: Hypervisor> Run<H> {
    /// Resumes what may be resumed; returns what stays paused, and why.
    pub(super) async fn go(self) -> Vec<String> {
        let tries = Arc::clone(&self.tries);
        let mut tries = tries.lock().await;
        loop {
            let leases = leases::ask(&self.places).await;
            let (resumed, problems) = self.round(&leases, &mut tries).await;
            if !resumed {
                return problems;
            }
            tokio::time::sleep(self.look_again).await;
        }
    }

    /// One resume for each guest that needs one. Whether there was any, and what stays.
    async fn round(
        &self,
        leases: &Leases,
        tries: &mut BTreeMap<String, u32>,
    ) -> (bool, Vec<String>) {
        let (mut resumed, mut problems) = (false, Vec::new());
        for guest in &self.guests {
            let tried = tries.entry(guest.path.as_str().to_owned()).or_default();
            let phase = self.phases.get(&self.mount);
            let state = match self.hypervisor.state(&guest.path).await {
                Ok(state) => state,
                Err(error) => {
                    problems.push(format!("{}: whether it runs is not known: {error}", guest.name));
                    continue;
                }
            };
            match resume::decide(state, leases.lease(), phase, *tried) {
                Outcome::NotOurs => {}
                Outcome::Stays(why) => {
                    problems
                        .push(format!("{} is paused by an error of its disk: {why}", guest.name));
                }
                Outcome::Resume => {
                    *tried += 1;
                    resumed = true;
                    self.resume(guest, *tried).await;
                }
            }
        }
        (resumed, problems)
    }

    /// How it ended is seen at the next look: a call that was given up may still be carried out.
    async fn resume(&self, guest: &Candidate, attempt: u32) {
        let guest_name = guest.name.as_str();
        match self.hypervisor.resume(&guest.path).await {
            Ok(()) => {
                tracing::info!(guest = guest_name, attempt, "resumed after an error of its disk")
            }
            Err(error) => tracing::warn!(guest = guest_name, attempt, %error, "resume failed"),
        }
    }
}
