//! Follows DRBD: one thread reads the kernel's events, another looks at everything now and then.
//!
//! Keeps S10 (threads of their own: a look can wait for a lock that other commands hold) and S12 (a
//! stream that broke shows nothing). The looks are for what no event tells: 8.4 begins a new data
//! generation with the first write after the peer is lost, and says so to nobody; and the addresses
//! of a connection, which it forgets with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nasd_drbd::{Drbd, Events, ResourceStatus};

use super::drbd::{Resource, view};
use super::task::{Command, Handle};
use crate::core::machine::Event;
use crate::core::view::DrbdView;

/// How often the stream's thread looks up.
const BEAT: Duration = Duration::from_millis(500);
/// Between two looks at everything.
const LOOK: Duration = Duration::from_secs(2);

/// A resource that is followed: where its state goes.
pub struct Follower {
    /// The resource.
    pub resource: Arc<Resource>,
    /// The service's task.
    pub handle: Handle,
}

/// The last look at a resource, and when it was begun.
#[derive(Default)]
struct Looked(Mutex<Vec<Option<(Instant, ResourceStatus)>>>);

impl Looked {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<(Instant, ResourceStatus)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was told last of one resource.
#[derive(Default)]
struct Told {
    status: Option<ResourceStatus>,
    changed: Option<Instant>,
    view: Option<DrbdView>,
}

/// Follows the kernel for ever, on threads of their own.
///
/// # Errors
/// When a thread cannot be started.
pub fn follow(followers: Vec<Follower>) -> std::io::Result<()> {
    let looked = Arc::new(Looked::default());
    let resources: Vec<_> = followers.iter().map(|f| Arc::clone(&f.resource)).collect();
    let looks = Arc::clone(&looked);
    let looker = std::thread::Builder::new().name("drbd-look".into());
    looker.spawn(move || look_forever(&resources, &looks))?;
    let builder = std::thread::Builder::new().name("drbd-events".into());
    builder.spawn(move || follow_forever(&followers, &looked)).map(drop)
}

fn look_forever(resources: &[Arc<Resource>], looked: &Looked) {
    loop {
        // Keeps the answer fresh for those who cannot wait for a process.
        for resource in resources {
            let found = resource.handler_violations();
            if !found.is_empty() {
                tracing::debug!(resource = resource.name, ?found, "the fence handler");
            }
        }
        let began = Instant::now();
        if let Ok(all) = Drbd::open().map_err(drop).and_then(|mut d| d.status().map_err(drop)) {
            let found = resources.iter().map(|resource| {
                let status = all.get(&resource.name)?;
                resource.specs.remember(status);
                Some((began, status.clone()))
            });
            let found = found.collect();
            *looked.lock() = found;
        }
        std::thread::sleep(LOOK);
    }
}

fn follow_forever(followers: &[Follower], looked: &Looked) {
    let mut told: Vec<Told> = followers.iter().map(|_| Told::default()).collect();
    loop {
        match Drbd::open().and_then(|drbd| drbd.events()) {
            Ok(mut events) => follow_stream(&mut events, followers, &mut told, looked),
            Err(error) => tracing::error!(%error, "DRBD's events cannot be read"),
        }
        tell(followers, &mut told, looked, |_| None);
        std::thread::sleep(BEAT);
    }
}

fn follow_stream(events: &mut Events, followers: &[Follower], told: &mut [Told], looked: &Looked) {
    loop {
        if let Err(error) = events.next(BEAT) {
            tracing::warn!(%error, "DRBD's event stream broke; it is opened anew");
            return;
        }
        let Some(model) = events.model() else { continue };
        tell(followers, told, looked, |name| model.resource(name).cloned());
    }
}

fn tell(
    followers: &[Follower],
    told: &mut [Told],
    looked: &Looked,
    status: impl Fn(&str) -> Option<ResourceStatus>,
) {
    for (at, (follower, told)) in followers.iter().zip(told).enumerate() {
        let name = &follower.resource.name;
        let mut status = status(name);
        if told.status != status || told.changed.is_none() {
            told.status.clone_from(&status);
            told.changed = Some(Instant::now());
        }
        let look = looked.lock().get(at).cloned().flatten();
        if let (Some(status), Some((began, seen))) = (&mut status, look)
            && told.changed.is_none_or(|changed| began > changed)
        {
            take_numbers(status, &seen);
        }
        let view = status.as_ref().map(view).unwrap_or_default();
        follower.resource.show(status);
        if told.view.as_ref() != Some(&view) {
            tracing::debug!(resource = name, ?view, "DRBD changed");
            // A full inbox must not hold up the other services: what it did not take is sent with the
            // next look.
            let sent = follower.handle.try_send(Command::Event(Event::Drbd(view.clone())));
            told.view = sent.is_ok().then_some(view);
        }
    }
}

/// Takes what the stream does not tell of, the generations and a resynchronisation's progress, from a look that is
/// newer than the last event.
fn take_numbers(status: &mut ResourceStatus, seen: &ResourceStatus) {
    for (volume, device) in &mut status.devices {
        let Some(found) = seen.devices.get(volume).filter(|d| d.current_uuid.is_some()) else {
            continue;
        };
        device.current_uuid = found.current_uuid;
        device.primary_mark = found.primary_mark;
        device.history_uuids.clone_from(&found.history_uuids);
    }
    for connection in &mut status.connections {
        let Some(found) = seen.connection(connection.key) else { continue };
        for (volume, peer) in &mut connection.peer_devices {
            let Some(found) = found.peer_devices.get(volume) else { continue };
            peer.bitmap_uuid = found.bitmap_uuid.or(peer.bitmap_uuid);
            peer.out_of_sync_bytes = found.out_of_sync_bytes.or(peer.out_of_sync_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use nasd_drbd::{ConnState, DiskState, Role};

    use super::*;
    use crate::drive::connection::tests::status;

    #[test]
    fn generations_and_progress_come_from_the_look_and_states_from_the_stream() {
        let up = DiskState::UpToDate;
        let mut stream = status(Role::Primary, Some(ConnState::Connecting), DiskState::Failed);
        let mut look = status(Role::Primary, Some(ConnState::Connected), up);
        let device = look.devices.get_mut(&0).unwrap();
        device.current_uuid = Some(0x90);
        device.history_uuids = vec![0x40];
        device.primary_mark = true;
        let peer = look.connections[0].peer_devices.get_mut(&0).unwrap();
        peer.bitmap_uuid = Some(0x40);
        peer.out_of_sync_bytes = Some(4096);
        take_numbers(&mut stream, &look);
        let device = &stream.devices[&0];
        assert_eq!((device.current_uuid, device.primary_mark), (Some(0x90), true));
        assert_eq!(device.history_uuids, [0x40]);
        let peer = &stream.connections[0].peer_devices[&0];
        assert_eq!((peer.bitmap_uuid, peer.out_of_sync_bytes), (Some(0x40), Some(4096)));
        assert_eq!(device.disk, DiskState::Failed);
        assert_eq!(stream.connections[0].state, ConnState::Connecting);
    }

    #[test]
    fn a_look_without_a_disk_takes_no_generation_away() {
        let mut stream = status(Role::Secondary, Some(ConnState::Connected), DiskState::UpToDate);
        let mut look = stream.clone();
        look.devices.get_mut(&0).unwrap().current_uuid = None;
        look.connections.clear();
        let before = stream.clone();
        take_numbers(&mut stream, &look);
        assert_eq!(stream, before);
    }
}
