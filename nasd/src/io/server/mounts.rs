//! Mounting of volumes, with the new mount calls and their error texts.
//!
//! Keeps S5: a volume is mounted where nothing else is, and from its own device only.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
    fsconfig_create_exclusive, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::super::{Answer, Refusal};
use super::mounttable::{MountTable, foreign};
use super::volume::elapsed_ms;

/// Mounts `device` on `target`, or finds it mounted there.
pub(super) fn mount(
    device: &Path,
    fstype: &str,
    options: &[String],
    target: &Path,
) -> Result<Answer, Refusal> {
    let began = Instant::now();
    let dev = device_number(device)?;
    if already_there(&MountTable::read()?, &dev, device, fstype, target)? {
        return Ok(Answer::Mounted { already: true, took_ms: elapsed_ms(began) });
    }
    let options = Options::parse(options)?;
    std::fs::create_dir_all(target)
        .map_err(|e| Refusal::system("making the mount point", target, e))?;
    let mounted = mount_aside(device, fstype, &options)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mounted.as_fd(), "", CWD, target, flags)
        .map_err(|e| failed(device, "placing it", e, Vec::new()))?;
    MountTable::read()?.single(target)?;
    Ok(Answer::Mounted { already: false, took_ms: elapsed_ms(began) })
}

/// `major:minor` of a block device.
fn device_number(device: &Path) -> Result<String, Refusal> {
    let bad = |error: Errno| Refusal::BadDevice { device: device.into(), error: error.into() };
    let stat = rustix::fs::stat(device).map_err(bad)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::BlockDevice {
        return Err(bad(Errno::NOTBLK));
    }
    let dev = stat.st_rdev;
    Ok(format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev)))
}

/// True: mounted as wished. False: neither the target nor the device is in use.
fn already_there(
    table: &MountTable,
    dev: &str,
    device: &Path,
    fstype: &str,
    target: &Path,
) -> Result<bool, Refusal> {
    let there = table.at(target);
    if let [only] = there.as_slice()
        && only.dev == dev
        && only.fstype == fstype
    {
        return Ok(true);
    }
    if let Some(other) = there.last() {
        return Err(foreign(target, other));
    }
    match table.entries().iter().find(|entry| entry.dev == dev) {
        Some(other) => {
            Err(Refusal::MountedElsewhere { device: device.into(), target: other.target.clone() })
        }
        None => Ok(false),
    }
}

/// Options as the mount calls want them: some belong to the mount, the rest to the file system.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    attributes: Vec<&'static str>,
    flags: Vec<String>,
    values: Vec<(String, String)>,
}

/// Options of the mount itself, with the flag for `fsmount`.
const ATTRIBUTES: [(&str, MountAttrFlags); 7] = [
    ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY),
    ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID),
    ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
    ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME),
    ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ("relatime", MountAttrFlags::MOUNT_ATTR_RELATIME),
];

/// Defaults, and what only `mount` programs understand.
const IGNORED: [&str; 5] = ["defaults", "rw", "noauto", "_netdev", "nofail"];

/// Without write barriers a power cut loses acknowledged writes.
const FORBIDDEN: [&str; 3] = ["nobarrier", "barrier=0", "source"];

impl Options {
    fn parse(words: &[String]) -> Result<Self, Refusal> {
        let mut options = Options::default();
        for word in words.iter().flat_map(|word| word.split(',')).filter(|word| !word.is_empty()) {
            let key = word.split('=').next().unwrap_or_default();
            if FORBIDDEN.contains(&word) || FORBIDDEN.contains(&key) || word.contains('\0') {
                return Err(Refusal::BadOption { option: word.into() });
            }
            options.add(word);
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) {
        if let Some((name, _)) = ATTRIBUTES.iter().find(|(name, _)| *name == word) {
            self.attributes.push(name);
        }
        if let Some((key, value)) = word.split_once('=') {
            self.values.push((key.into(), value.into()));
        } else if word == "ro" || !(IGNORED.contains(&word) || self.attributes.contains(&word)) {
            self.flags.push(word.into());
        }
    }

    fn attribute_flags(&self) -> MountAttrFlags {
        let named = ATTRIBUTES.iter().filter(|(name, _)| self.attributes.contains(name));
        named.fold(MountAttrFlags::empty(), |all, (_, flag)| all | *flag)
    }
}

fn mount_aside(device: &Path, fstype: &str, options: &Options) -> Result<OwnedFd, Refusal> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| failed(device, "opening the file system type", e, Vec::new()))?;
    let step = |step: &str, done: rustix::io::Result<()>| {
        done.map_err(|e| failed(device, step, e, messages(&context)))
    };
    step("setting the device", fsconfig_set_string(context.as_fd(), "source", device))?;
    for flag in &options.flags {
        step(flag, fsconfig_set_flag(context.as_fd(), flag.as_str()))?;
    }
    for (key, value) in &options.values {
        step(key, fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()))?;
    }
    step("reading the file system", create(&context))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, options.attribute_flags())
        .map_err(|e| failed(device, "making the mount", e, messages(&context)))
}

/// Kernels from 6.6 on can refuse a file system that is mounted anywhere already, also in another
/// mount namespace; older ones say that they do not know the call, and the mount table must do.
fn create(context: &OwnedFd) -> rustix::io::Result<()> {
    match fsconfig_create_exclusive(context.as_fd()) {
        Err(Errno::OPNOTSUPP) => fsconfig_create(context.as_fd()),
        other => other,
    }
}

/// What the file system says itself; each read gives one message.
fn messages(context: &OwnedFd) -> Vec<String> {
    let mut out = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let message = buffer.get(..length).unwrap_or_default();
        out.push(String::from_utf8_lossy(message).trim_end().to_owned());
        if out.len() >= 16 {
            break;
        }
    }
    out
}

fn failed(device: &Path, step: &str, error: Errno, messages: Vec<String>) -> Refusal {
    Refusal::MountFailed { device: device.into(), step: step.into(), error: error.into(), messages }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options, Refusal> {
        Options::parse(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_go_to_the_mount_or_to_the_file_system() {
        let parsed =
            options(&["noatime,nodev", "errors=remount-ro", "data=ordered", "rw", "lazytime"])
                .unwrap();
        assert_eq!(parsed.attributes, ["noatime", "nodev"]);
        assert_eq!(parsed.flags, ["lazytime"]);
        assert_eq!(parsed.values.len(), 2);
        let both = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_NODEV;
        assert_eq!(parsed.attribute_flags(), both);
        // Read-only is a matter of both.
        assert_eq!(options(&["ro"]).unwrap().flags, ["ro"]);
    }

    #[test]
    fn options_that_endanger_data_are_refused() {
        for bad in ["nobarrier", "noatime,barrier=0", "source=/dev/sda"] {
            assert!(matches!(options(&[bad]), Err(Refusal::BadOption { .. })), "{bad}");
        }
        assert!(options(&["barrier=1"]).is_ok());
    }

    #[test]
    fn a_mount_is_recognised_or_named() {
        let table = MountTable::parse(
            b"30 1 147:0 / /v/a rw - ext4 /dev/drbd0 rw\n31 1 0:50 / /v/b rw - tmpfs none rw\n",
        );
        let device = Path::new("/dev/drbd0");
        let there = |dev: &str, fstype: &str, target: &str| {
            already_there(&table, dev, device, fstype, Path::new(target))
        };
        assert_eq!(there("147:0", "ext4", "/v/a"), Ok(true));
        assert_eq!(there("147:9", "ext4", "/v/c"), Ok(false));
        assert!(matches!(there("147:1", "ext4", "/v/a"), Err(Refusal::ForeignMount { .. })));
        assert!(matches!(there("147:0", "xfs", "/v/a"), Err(Refusal::ForeignMount { .. })));
        assert!(matches!(there("147:9", "ext4", "/v/b"),
            Err(Refusal::ForeignMount { source_device, .. }) if source_device == "none"));
        assert!(matches!(there("147:0", "ext4", "/v/c"),
            Err(Refusal::MountedElsewhere { target, .. }) if target == Path::new("/v/a")));
    }

    #[test]
    fn only_block_devices_are_mounted() {
        for bad in ["/dev/null", "/nonexistent", "/tmp"] {
            let refused = mount(Path::new(bad), "ext4", &[], Path::new("/nonexistent/target"));
            assert!(matches!(refused, Err(Refusal::BadDevice { .. })), "{bad}");
        }
    }
}
