//! Executes the core's steps. Each is idempotent: on a node where it has been done it succeeds and
//! changes nothing (S9).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nasd_net::gate::Which;
use nasd_nfsd::exports::Export;

use super::drbd::Evidence;
use super::failpoint;
use super::hands::{Hands, blocking, lock};
use super::right;
use super::take;
use crate::config::{FilesystemConfig, ServiceConfig};
use crate::core::machine::StepContext;
use crate::core::step::{DRAIN, Proof, Step, StepError};
use crate::io::{Answer, CallError, Holder, Op, Refusal, Setup};

/// What a step gives: the generation that it has written, if it writes one.
pub(super) type StepResult = Result<Option<u64>, StepError>;

/// Repeats of the tickle after the first, milliseconds after opening (design section 5).
const TICKLES_MS: [u64; 5] = [20, 50, 100, 200, 400];
/// Repeats of the announcement.
const ANNOUNCEMENTS_MS: [u64; 2] = [50, 200];

/// A refusal of nasd-io as a step's error.
#[must_use]
pub fn refused(step: &'static str, error: &CallError) -> StepError {
    match error {
        CallError::Deadline { after, .. } => StepError::Deadline {
            step,
            after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        },
        CallError::Refused { refusal, .. } => refusal_of(step, refusal),
        _ => StepError::Refused { step, reason: error.to_string() },
    }
}

fn refusal_of(step: &'static str, refusal: &Refusal) -> StepError {
    match refusal {
        Refusal::Busy { target, holders, .. } => StepError::Busy {
            path: target.display().to_string(),
            holders: holders.iter().map(holder).collect(),
        },
        Refusal::ForeignMount { .. } | Refusal::MountedElsewhere { .. } => {
            StepError::WrongVolume { reason: refusal.to_string() }
        }
        _ => StepError::Refused { step, reason: refusal.to_string() },
    }
}

/// A holder in words.
#[must_use]
pub fn holder(holder: &Holder) -> String {
    match holder.pid {
        Some(pid) => format!("{} ({pid})", holder.name),
        None => format!("{} ({:?})", holder.name, holder.kind),
    }
}

/// The NFS server's settings.
#[must_use]
pub fn setup_of(service: &ServiceConfig) -> Setup {
    let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    Setup {
        scope: service.scope().to_owned(),
        lease_s: seconds(service.lease),
        grace_s: seconds(service.grace),
        port: super::network::NFS_PORT,
        control_dir: service.run_dir().join("nfsd"),
        pipefs_dir: service.run_dir().join("rpc_pipefs"),
        pseudo_root: service.pseudo_root(),
    }
}

fn kernel(step: Step) -> impl Fn(nasd_net::NetError) -> StepError {
    move |error| StepError::Refused { step: step.name(), reason: error.to_string() }
}

impl Hands {
    /// Executes one step and tells the timeline.
    ///
    /// # Errors
    /// Why it was not done.
    pub async fn run(&self, step: Step, context: StepContext) -> StepResult {
        let (began, start) = (SystemTime::now(), Instant::now());
        failpoint::hit(&format!("before:{step}"));
        if step == Step::Mount {
            self.turns.wait(&self.service.name, self.service.priority).await;
        }
        let result = self.perform(step, &context).await;
        let took = start.elapsed();
        let detail = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.timeline.step(&self.me.0, step.name(), began, took, detail.clone());
        match &result {
            Ok(_) => tracing::info!(service = self.service.name, step = step.name(), ?took, "done"),
            Err(_) => tracing::warn!(
                service = self.service.name,
                step = step.name(),
                ?took,
                detail,
                "failed"
            ),
        }
        failpoint::hit(&format!("step:{step}"));
        result
    }

    async fn perform(&self, step: Step, context: &StepContext) -> StepResult {
        match step {
            Step::CloseInbound => self.close_inbound().await,
            Step::Drain => self.drain().await,
            Step::CloseOutbound => self.close_outbound().await,
            Step::StopThreads => self.stop_threads().await,
            Step::Sync => self.sync_mounted().await,
            Step::Unmount => self.unmount().await,
            Step::Demote => self.demote().await,
            Step::Promote => self.promote(context).await,
            Step::Mount => self.mount().await,
            Step::Marker => return self.marker(context).await,
            Step::StartThreads => self.start_threads(context).await,
            Step::Probe => self.probe().await,
            Step::OpenGate => self.open_gate(context).await,
            Step::Tickle => self.tickle(),
            Step::TakeReady => self.take_ready().await,
            Step::ForceDisconnect => self.force_disconnect().await,
        }
        .map(|()| None)
    }

    // ---- close -------------------------------------------------------------------------------

    async fn close_inbound(&self) -> Result<(), StepError> {
        lock(&self.keeper).close(Which::Ingress).map_err(kernel(Step::CloseInbound))?;
        self.refresh_connections().await;
        Ok(())
    }

    /// Calls that were executed must be answered, or rename and remove run twice (S5). Where the
    /// kernel tells what is executing (`RPC_STATUS_GET`), the wait ends when nothing is, twice in a
    /// row, and the last replies have had a moment to leave; elsewhere the whole time is given.
    async fn drain(&self) -> Result<(), StepError> {
        let until = Instant::now() + DRAIN;
        let mut quiet = 0;
        while Instant::now() < until && quiet < 2 {
            let left = until.saturating_duration_since(Instant::now());
            let idle = match self.io_call(Op::ServerStatus, left).await {
                Ok(Answer::Status(status)) => status.in_flight == Some(0),
                _ => false,
            };
            quiet = if idle { quiet + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        Ok(())
    }

    async fn close_outbound(&self) -> Result<(), StepError> {
        lock(&self.keeper).close(Which::Both).map_err(kernel(Step::CloseOutbound))?;
        *lock(&self.addressed_at) = None;
        let network = Arc::clone(&self.network);
        blocking(move || network.delete_addresses()).await.ok_or_else(|| StepError::Refused {
            step: Step::CloseOutbound.name(),
            reason: "an address could not be deleted".into(),
        })
    }

    async fn stop_threads(&self) -> Result<(), StepError> {
        let limit = Step::StopThreads.deadline();
        // Refused where no records are loaded: then there is nothing to remove either.
        match self.io_call(Op::IgnoreRemovals { ignore: true }, limit).await {
            Ok(_) | Err(CallError::Refused { .. }) => {}
            Err(error) => return Err(refused("threads-0", &error)),
        }
        let stopped = self.io_call(Op::ServerStop, limit).await;
        stopped.map(drop).map_err(|e| refused("threads-0", &e))
    }

    async fn sync_mounted(&self) -> Result<(), StepError> {
        for fs in &self.service.filesystems {
            let op = Op::SyncFs { target: self.service.mountpoint(fs) };
            match self.io_call(op, Step::Sync.deadline()).await {
                Ok(_) => {}
                Err(e) if matches!(e.refusal(), Some(Refusal::NotMounted { .. })) => {}
                // It writes nothing any more. What was acknowledged is in its journal on the disks; what
                // was not yet, the clients send again to the next server (its write verifier is new).
                Err(error) if lock(&self.keeper).is_spoiled() => {
                    tracing::warn!(%error, "a file system that met an error is not written back");
                }
                Err(e) => return Err(refused("sync", &e)),
            }
        }
        Ok(())
    }

    async fn unmount(&self) -> Result<(), StepError> {
        let limit = Step::Unmount.deadline();
        let deadline_ms = u64::try_from(limit.as_millis()).unwrap_or(1000) - 300;
        for fs in self.service.filesystems.iter().rev() {
            let op = Op::Unmount { target: self.service.mountpoint(fs), deadline_ms };
            self.io_step(op, limit).await.map_err(|e| refused("umount", &e))?;
        }
        lock(&self.keeper).clean();
        Ok(())
    }

    async fn demote(&self) -> Result<(), StepError> {
        let drbd = Arc::clone(&self.drbd);
        on_thread(Step::Demote, move || drbd.demote(Step::Demote.deadline())).await
    }

    // ---- take --------------------------------------------------------------------------------

    /// H3: what can fail without the volume fails here, before anybody else is excluded.
    async fn take_ready(&self) -> Result<(), StepError> {
        take::ready(self).await.map_err(|obstacles| StepError::Refused {
            step: Step::TakeReady.name(),
            reason: obstacles.join("; "),
        })
    }

    async fn force_disconnect(&self) -> Result<(), StepError> {
        let drbd = Arc::clone(&self.drbd);
        let limit = Step::ForceDisconnect.deadline().saturating_sub(Duration::from_millis(200));
        on_thread(Step::ForceDisconnect, move || {
            let cut = drbd.force_disconnect(limit);
            cut.map_err(|e| StepError::ProofGone { reason: e.to_string() })
        })
        .await
    }

    // ---- open --------------------------------------------------------------------------------

    async fn promote(&self, context: &StepContext) -> Result<(), StepError> {
        let evidence = match context.proof {
            None => {
                let reason = "the core gave no proof".to_owned();
                return Err(StepError::ProofGone { reason });
            }
            Some(Proof::AlreadyPrimary) => return Ok(()),
            Some(Proof::Released) => Evidence::Released,
            Some(Proof::SoleCurrent) => Evidence::Record,
            Some(Proof::Frozen) => Evidence::Frozen,
        };
        let drbd = Arc::clone(&self.drbd);
        on_thread(Step::Promote, move || drbd.promote(evidence, Step::Promote.deadline())).await
    }

    async fn mount(&self) -> Result<(), StepError> {
        for fs in &self.service.filesystems {
            let device = self.drbd.device(fs.volume).ok_or_else(|| StepError::Refused {
                step: Step::Mount.name(),
                reason: format!("DRBD has no volume {}", fs.volume),
            })?;
            let op = Op::Mount {
                device,
                fstype: fs.fstype.as_str().to_owned(),
                options: fs.options.clone(),
                target: self.service.mountpoint(fs),
            };
            self.io_step(op, Step::Mount.deadline()).await.map_err(|e| refused("mount", &e))?;
        }
        Ok(())
    }

    async fn start_threads(&self, context: &StepContext) -> Result<(), StepError> {
        let exports =
            self.service.filesystems.iter().map(|fs| export_of(&self.service, fs)).collect();
        let Some(first) = self.service.filesystems.first() else { return Ok(()) };
        let op = Op::ServerStart {
            threads: u32::from(self.service.threads),
            exports,
            records_mount: self.service.mountpoint(first),
            allow_empty_new: context.generation == 0,
            known_clients: self.known_client_addresses(),
        };
        let limit = Step::StartThreads.deadline();
        let answer = self.io_step(op.clone(), limit).await.map_err(|e| refused("threads", &e))?;
        let Answer::Started(mut report) = answer else { return Ok(()) };
        // S7, C7: a grace that runs down behind a shut gate refuses every client's reclaim. How much of
        // it would be left when the gate opens is not known: it begins anew.
        let shut = self.gate_left().is_none();
        if report.adopted && shut && report.recorded_clients > 0 {
            self.io_call(Op::ServerStop, limit).await.map_err(|e| refused("threads", &e))?;
            let again = self.io_call(op, limit).await.map_err(|e| refused("threads", &e))?;
            if let Answer::Started(second) = again {
                report = second;
            }
        }
        let mirrored = lock(&self.mirror).take().map_or(0, |m| m.recorded());
        if !report.adopted && report.recorded_clients < mirrored {
            // The volume wins (S6): it is the one that moved with the data. But it should know them all.
            let recorded = report.recorded_clients;
            tracing::error!(
                mirrored,
                recorded,
                "the volume records fewer clients than the peer told"
            );
        }
        tracing::info!(?report, "NFS server runs");
        Ok(())
    }

    async fn probe(&self) -> Result<(), StepError> {
        let limit = Step::Probe.deadline();
        let deadline_ms = u64::try_from(limit.as_millis()).unwrap_or(1000) - 500;
        for fs in &self.service.filesystems {
            let export = fs.export.trim_start_matches('/').to_owned();
            let op = Op::Probe { export, deadline_ms };
            self.io_step(op, limit).await.map_err(|e| refused("probe", &e))?;
        }
        Ok(())
    }

    /// The last step before clients come: only with a right of this epoch, counted from its request.
    async fn open_gate(&self, context: &StepContext) -> Result<(), StepError> {
        let limit = Step::OpenGate.deadline().saturating_sub(Duration::from_millis(500));
        let Some(right) = right::wait_for(&self.granted, context.epoch, limit).await else {
            let reason =
                "neither the peer nor the coordinator granted the right to serve".to_owned();
            return Err(StepError::Refused { step: Step::OpenGate.name(), reason });
        };
        let ticket = lock(&self.keeper).ticket();
        if self.gate_left().is_none() {
            let limit = Step::OpenGate.deadline() / 4;
            self.io_step(Op::LetIn, limit).await.map_err(|e| refused("open-gate", &e))?;
        }
        let (network, lifetime) = (Arc::clone(&self.network), self.right.valid_lft);
        let keeper = Arc::clone(&self.keeper);
        on_thread(Step::OpenGate, move || {
            let opened =
                network.add_addresses(lifetime).and_then(|()| lock(&keeper).open(right, ticket));
            let opened = opened
                .and_then(|open| if open { network.announce().map(|()| true) } else { Ok(false) });
            match opened {
                Ok(true) => Ok(()),
                other => {
                    // Half an opening is none.
                    let shut = lock(&keeper).close(Which::Both);
                    let cleared = network.delete_addresses();
                    let reason = match other {
                        Err(error) => error.to_string(),
                        Ok(_) => "the service was closed meanwhile".to_owned(),
                    };
                    tracing::warn!(?shut, ?cleared, reason, "not opened");
                    Err(StepError::Refused { step: Step::OpenGate.name(), reason })
                }
            }
        })
        .await?;
        *lock(&self.addressed_at) = Some(Instant::now());
        self.believe_removals_later(context.epoch);
        Ok(())
    }

    /// S6: for one lease after opening a removal may mean only that a client could not come in time.
    fn believe_removals_later(&self, epoch: u64) {
        let (io, keeper) = (Arc::clone(&self.io), Arc::clone(&self.keeper));
        let lease = self.service.lease;
        tokio::spawn(async move {
            tokio::time::sleep(lease).await;
            if !lock(&keeper).is_open_since(epoch) {
                return;
            }
            let client = io.lock().await.clone();
            if let Some(client) = client {
                let op = Op::IgnoreRemovals { ignore: false };
                if let Err(error) = client.call(op, Duration::from_secs(2)).await {
                    tracing::warn!(%error, "removals of client records stay ignored");
                }
            }
        });
    }

    /// The first tickle now, the rest in the background: nobody waits for them.
    fn tickle(&self) -> Result<(), StepError> {
        let clients = lock(&self.clients).clone();
        let network = Arc::clone(&self.network);
        std::thread::spawn(move || {
            let start = Instant::now();
            network.tickle(&clients, false);
            let mut plan: Vec<(u64, bool)> = TICKLES_MS.iter().map(|ms| (*ms, true)).collect();
            plan.extend(ANNOUNCEMENTS_MS.iter().map(|ms| (*ms, false)));
            plan.sort_unstable();
            for (ms, tickle) in plan {
                let due = Duration::from_millis(ms);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
                if tickle {
                    let missing = network.not_connected(&clients);
                    network.tickle(&missing, true);
                } else if let Err(error) = network.announce() {
                    tracing::warn!(%error, "the announcement could not be repeated");
                }
            }
        });
        Ok(())
    }
}

async fn on_thread<T: Send + 'static>(
    step: Step,
    task: impl FnOnce() -> Result<T, StepError> + Send + 'static,
) -> Result<T, StepError> {
    match tokio::task::spawn_blocking(task).await {
        Ok(result) => result,
        Err(error) => Err(StepError::Refused { step: step.name(), reason: error.to_string() }),
    }
}

fn export_of(service: &ServiceConfig, fs: &FilesystemConfig) -> Export {
    Export {
        path: service.mountpoint(fs),
        uuid: super::network::uuid_of(fs.fsid),
        clients: fs.clients.iter().flat_map(super::network::cidrs_of).collect(),
        read_only: !fs.rw,
        asynchronous: false,
        root_squash: !fs.no_root_squash,
        all_squash: false,
        insecure_ports: false,
        anon_uid: fs.anonuid.unwrap_or(65534),
        anon_gid: fs.anongid.unwrap_or(65534),
    }
}
