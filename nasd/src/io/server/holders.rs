//! Who keeps a volume busy. Reads `/proc` and `/sys` only; never a call that could reach the volume.
//!
//! Open files are told by the mount's id in `/proc/PID/fdinfo`, mappings by the device number in
//! `/proc/PID/maps`, directories by the text of their links. What appears or ends while the
//! tables are read may be missed: this explains a refusal, it decides nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::super::{Holder, HolderKind, Refusal};
use super::mounttable::{MountTable, unescape};

/// What is looked for.
struct Sought {
    target: PathBuf,
    mount_id: u64,
    dev: String,
    /// The device number as `/proc/PID/maps` prints it.
    dev_hex: String,
}

impl Sought {
    fn new(target: &Path, mount_id: u64, dev: &str) -> Self {
        let number = |part: Option<&str>| part.and_then(|p| p.parse::<u32>().ok()).unwrap_or(0);
        let mut parts = dev.split(':');
        let (major, minor) = (number(parts.next()), number(parts.next()));
        let dev_hex = format!("{major:02x}:{minor:02x}");
        Sought { target: target.into(), mount_id, dev: dev.into(), dev_hex }
    }

    fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.target)
    }
}

/// Everything found that holds the volume mounted at `target`; this process excepted. At `end` what has been found
/// so far is the answer.
pub(super) fn find(target: &Path, end: Option<Instant>) -> Result<Vec<Holder>, Refusal> {
    let table = MountTable::read()?;
    let Some(mount) = table.top(target) else {
        return Err(Refusal::NotMounted { target: target.into() });
    };
    let sought = Sought::new(target, mount.id, &mount.dev);
    let mut found: BTreeSet<Holder> = other_mounts(&table, &sought).into_iter().collect();
    found.extend(devices(&sought));
    found.extend(processes(&sought, end));
    Ok(found.into_iter().collect())
}

fn holder(kind: HolderKind, pid: Option<u32>, name: &str, path: &Path) -> Holder {
    Holder { kind, pid, name: name.into(), path: path.display().to_string() }
}

/// Mounts below the target, and other mounts of its device.
fn other_mounts(table: &MountTable, sought: &Sought) -> Vec<Holder> {
    let other = |e: &&super::mounttable::Entry| {
        e.id != sought.mount_id && (e.dev == sought.dev || sought.holds(&e.target))
    };
    let entries = table.entries().iter().filter(other);
    entries.map(|e| holder(HolderKind::Mount, None, &e.fstype, &e.target)).collect()
}

fn processes(sought: &Sought, end: Option<Instant>) -> Vec<Holder> {
    let own = std::process::id();
    let mut namespaces: BTreeSet<PathBuf> = own_namespace().into_iter().collect();
    let mut out = Vec::new();
    for (pid, dir) in process_dirs() {
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        if pid == own {
            continue;
        }
        let found = one_process(pid, &dir, sought);
        out.extend(found);
        if let Ok(namespace) = fs::read_link(dir.join("ns/mnt"))
            && namespaces.insert(namespace)
        {
            out.extend(foreign_namespace(pid, &dir, sought));
        }
    }
    out
}

fn own_namespace() -> Option<PathBuf> {
    fs::read_link("/proc/self/ns/mnt").ok()
}

fn process_dirs() -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbered = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path()))
    };
    entries.flatten().filter_map(numbered).collect()
}

fn name_of(dir: &Path) -> String {
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn one_process(pid: u32, dir: &Path, sought: &Sought) -> Vec<Holder> {
    let links = [
        ("cwd", HolderKind::WorkingDirectory),
        ("root", HolderKind::Root),
        ("exe", HolderKind::Program),
    ];
    let link = |(name, kind): &(&str, HolderKind)| {
        let path = fs::read_link(dir.join(name)).ok().filter(|path| sought.holds(path))?;
        Some((*kind, path))
    };
    let mut found: Vec<(HolderKind, PathBuf)> = links.iter().filter_map(link).collect();
    found.extend(open_files(dir, sought).into_iter().map(|p| (HolderKind::OpenFile, p)));
    let maps = fs::read(dir.join("maps")).unwrap_or_default();
    found.extend(mappings(&maps, sought).into_iter().map(|p| (HolderKind::Mapping, p)));
    if found.is_empty() {
        return Vec::new();
    }
    let name = name_of(dir);
    found.iter().map(|(kind, path)| holder(*kind, Some(pid), &name, path)).collect()
}

fn open_files(dir: &Path, sought: &Sought) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("fdinfo")) else { return Vec::new() };
    let held = |entry: fs::DirEntry| {
        let info = fs::read_to_string(entry.path()).ok()?;
        (mount_id(&info)? == sought.mount_id).then_some(())?;
        Some(fs::read_link(dir.join("fd").join(entry.file_name())).unwrap_or_default())
    };
    entries.flatten().filter_map(held).collect()
}

/// `mnt_id:` of an `fdinfo`.
fn mount_id(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// Files of the device in the text of `maps`, each once.
fn mappings(maps: &[u8], sought: &Sought) -> BTreeSet<PathBuf> {
    let path = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split_ascii_whitespace();
        let dev = words.nth(3)?;
        let rest: Vec<&str> = words.skip(1).collect();
        (dev == sought.dev_hex).then(|| PathBuf::from(rest.join(" ")))
    };
    maps.split(|b| *b == b'\n').filter_map(path).collect()
}

/// A mount namespace that has the volume mounted too, shown by one of its processes.
fn foreign_namespace(pid: u32, dir: &Path, sought: &Sought) -> Vec<Holder> {
    let text = fs::read(dir.join("mountinfo")).unwrap_or_default();
    let table = MountTable::parse(&text);
    let own = MountTable::read().map(|t| groups_of(&t, sought)).unwrap_or_default();
    // A copy of our peer group goes when ours goes (udevd, services with private mounts).
    let follows = |groups: &[u32]| groups.iter().any(|g| own.contains(g));
    let mounts: Vec<_> =
        table.entries().iter().filter(|e| e.dev == sought.dev && !follows(&e.groups)).collect();
    if mounts.is_empty() {
        return Vec::new();
    }
    let name = name_of(dir);
    let kind = HolderKind::ForeignNamespace;
    mounts.iter().map(|e| holder(kind, Some(pid), &name, &e.target)).collect()
}

fn groups_of(table: &MountTable, sought: &Sought) -> BTreeSet<u32> {
    let ours = table.entries().iter().filter(|e| e.dev == sought.dev);
    ours.flat_map(|e| e.groups.iter().copied()).collect()
}

fn devices(sought: &Sought) -> Vec<Holder> {
    let mut out = loop_devices(Path::new("/sys/block"), sought);
    let swaps = fs::read(Path::new("/proc/swaps")).unwrap_or_default();
    out.extend(swap_files(&swaps, sought));
    let stacked = Path::new("/sys/dev/block").join(&sought.dev).join("holders");
    for entry in fs::read_dir(stacked).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        out.push(holder(HolderKind::StackedDevice, None, &name, &entry.path()));
    }
    out
}

fn loop_devices(sys: &Path, sought: &Sought) -> Vec<Holder> {
    let backed = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let path = PathBuf::from(text.trim_end_matches('\n'));
        let name = entry.file_name().to_string_lossy().into_owned();
        sought.holds(&path).then(|| holder(HolderKind::LoopDevice, None, &name, &path))
    };
    fs::read_dir(sys).into_iter().flatten().flatten().filter_map(backed).collect()
}

fn swap_files(text: &[u8], sought: &Sought) -> Vec<Holder> {
    let path = |line: &[u8]| {
        let path = unescape(line.split(|b| b.is_ascii_whitespace()).next()?);
        sought.holds(&path).then(|| holder(HolderKind::Swap, None, "swap", &path))
    };
    text.split(|b| *b == b'\n').filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sought(target: &str) -> Sought {
        Sought::new(Path::new(target), 90, "147:18")
    }

    #[test]
    fn neighbours_with_a_longer_name_are_not_meant() {
        let sought = sought("/srv/a");
        assert!(sought.holds(Path::new("/srv/a")) && sought.holds(Path::new("/srv/a/x")));
        assert!(!sought.holds(Path::new("/srv/ab/x")));
    }

    #[test]
    fn texts_of_the_kernel() {
        assert_eq!(mount_id("pos:\t0\nflags:\t02\nmnt_id:\t90\nino:\t5\n"), Some(90));
        let maps = b"7f0-7f1 r-xp 00000000 93:12 123   /srv/a/lib x.so\n\
            7f1-7f2 r--p 00001000 93:12 123   /srv/a/lib x.so\n\
            7f2-7f3 r-xp 00000000 fe:01 9     /usr/lib/libc.so\n7f3-7f4 rw-p 0 00:00 0\n";
        let found: Vec<_> = mappings(maps, &sought("/srv/a")).into_iter().collect();
        assert_eq!(found, [PathBuf::from("/srv/a/lib x.so")]);
        let swaps = b"Filename\tType\n/srv/a/swap\\040file   file 1 0 -2\n/dev/sda1 part\n";
        let found = swap_files(swaps, &sought("/srv/a"));
        assert_eq!(found[0].path, "/srv/a/swap file");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn loop_device_over_a_file_of_the_volume() {
        let sys = tempfile::tempdir().unwrap();
        for (name, file) in [("loop0", "/srv/a/disk.raw\n"), ("loop1", "/other\n")] {
            fs::create_dir_all(sys.path().join(name).join("loop")).unwrap();
            fs::write(sys.path().join(name).join("loop/backing_file"), file).unwrap();
        }
        let found = loop_devices(sys.path(), &sought("/srv/a"));
        assert_eq!(
            found,
            [holder(HolderKind::LoopDevice, None, "loop0", Path::new("/srv/a/disk.raw"))]
        );
    }

    #[test]
    fn other_mounts_of_the_device_and_below() {
        let table = MountTable::parse(
            b"90 1 147:18 / /srv/a rw - ext4 d rw\n91 1 147:18 / /elsewhere rw - ext4 d rw\n\
              92 90 0:40 / /srv/a/sub rw - tmpfs none rw\n93 1 0:41 / /srv/ab rw - tmpfs n rw\n",
        );
        let paths: Vec<_> =
            other_mounts(&table, &sought("/srv/a")).into_iter().map(|h| h.path).collect();
        assert_eq!(paths, ["/elsewhere", "/srv/a/sub"]);
    }

    #[test]
    fn a_real_process_is_seen_with_directory_and_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let file = fs::File::create(path.join("held")).unwrap();
        let mut child = Command::new("sleep")
            .arg("30")
            .current_dir(&path)
            .stdin(file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/0", child.id())).unwrap();
        let sought = Sought::new(&path, mount_id(&info).unwrap(), "0:0");
        let dir = PathBuf::from(format!("/proc/{}", child.id()));
        let found = one_process(child.id(), &dir, &sought);
        child.kill().unwrap();
        child.wait().unwrap();
        let kind = |kind| found.iter().filter(|h| h.kind == kind).count();
        assert_eq!(kind(HolderKind::WorkingDirectory), 1);
        let held = path.join("held").display().to_string();
        assert!(found.iter().any(|h| h.kind == HolderKind::OpenFile && h.path == held));
    }

    #[test]
    fn the_search_ends_in_time() {
        assert_eq!(processes(&sought("/"), Some(Instant::now())), []);
        assert_ne!(processes(&sought("/"), None), [], "every process has a root");
    }

    #[test]
    fn what_is_not_mounted_has_no_holders() {
        let refused = find(Path::new("/nonexistent"), None).unwrap_err();
        assert!(matches!(refused, Refusal::NotMounted { .. }));
    }
}
