//! Executing a command: which requests, in which order, and what to put back when one is refused.
//!
//! Synchronous, over any transport; runs on the queue's thread. On 8.4 a role belongs to a volume, so
//! a resource changes role volume by volume, and what was changed is put back when a later volume
//! refuses. That keeps S1: while one volume is still Primary the peer sees the resource as Primary
//! and cannot hold the proof `Released`, and promotion again (without force) only restores it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::abi::Abi;
use crate::client::{StatusError, read_one};
use crate::commands::{Command, CommandError, ConnectSpec, Force, Outcome, TransportError};
use crate::enums::{DiskState, TimeoutType};
use crate::retcode::{Refusal, ReturnCode};
use crate::socket::{Answer, Transport};
use crate::status::{ConnKey, ResourceStatus};
use crate::wire::DecodeError;
use crate::wire::attr::Attrs;
use crate::wire::request::{Request, Requests, Target};

/// Pause before a refused demotion is tried again: udev closes a device within a millisecond or two.
const RETRY_PAUSE: Duration = Duration::from_millis(2);
/// How long a promotion is repeated while another change of state runs (-18, -19).
const PROMOTE_PATIENCE: Duration = Duration::from_secs(1);

/// One command at work.
pub(crate) struct Run<'a> {
    pub transport: &'a mut dyn Transport,
    pub resource: &'a str,
    /// The caller has given up: nothing new is begun.
    pub abandoned: &'a AtomicBool,
}

/// What is asked of all volumes.
#[derive(Clone, Copy)]
struct RoleChange {
    command: &'static str,
    primary: bool,
    force: bool,
    patience: Duration,
}

impl Run<'_> {
    pub(crate) fn command(&mut self, command: &Command) -> Result<Outcome, CommandError> {
        let name = command.name();
        if self.is_abandoned() {
            return Err(CommandError::Abandoned { command: name, volume: None });
        }
        match command {
            Command::Primary(force) => self.primary(name, force),
            Command::Secondary { patience } => {
                let change =
                    RoleChange { command: name, primary: false, force: false, patience: *patience };
                self.role(change)
            }
            Command::Connect(spec) => self.connect(name, spec),
            Command::Disconnect { key, forced } => self.disconnect(name, *key, *forced),
            Command::Attach(volume, spec) => {
                self.on_volume(name, *volume, |requests, target| requests.attach(target, spec))
            }
            Command::Detach(volume) => self.on_volume(name, *volume, Requests::detach),
            Command::NewCurrentUuid(volume) => {
                self.on_volume(name, *volume, Requests::new_current_uuid)
            }
            Command::Outdate => self.outdate(name),
            Command::TimeoutType(volume, key) => self.timeout_type(name, *volume, *key),
        }
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn requests(&self) -> Requests {
        Requests { abi: self.transport.abi() }
    }

    fn status(&mut self, command: &'static str) -> Result<ResourceStatus, CommandError> {
        read_one(self.transport, self.resource).map_err(|error| match error {
            StatusError::NoSuchResource(name) => CommandError::NoSuchResource(name),
            StatusError::Transport(cause) => CommandError::Transport { command, cause },
            // The status came before the command: nothing has been done.
            StatusError::Refused(_) | StatusError::Incomplete => {
                CommandError::Transport { command, cause: TransportError::Rejected(nix::libc::EIO) }
            }
        })
    }

    /// Sends one request and judges its answer.
    fn send(
        &mut self,
        command: &'static str,
        volume: Option<u16>,
        request: &Request,
    ) -> Result<(Outcome, Answer), CommandError> {
        let answer = self
            .transport
            .request(request)
            .map_err(|cause| CommandError::Transport { command, cause })?;
        let abi = self.transport.abi();
        let info = info_texts(abi, &answer);
        let code = ReturnCode(answer.code);
        if code.is_success() {
            let nothing_to_do = code.is_nothing_to_do();
            return Ok((Outcome { nothing_to_do, info, timeout_type: None }, answer));
        }
        let reason = Refusal::from_code(abi, code, &info);
        Err(CommandError::Refused { command, volume, reason, code, info })
    }

    fn primary(&mut self, command: &'static str, force: &Force) -> Result<Outcome, CommandError> {
        let force = match force {
            Force::No => false,
            Force::OperatorConfirmed(given) if given.resource() == self.resource => true,
            Force::OperatorConfirmed(given) => {
                return Err(CommandError::ConfirmedForAnother(given.resource().to_owned()));
            }
        };
        self.role(RoleChange { command, primary: true, force, patience: PROMOTE_PATIENCE })
    }

    fn role(&mut self, change: RoleChange) -> Result<Outcome, CommandError> {
        if self.transport.abi() == Abi::V84 {
            return self.role_by_volume(change);
        }
        let request = self.requests().role_of_resource(change.primary, change.force, self.resource);
        self.patiently(change, None, &request)
    }

    /// 8.4: volume by volume, in order; all or none.
    fn role_by_volume(&mut self, change: RoleChange) -> Result<Outcome, CommandError> {
        let volumes = self.volumes(change.command)?;
        let mut whole = Outcome { nothing_to_do: true, ..Outcome::default() };
        let mut changed = Vec::new();
        for (volume, minor) in volumes {
            let target = Target { resource: self.resource, volume, minor };
            let request = self.requests().role_of_volume(change.primary, change.force, target);
            // S8: a promotion that nobody waits for any more does not go on. A demotion does: it
            // takes nothing from the peer.
            let result = if change.primary && self.is_abandoned() {
                Err(CommandError::Abandoned { command: change.command, volume: Some(volume) })
            } else {
                self.patiently(change, Some(volume), &request)
            };
            match result {
                Ok(outcome) => {
                    if !outcome.nothing_to_do {
                        changed.push((volume, minor));
                    }
                    whole.nothing_to_do &= outcome.nothing_to_do;
                    whole.info.extend(outcome.info);
                }
                Err(cause) => return Err(self.undo(change, volume, cause, &changed)),
            }
        }
        Ok(whole)
    }

    /// Puts back the volumes that were changed, the last one first, never with force.
    fn undo(
        &mut self,
        change: RoleChange,
        volume: u16,
        cause: CommandError,
        changed: &[(u16, u32)],
    ) -> CommandError {
        let mut not_undone = Vec::new();
        for (earlier, minor) in changed.iter().rev() {
            let target = Target { resource: self.resource, volume: *earlier, minor: *minor };
            let request = self.requests().role_of_volume(!change.primary, false, target);
            if self.send(change.command, Some(*earlier), &request).is_err() {
                not_undone.push(*earlier);
            }
        }
        if not_undone.is_empty() {
            return cause;
        }
        not_undone.reverse();
        let command = change.command;
        CommandError::Mixed { command, volume, cause: Box::new(cause), not_undone }
    }

    /// Repeats what is refused for a passing reason, until the patience is over or the caller gone.
    fn patiently(
        &mut self,
        change: RoleChange,
        volume: Option<u16>,
        request: &Request,
    ) -> Result<Outcome, CommandError> {
        let until = Instant::now() + change.patience;
        loop {
            let error = match self.send(change.command, volume, request) {
                Ok((outcome, _)) => return Ok(outcome),
                Err(error) => error,
            };
            let passing = match error.refusal() {
                Some(Refusal::InUse { .. }) => !change.primary,
                Some(reason) => reason.is_transient(),
                None => false,
            };
            let gone = self.is_abandoned();
            if !passing || gone || Instant::now() >= until {
                return Err(error);
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    fn volumes(&mut self, command: &'static str) -> Result<Vec<(u16, u32)>, CommandError> {
        let status = self.status(command)?;
        let volumes: Vec<_> =
            status.devices.iter().map(|(volume, device)| (*volume, device.minor)).collect();
        if volumes.is_empty() { Err(CommandError::NoVolumes) } else { Ok(volumes) }
    }

    fn on_volume(
        &mut self,
        command: &'static str,
        volume: u16,
        build: impl FnOnce(Requests, Target<'_>) -> Request,
    ) -> Result<Outcome, CommandError> {
        let minor = self.minor(command, volume)?;
        let target = Target { resource: self.resource, volume, minor };
        let request = build(self.requests(), target);
        Ok(self.send(command, Some(volume), &request)?.0)
    }

    fn minor(&mut self, command: &'static str, volume: u16) -> Result<u32, CommandError> {
        let status = self.status(command)?;
        let device = status.devices.get(&volume).ok_or(CommandError::NoSuchVolume(volume))?;
        Ok(device.minor)
    }

    /// All volumes in order; stops at the first that refuses, without undoing: an outdated disk can
    /// only be made UpToDate by its peer, and that is what outdating is for.
    fn outdate(&mut self, command: &'static str) -> Result<Outcome, CommandError> {
        let mut whole = Outcome { nothing_to_do: true, ..Outcome::default() };
        for (volume, minor) in self.volumes(command)? {
            let target = Target { resource: self.resource, volume, minor };
            let request = self.requests().outdate(target);
            let (outcome, _) = self.send(command, Some(volume), &request)?;
            whole.nothing_to_do &= outcome.nothing_to_do;
            whole.info.extend(outcome.info);
        }
        self.verify_outdated(command)?;
        Ok(whole)
    }

    /// S12: the kernel's word is not enough, 8.4 answers "nothing to do" while connected.
    fn verify_outdated(&mut self, command: &'static str) -> Result<(), CommandError> {
        let status = self.status(command)?;
        let usable = |disk| {
            use DiskState::{Diskless, Failed, Inconsistent, Outdated};
            !matches!(disk, Outdated | Inconsistent | Diskless | Failed)
        };
        match status.devices.iter().find(|(_, device)| usable(device.disk)) {
            Some((volume, device)) => {
                Err(CommandError::NoEffect { command, volume: *volume, disk: device.disk })
            }
            None => Ok(()),
        }
    }

    fn connect(
        &mut self,
        command: &'static str,
        spec: &ConnectSpec,
    ) -> Result<Outcome, CommandError> {
        let matching = match spec {
            ConnectSpec::V84 { .. } => self.transport.abi() == Abi::V84,
            ConnectSpec::V9 { .. } => self.transport.abi() == Abi::V9,
        };
        let request = matching.then(|| self.requests().connect(self.resource, spec)).flatten();
        let request = request.ok_or(CommandError::WrongAbi)?;
        Ok(self.send(command, None, &request)?.0)
    }

    fn disconnect(
        &mut self,
        command: &'static str,
        key: ConnKey,
        force: bool,
    ) -> Result<Outcome, CommandError> {
        let nothing = Outcome { nothing_to_do: true, ..Outcome::default() };
        let status = self.status(command)?;
        let connection = status.connection(key);
        let ends =
            connection.and_then(|found| Some((found.my_addr.as_ref()?, found.peer_addr.as_ref()?)));
        let request = match self.requests().disconnect(self.resource, key, ends, force) {
            Some(request) => request,
            None if status.abi == Abi::V84 && status.is_stand_alone() => return Ok(nothing),
            None => return Err(CommandError::NoSuchConnection(key)),
        };
        match self.send(command, None, &request) {
            Err(error) if error.refusal() == Some(&Refusal::AlreadyStandAlone) => Ok(nothing),
            other => Ok(other?.0),
        }
    }

    fn timeout_type(
        &mut self,
        command: &'static str,
        volume: u16,
        key: ConnKey,
    ) -> Result<Outcome, CommandError> {
        let minor = self.minor(command, volume)?;
        let target = Target { resource: self.resource, volume, minor };
        let request = self.requests().timeout_type(target, key).ok_or(CommandError::WrongAbi)?;
        let (outcome, answer) = self.send(command, Some(volume), &request)?;
        let kind = timeout_type(self.transport.abi(), &answer).ok_or(CommandError::Transport {
            command,
            cause: DecodeError::Missing("timeout_type").into(),
        })?;
        Ok(Outcome { timeout_type: Some(kind), ..outcome })
    }
}

/// The kernel's remarks: every `info_text`, whether in one nest or in several.
fn info_texts(abi: Abi, answer: &Answer) -> Vec<String> {
    let t = abi.table();
    let attrs = Attrs::parse(&answer.attrs).unwrap_or_default();
    attrs
        .iter()
        .filter(|attr| attr.kind == t.tag_reply)
        .flat_map(|nest| {
            let inner = Attrs::parse(nest.data).unwrap_or_default();
            let texts: Vec<_> = inner
                .iter()
                .filter(|attr| attr.kind == t.reply_text)
                .map(|attr| attr.text())
                .collect();
            texts
        })
        .collect()
}

fn timeout_type(abi: Abi, answer: &Answer) -> Option<TimeoutType> {
    let t = abi.table();
    let attrs = Attrs::parse(&answer.attrs).ok()?;
    let number = attrs.nest(t.tag_timeout).ok()??.get(t.timeout_type)?.u32()?;
    Some(TimeoutType::from_wire(number))
}

#[cfg(test)]
#[path = "execute_tests.rs"]
mod tests;
