//! Which guests run here, on which mount their disks are, and what they do.
//!
//! Pure: answers of libvirt and of `/proc` come in with their time. What libvirt told last is kept
//! when it hangs, and told as old. A guest whose disks are not known counts for every mount, as does
//! a job that could not be asked for (S12). Paths are compared by their letters: nothing is looked up
//! on a mount (S10); the names of the files that QEMU really has open catch symbolic links.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use zbus::OwnedObjectPath;

use super::proc::Qemu;
use crate::core::Now;
use crate::libvirt::domain::{Disk, Domain, Source};
use crate::libvirt::events::{Change, Event};
use crate::libvirt::job::{Job, Operation};
use crate::libvirt::state::DomainState;

/// Everything is asked anew so often.
pub const RESYNC: Duration = Duration::from_secs(30);
/// What is older than that is told as old: a round may last a few seconds.
const OLD: Duration = Duration::from_secs(40);
/// A look at `/proc` that is older says nothing of now.
const FRESH: Duration = Duration::from_secs(5);

/// What libvirt tells of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its definition.
    pub domain: Domain,
    /// Its state.
    pub state: DomainState,
    /// Its job; `Err`: not told, in words.
    pub job: Result<Option<Job>, String>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its object on the bus.
    pub path: OwnedObjectPath,
    /// What libvirt told last; `None`: nothing yet.
    pub told: Option<Told>,
    /// When.
    pub at: Now,
}

impl Guest {
    /// Its name, as far as it is known.
    #[must_use]
    pub fn name(&self) -> &str {
        self.told.as_ref().map_or(self.path.as_str(), |told| &told.domain.name)
    }

    /// Whether a migration of it runs, or something that may be one.
    #[must_use]
    pub fn is_migrating(&self) -> bool {
        let Some(told) = &self.told else { return false };
        let moves = |job: &Job| {
            matches!(
                job.operation,
                Operation::MigrationIn | Operation::MigrationOut | Operation::Unknown
            )
        };
        let job = told.job.as_ref().is_ok_and(|job| job.as_ref().is_some_and(moves));
        job || told.state.is_switching_over()
    }
}

/// What to ask libvirt after an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// Of one guest.
    One(OwnedObjectPath),
    /// Of all.
    All,
}

/// What an event calls for.
#[must_use]
pub fn wanted(event: &Event) -> Ask {
    match event {
        Event::Lifecycle { change: Change::Other(_), .. }
        | Event::BlockJob { .. }
        | Event::Pool { .. } => Ask::Nothing,
        Event::Lifecycle { domain, .. }
        | Event::IoError { domain, .. }
        | Event::JobCompleted { domain } => Ask::One(domain.clone()),
        Event::Resync(_) => Ask::All,
    }
}

/// All guests of this host.
#[derive(Debug, Default)]
pub struct Inventory {
    guests: BTreeMap<String, Guest>,
    /// Directories of pools, by their names.
    pools: BTreeMap<String, String>,
    mounts: Vec<PathBuf>,
    listed: Option<Now>,
    /// Since when the list is not asked for on purpose.
    quiet: Option<Now>,
    trouble: Option<String>,
    processes: Option<(Now, Vec<Qemu>)>,
}

impl Inventory {
    /// All NFS mounts of this host, by their mount points.
    pub fn mounts(&mut self, points: Vec<PathBuf>) {
        self.mounts = points;
    }

    /// The processes that were seen.
    pub fn processes(&mut self, now: Now, seen: Vec<Qemu>) {
        self.processes = Some((now, seen));
    }

    /// The processes seen last.
    #[must_use]
    pub fn seen(&self) -> &[Qemu] {
        self.processes.as_ref().map_or(&[], |(_, seen)| seen)
    }

    /// Whether `/proc` was looked at just now.
    #[must_use]
    pub fn sees_processes(&self, now: Now) -> bool {
        self.processes.as_ref().is_some_and(|(at, _)| now.saturating_sub(*at) <= FRESH)
    }

    /// The directories of pools.
    pub fn pools(&mut self, directories: BTreeMap<String, String>) {
        self.pools = directories;
    }

    /// Whether a guest names a pool whose directory is not known.
    #[must_use]
    pub fn needs_pools(&self) -> bool {
        let told = self.guests.values().filter_map(|guest| guest.told.as_ref());
        let mut sources = told.flat_map(|told| &told.domain.disks).flat_map(sources);
        sources.any(|source| match source {
            Source::Volume { pool, .. } => !self.pools.contains_key(pool),
            _ => false,
        })
    }

    /// libvirt's list: others are gone.
    pub fn listed(&mut self, now: Now, paths: &[OwnedObjectPath]) {
        self.guests.retain(|_, guest| paths.contains(&guest.path));
        for path in paths {
            let fresh = || Guest { path: path.clone(), told: None, at: now };
            self.guests.entry(path.as_str().to_owned()).or_insert_with(fresh);
        }
        self.listed = Some(now);
        self.trouble = None;
    }

    /// What libvirt tells of a guest. One that is off is gone.
    pub fn told(&mut self, now: Now, path: OwnedObjectPath, told: Told) {
        if matches!(told.state, DomainState::Off) {
            self.guests.remove(path.as_str());
            return;
        }
        let guest = Guest { path, told: Some(told), at: now };
        self.guests.insert(guest.path.as_str().to_owned(), guest);
    }

    /// libvirt did not answer, or not well.
    pub fn failed(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Whether libvirt's list is recent and names that guest not: it is gone from here.
    #[must_use]
    pub fn is_gone(&self, now: Now, path: &str) -> bool {
        self.trouble.is_none() && self.doubt(now).is_none() && !self.guests.contains_key(path)
    }

    /// A guest.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Guest> {
        self.guests.get(path)
    }

    /// All guests that libvirt has named.
    pub fn all(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
    }

    /// Why what is known of libvirt may not be true any more; `None`: it is recent.
    #[must_use]
    pub fn doubt(&self, now: Now) -> Option<String> {
        let now = self.quiet.map_or(now, |since| now.min(since));
        let old = |at: Now| now.saturating_sub(at);
        let trouble = self.trouble.as_deref();
        match self.listed {
            None => Some(format!("libvirt has told nothing yet{}", because(trouble))),
            Some(at) if trouble.is_some() || old(at) > OLD => {
                let seconds = old(at).as_secs();
                Some(format!(
                    "libvirt's guests are known as of {seconds} s ago{}",
                    because(trouble)
                ))
            }
            Some(_) => None,
        }
    }

    /// Since when the list is not asked for on purpose: it does not age meanwhile.
    pub fn quiet(&mut self, since: Option<Now>) {
        self.quiet = since;
    }

    /// The doubt, unless it does not matter for that mount: nobody is known there, and `/proc`, just
    /// looked at, shows nobody either.
    #[must_use]
    pub fn doubt_about(&self, mount: &Path, now: Now) -> Option<String> {
        let anybody = self.on(mount).next().is_some() || self.strays(mount).next().is_some();
        self.doubt(now).filter(|_| anybody || !self.sees_processes(now))
    }

    /// The guests with a disk on that mount, and those that may have one.
    pub fn on<'a>(&'a self, mount: &'a Path) -> impl Iterator<Item = &'a Guest> {
        self.guests.values().filter(move |guest| self.is_on(guest, mount))
    }

    /// Processes with a file open on that mount whose guest libvirt has not named.
    pub fn strays<'a>(&'a self, mount: &'a Path) -> impl Iterator<Item = &'a Qemu> {
        let on = move |qemu: &&Qemu| qemu.files.iter().any(|file| self.holds(mount, file));
        self.seen().iter().filter(on).filter(|qemu| !self.guests.values().any(|g| is(g, qemu)))
    }

    /// The names of everything that runs with a disk on that mount, whoever told.
    #[must_use]
    pub fn names(&self, mount: &Path) -> Vec<String> {
        let told = self.on(mount).map(|guest| guest.name().to_owned());
        let mut names: Vec<String> =
            told.chain(self.strays(mount).map(|qemu| qemu.guest.clone())).collect();
        names.sort();
        names.dedup();
        names
    }

    fn is_on(&self, guest: &Guest, mount: &Path) -> bool {
        let Some(told) = &guest.told else { return true };
        let mut sources = told.domain.disks.iter().flat_map(sources);
        let process = self.seen().iter().find(|qemu| is(guest, qemu));
        let open = |qemu: &Qemu| qemu.files.iter().any(|file| self.holds(mount, file));
        sources.any(|source| self.source_on(source, mount)) || process.is_some_and(open)
    }

    fn source_on(&self, source: &Source, mount: &Path) -> bool {
        match source {
            Source::File(path) | Source::Block(path) => self.holds(mount, Path::new(path)),
            Source::Volume { pool, .. } => match self.pools.get(pool) {
                Some(directory) => self.holds(mount, Path::new(directory)),
                None => true,
            },
            Source::Network { .. } | Source::Empty | Source::Other(_) => false,
        }
    }

    /// Whether that mount is the deepest one that a path is below, by its letters.
    fn holds(&self, mount: &Path, path: &Path) -> bool {
        let path = plain(path);
        let depth = mount.components().count();
        let deeper =
            |other: &&PathBuf| other.components().count() > depth && path.starts_with(other);
        path.starts_with(mount) && !self.mounts.iter().any(|other| deeper(&other))
    }
}

fn because(trouble: Option<&str>) -> String {
    trouble.map(|why| format!(": {why}")).unwrap_or_default()
}

fn is(guest: &Guest, qemu: &Qemu) -> bool {
    let Some(told) = &guest.told else { return false };
    match &qemu.uuid {
        Some(uuid) => *uuid == told.domain.uuid,
        None => qemu.guest == told.domain.name,
    }
}

fn sources(disk: &Disk) -> impl Iterator<Item = &Source> {
    std::iter::once(&disk.source).chain(&disk.backing)
}

/// A path without `.` and `..`, by its letters.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
