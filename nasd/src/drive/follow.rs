//! Follows DRBD: one thread reads the kernel's events, another looks at everything now and then.
//!
//! Keeps S10 (threads of their own: a look can wait for a lock that other commands hold) and S12 (a
//! stream that broke shows nothing). The looks are for what no event tells: 8.4 begins a new data
//! generation with the first write after the peer is lost, and says so to nobody; and the addresses
//! of a connection, which it forgets with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nasd_drbd::{Device, Drbd, Events, PeerDevice, ResourceStatus};

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
    generations: Generations,
    renewed: Option<Instant>,
    view: Option<DrbdView>,
}

impl Told {
    /// What the stream tells now, with the look's numbers where the stream has not told younger ones. Most of
    /// the stream's events repeat old generations, so that only a change of them makes a look old: a node that
    /// has just cut its own link must not think that it lost its last generation.
    fn merge(
        &mut self,
        now: Instant,
        mut status: Option<ResourceStatus>,
        look: Option<(Instant, ResourceStatus)>,
    ) -> Option<ResourceStatus> {
        if self.status != status || self.changed.is_none() {
            self.status.clone_from(&status);
            self.changed = Some(now);
        }
        let generations = status.as_ref().map(generations).unwrap_or_default();
        if self.generations != generations || self.renewed.is_none() {
            (self.generations, self.renewed) = (generations, Some(now));
        }
        let Some(new) = &mut status else { return None };
        forget_progress(new);
        if let Some((began, seen)) = look {
            let younger = |told: Option<Instant>| told.is_none_or(|told| began > told);
            if younger(self.renewed) {
                take_generations(new, &seen);
            }
            if younger(self.changed) {
                take_progress(new, &seen);
            }
        }
        status
    }
}

/// Current and former generations of each volume.
type Generations = BTreeMap<u16, (Option<u64>, bool, Vec<u64>)>;

fn generations(status: &ResourceStatus) -> Generations {
    let of = |d: &Device| (d.current_uuid, d.primary_mark, d.history_uuids.clone());
    status.devices.iter().map(|(volume, device)| (*volume, of(device))).collect()
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
        let look = looked.lock().get(at).cloned().flatten();
        let status = told.merge(Instant::now(), status(name), look);
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

/// Takes the generations, which the stream does not tell of, from a look that is younger than those it told last.
fn take_generations(status: &mut ResourceStatus, seen: &ResourceStatus) {
    for (volume, device) in &mut status.devices {
        let Some(found) = seen.devices.get(volume).filter(|d| d.current_uuid.is_some()) else {
            continue;
        };
        device.current_uuid = found.current_uuid;
        device.primary_mark = found.primary_mark;
        device.history_uuids.clone_from(&found.history_uuids);
    }
    each_peer(status, seen, |peer, found| {
        peer.bitmap_uuid = found.bitmap_uuid.or(peer.bitmap_uuid)
    });
}

/// The stream's number is that of its own beginning (8.4), or of some moment since.
fn forget_progress(status: &mut ResourceStatus) {
    for peer in status.connections.iter_mut().flat_map(|c| c.peer_devices.values_mut()) {
        peer.out_of_sync_bytes = None;
    }
}

/// Takes a resynchronisation's progress from a look that is younger than the last event.
fn take_progress(status: &mut ResourceStatus, seen: &ResourceStatus) {
    each_peer(status, seen, |peer, found| peer.out_of_sync_bytes = found.out_of_sync_bytes);
}

fn each_peer(
    status: &mut ResourceStatus,
    seen: &ResourceStatus,
    take: impl Fn(&mut PeerDevice, &PeerDevice),
) {
    for connection in &mut status.connections {
        let Some(found) = seen.connection(connection.key) else { continue };
        for (volume, peer) in &mut connection.peer_devices {
            if let Some(found) = found.peer_devices.get(volume) {
                take(peer, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nasd_drbd::{ConnState, DiskState, Role};

    use super::*;
    use crate::drive::connection::tests::status;

    fn at(seconds: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    fn generation(mut status: ResourceStatus, current: u64, past: u64) -> ResourceStatus {
        let device = status.devices.get_mut(&0).unwrap();
        device.current_uuid = Some(current);
        device.history_uuids = vec![past];
        device.primary_mark = true;
        status
    }

    fn peer(status: &mut ResourceStatus) -> &mut PeerDevice {
        status.connections[0].peer_devices.get_mut(&0).unwrap()
    }

    #[test]
    fn generations_and_progress_come_from_the_look_and_states_from_the_stream() {
        let up = DiskState::UpToDate;
        let stream = status(Role::Primary, Some(ConnState::Connecting), DiskState::Failed);
        let look = status(Role::Primary, Some(ConnState::Connected), up);
        let mut look = generation(look, 0x90, 0x40);
        peer(&mut look).bitmap_uuid = Some(0x40);
        peer(&mut look).out_of_sync_bytes = Some(4096);
        let mut told = Told::default();
        told.merge(at(1), Some(stream.clone()), None);
        let mut merged = told.merge(at(3), Some(stream), Some((at(2), look))).unwrap();
        let device = &merged.devices[&0];
        assert_eq!((device.current_uuid, device.primary_mark), (Some(0x90), true));
        assert_eq!((&device.history_uuids[..], device.disk), (&[0x40][..], DiskState::Failed));
        assert_eq!(merged.connections[0].state, ConnState::Connecting);
        let peer = peer(&mut merged);
        assert_eq!((peer.bitmap_uuid, peer.out_of_sync_bytes), (Some(0x40), Some(4096)));
    }

    #[test]
    fn s2_an_event_that_repeats_an_old_generation_does_not_bring_it_back() {
        let up = DiskState::UpToDate;
        let of = |state| status(Role::Secondary, Some(state), up);
        let stream = generation(of(ConnState::Connected), 0x50, 0x40);
        let mut look = generation(stream.clone(), 0x90, 0x50);
        peer(&mut look).out_of_sync_bytes = Some(4096);
        let mut told = Told::default();
        told.merge(at(1), Some(stream), None);
        let current = |s: Option<ResourceStatus>| s.unwrap().devices[&0].current_uuid;
        // The link is cut: the event is younger than the look, its generation is not.
        let cut = generation(of(ConnState::StandAlone), 0x50, 0x40);
        let mut merged = told.merge(at(3), Some(cut.clone()), Some((at(2), look.clone())));
        assert_eq!(current(merged.clone()), Some(0x90));
        let progress = peer(merged.as_mut().unwrap()).out_of_sync_bytes;
        assert_eq!(progress, None, "progress of a connection that is gone");
        // A generation that the stream does tell is younger than that look.
        let told_anew = generation(cut, 0xa0, 0x90);
        let look = Some((at(2), look));
        assert_eq!(current(told.merge(at(4), Some(told_anew), look)), Some(0xa0));
    }

    #[test]
    fn a_look_without_a_disk_takes_no_generation_away() {
        let stream = status(Role::Secondary, Some(ConnState::Connected), DiskState::UpToDate);
        let mut look = stream.clone();
        look.devices.get_mut(&0).unwrap().current_uuid = None;
        look.connections.clear();
        let mut told = Told::default();
        told.merge(at(1), Some(stream.clone()), None);
        let merged = told.merge(at(3), Some(stream.clone()), Some((at(2), look)));
        let mut stream = stream;
        peer(&mut stream).out_of_sync_bytes = None;
        assert_eq!(merged, Some(stream));
    }
}
