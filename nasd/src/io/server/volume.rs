//! Calls on a mounted volume: write-back, marker, canary. Each may hang with the volume.
//!
//! All of them go through a descriptor of the volume's root directory that was checked to be on
//! the mounted device: a path alone would reach the system's disk in the moment of an unmount.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};

use super::super::{Answer, Marker, Refusal};
use super::mounttable::MountTable;

const MARKER: &str = "marker.json";
const CANARY: &str = "canary";
/// One page, so that the write is a whole block.
const CANARY_LEN: usize = 4096;
/// A marker is some hundred bytes.
const MARKER_MAX: u64 = 64 * 1024;

pub(super) fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The checked root directory of a mounted volume.
struct Volume {
    root: OwnedFd,
    target: PathBuf,
}

impl Volume {
    fn open(target: &Path) -> Result<Self, Refusal> {
        let table = MountTable::read()?;
        let wanted = table.single(target)?.dev.clone();
        Self::open_on(target, &wanted)
    }

    /// Opens `target` if it is on device `wanted`.
    fn open_on(target: &Path, wanted: &str) -> Result<Self, Refusal> {
        let fail = |e: rustix::io::Errno| Refusal::system("opening", target, e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(target, flags, Mode::empty()).map_err(fail)?;
        let dev = rustix::fs::fstat(&root).map_err(fail)?.st_dev;
        if format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev)) != wanted {
            return Err(Refusal::NotMounted { target: target.into() });
        }
        Ok(Volume { root, target: target.into() })
    }

    fn refuse(&self, step: &str, error: rustix::io::Errno) -> Refusal {
        Refusal::system(step, &self.target, error)
    }

    fn refuse_io(&self, step: &str, error: &io::Error) -> Refusal {
        Refusal::system(step, &self.target, error)
    }

    /// The directory `.nasd`; none if it does not exist.
    fn own_dir(&self) -> Result<Option<OwnedFd>, Refusal> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.root, ".nasd", flags, Mode::empty()) {
            Ok(dir) => Ok(Some(dir)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(self.refuse("opening .nasd", error)),
        }
    }

    fn own_dir_made(&self) -> Result<OwnedFd, Refusal> {
        if let Some(dir) = self.own_dir()? {
            return Ok(dir);
        }
        match rustix::fs::mkdirat(&self.root, ".nasd", Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(self.refuse("making .nasd", error)),
        }
        rustix::fs::fsync(&self.root).map_err(|e| self.refuse("syncing", e))?;
        self.own_dir()?.ok_or_else(|| self.refuse("opening .nasd", rustix::io::Errno::NOENT))
    }

    fn read_marker(&self) -> Result<Option<Marker>, Refusal> {
        let Some(dir) = self.own_dir()? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&dir, MARKER, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.refuse("opening the marker", error)),
        };
        let mut bytes = Vec::new();
        file.take(MARKER_MAX)
            .read_to_end(&mut bytes)
            .map_err(|e| self.refuse_io("reading the marker", &e))?;
        let bad = |e: serde_json::Error| Refusal::BadMarker {
            target: self.target.clone(),
            text: e.to_string(),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(bad)
    }

    /// New content complete and synced under another name, then renamed, then the directory.
    fn write_marker(&self, marker: &Marker) -> Result<(), Refusal> {
        let dir = self.own_dir_made()?;
        let tmp = format!("{MARKER}.tmp");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, &tmp, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.refuse("making the marker", e))?;
        let bytes = serde_json::to_vec(marker).map_err(io::Error::from);
        let mut file = File::from(file);
        bytes
            .and_then(|bytes| file.write_all(&bytes))
            .and_then(|()| file.sync_all())
            .map_err(|e| self.refuse_io("writing the marker", &e))?;
        rustix::fs::renameat(&dir, &tmp, &dir, MARKER)
            .and_then(|()| rustix::fs::fsync(&dir))
            .map_err(|e| self.refuse("placing the marker", e))
    }

    fn mend_marker(&self, fits: &Marker) -> Result<Option<String>, Refusal> {
        let why = match self.read_marker() {
            // A newer one is no damage: it tells that the record is an old one (S2).
            Ok(Some(found))
                if found.service == fits.service && found.generation >= fits.generation =>
            {
                return Ok(None);
            }
            Ok(Some(found)) => format!("the marker was another: {found:?}"),
            Ok(None) => "the marker was missing".to_owned(),
            Err(bad @ Refusal::BadMarker { .. }) => bad.to_string(),
            Err(other) => return Err(other),
        };
        self.write_marker(fits)?;
        Ok(Some(why))
    }

    fn canary(&self) -> Result<(), Refusal> {
        let dir = self.own_dir_made()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, CANARY, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| self.refuse("opening the canary", e))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut page = format!("{}.{:09}\n", now.as_secs(), now.subsec_nanos()).into_bytes();
        page.resize(CANARY_LEN, b' ');
        rustix::io::pwrite(&file, &page, 0)
            .and_then(|_| rustix::fs::fdatasync(&file))
            .map_err(|e| self.refuse("writing the canary", e))
    }
}

/// Is exactly this mounted and on its device? For those who then go on by path.
pub(super) fn check_mounted(target: &Path) -> Result<(), Refusal> {
    Volume::open(target).map(|_| ())
}

pub(super) fn sync_fs(target: &Path) -> Result<Answer, Refusal> {
    let began = Instant::now();
    let volume = Volume::open(target)?;
    rustix::fs::syncfs(&volume.root).map_err(|e| volume.refuse("syncing", e))?;
    Ok(Answer::Took { took_ms: elapsed_ms(began) })
}

pub(super) fn read_marker(target: &Path) -> Result<Answer, Refusal> {
    Ok(Answer::Marker { marker: Volume::open(target)?.read_marker()? })
}

/// Writes the marker anew where it is missing, damaged, older or another service's; why.
pub(super) fn mend_marker(target: &Path, fits: &Marker) -> Result<Option<String>, Refusal> {
    Volume::open(target)?.mend_marker(fits)
}

pub(super) fn write_marker(target: &Path, marker: &Marker) -> Result<Answer, Refusal> {
    Volume::open(target)?.write_marker(marker).map(|()| Answer::Done)
}

pub(super) fn canary(target: &Path) -> Result<Answer, Refusal> {
    let began = Instant::now();
    Volume::open(target)?.canary()?;
    Ok(Answer::Took { took_ms: elapsed_ms(began) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Any directory, taken for a volume of the device that it is on.
    fn volume(dir: &Path) -> Volume {
        let dev = rustix::fs::stat(dir).unwrap().st_dev;
        let dev = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        Volume::open_on(dir, &dev).unwrap()
    }

    fn marker(epoch: u64) -> Marker {
        Marker { service: "s".into(), epoch, generation: 3, node: "nas1".into() }
    }

    #[test]
    fn marker_is_replaced_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        assert_eq!(volume.read_marker(), Ok(None));
        for epoch in [1, 2] {
            volume.write_marker(&marker(epoch)).unwrap();
            assert_eq!(volume.read_marker(), Ok(Some(marker(epoch))));
        }
        fs::write(dir.path().join(".nasd/marker.json"), "{}").unwrap();
        assert!(matches!(volume.read_marker(), Err(Refusal::BadMarker { .. })));
    }

    #[test]
    fn s2_a_marker_is_mended_where_it_is_damaged_and_never_made_older() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        let mended = || volume.mend_marker(&marker(2)).unwrap();
        assert!(mended().unwrap().contains("missing"));
        for good in [marker(1), marker(2), marker(3), Marker { generation: 9, ..marker(2) }] {
            volume.write_marker(&good).unwrap();
            assert_eq!(mended(), None);
            assert_eq!(volume.read_marker(), Ok(Some(good)));
        }
        let other = Marker { service: "t".into(), ..marker(2) };
        for bad in [other, Marker { generation: 2, ..marker(2) }] {
            volume.write_marker(&bad).unwrap();
            assert!(mended().is_some(), "{bad:?}");
            assert_eq!(volume.read_marker(), Ok(Some(marker(2))));
        }
        fs::write(dir.path().join(".nasd/marker.json"), "{\"serv").unwrap();
        assert!(mended().unwrap().contains("cannot be read"));
        assert_eq!(mended(), None);
    }

    #[test]
    fn nothing_is_written_where_nothing_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        for outcome in [
            canary(dir.path()),
            sync_fs(dir.path()),
            write_marker(dir.path(), &marker(1)),
            read_marker(dir.path()),
        ] {
            assert_eq!(outcome, Err(Refusal::NotMounted { target: dir.path().into() }));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // The table says mounted, but the path leads to another device.
        let elsewhere = Volume::open_on(dir.path(), "0:9999");
        assert!(matches!(elsewhere, Err(Refusal::NotMounted { .. })));
    }

    #[test]
    fn canary_writes_one_page_over_and_over() {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume(dir.path());
        volume.canary().unwrap();
        let first = fs::read(dir.path().join(".nasd/canary")).unwrap();
        volume.canary().unwrap();
        let second = fs::read(dir.path().join(".nasd/canary")).unwrap();
        assert_eq!((first.len(), second.len()), (CANARY_LEN, CANARY_LEN));
        assert_ne!(first, second);
    }

    #[test]
    fn a_link_in_place_of_our_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join(".nasd")).unwrap();
        assert!(volume(dir.path()).canary().is_err());
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    }
}
