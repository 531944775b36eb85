//! Builds the image with the distribution's own tools, from the mirror this machine's apt already uses.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::recipe::{
    DISABLED, EMPTIED, FILES, GUEST_LIBRARIES, GUEST_MODULES, LINKS, MASKED, PACKAGES, RELEASE,
    REMOVED, SIZE_MIB, UML_LIBRARIES, UML_RELEASE,
};
use crate::error::LabError;
use crate::progress::Step;
use crate::sys::{self, SHORT};

/// Limit for what loads packages.
const LOAD: Duration = Duration::from_secs(1800);

/// Limit for what copies the tree.
const COPY: Duration = Duration::from_secs(300);

/// Where Debian's archive keys are on Debian; elsewhere apt's own are used.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Makes all files of the image in `dir`, which will be renamed to `end`.
pub fn build(dir: &Path, end: &Path, step: &Step) -> Result<(), LabError> {
    let mirror = mirror()?;
    let tree = dir.join("tree");
    step.note("root file system");
    bootstrap(&tree, &mirror)?;
    step.note("User-Mode Linux");
    let uml = unpack_uml(&dir.join("uml"), &mirror)?;
    customise(&tree, &uml)?;
    step.note("files");
    runtime(&tree, &uml, dir, end)?;
    kernel(&tree, dir)?;
    guest(&tree, &dir.join("guest"))?;
    pack(&tree, &dir.join("root.ext4"))?;
    for done in [tree, dir.join("uml")] {
        fs::remove_dir_all(&done).map_err(LabError::io("remove", done))?;
    }
    Ok(())
}

/// The Debian mirror that apt uses.
fn mirror() -> Result<String, LabError> {
    if let Ok(mirror) = std::env::var("NASD_LAB_MIRROR") {
        return Ok(mirror);
    }
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = sys::quick("apt-get", &["indextargets", "--format", format])?;
    // The label keeps the security archive out, which has no whole release.
    let found = targets.lines().find_map(|l| l.strip_prefix("Debian|Debian|"));
    found.map(str::to_owned).ok_or(LabError::NoMirror)
}

fn signed_by() -> String {
    if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() }
}

/// A mirror that stands still is good enough for a lab: signatures are checked, their age is not.
const LATE_MIRROR: &str = "Acquire::Check-Valid-Until \"false\"";

fn bootstrap(tree: &Path, mirror: &str) -> Result<(), LabError> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase", "--architectures=amd64"]);
    command.arg(format!("--aptopt={LATE_MIRROR}"));
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg(RELEASE).arg(tree).arg(format!("deb {}{mirror} {RELEASE} main", signed_by()));
    sys::run(command, LOAD).map(drop)
}

/// Loads the package with an apt of our own, which knows only that release, and unpacks it.
fn unpack_uml(dir: &Path, mirror: &str) -> Result<PathBuf, LabError> {
    for sub in ["lists/partial", "cache/archives/partial"] {
        sys::make_dir(&dir.join(sub))?;
    }
    let at = dir.display();
    let config = format!(
        "Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Dir::State::lists \"{at}/lists\";\nDir::State::status \"{at}/status\";\n\
         Dir::Cache \"{at}/cache\";\nAPT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\n\
         {LATE_MIRROR};\n"
    );
    let source = format!("deb {}{mirror} {UML_RELEASE} main\n", signed_by());
    sys::write(&dir.join("apt.conf"), config, 0o644)?;
    sys::write(&dir.join("sources.list"), source, 0o644)?;
    sys::write(&dir.join("status"), "", 0o644)?;
    for args in [&["-q", "update"][..], &["-q", "download", "user-mode-linux"]] {
        let mut apt = Command::new("apt-get");
        apt.args(args).current_dir(dir).env("APT_CONFIG", dir.join("apt.conf"));
        sys::run(apt, LOAD)?;
    }
    let package = only(dir, |name| name.ends_with(".deb"))?;
    let out = dir.join("unpacked");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(package).arg(&out);
    sys::run(unpack, COPY)?;
    Ok(out)
}

/// The entry of `dir` whose name is meant.
fn only(dir: &Path, meant: impl Fn(&str) -> bool) -> Result<PathBuf, LabError> {
    let entries = fs::read_dir(dir).map_err(LabError::io("read folder", dir))?;
    let mut found = entries.flatten().filter(|e| e.file_name().to_str().is_some_and(&meant));
    let missing = || LabError::io("find the file in", dir)(std::io::ErrorKind::NotFound.into());
    found.next().map(|e| e.path()).ok_or_else(missing)
}

fn customise(tree: &Path, uml: &Path) -> Result<(), LabError> {
    for dir in EMPTIED {
        let dir = tree.join(dir);
        // Some do not exist in every release.
        let _ = fs::remove_dir_all(&dir);
        sys::make_dir(&dir)?;
    }
    for file in REMOVED {
        // As above.
        let _ = fs::remove_file(tree.join(file));
    }
    sys::make_dir(&tree.join("lab"))?;
    for unit in MASKED {
        link("/dev/null", &tree.join("etc/systemd/system").join(unit))?;
    }
    let mut disable = Command::new("chroot");
    disable.arg(tree).args(["systemctl", "--quiet", "disable"]).args(DISABLED);
    sys::run(disable, SHORT)?;
    for (path, content, mode) in FILES {
        sys::write(&tree.join(path), content, *mode)?;
    }
    for (path, target) in LINKS {
        link(target, &tree.join(path))?;
    }
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(uml.join("usr/lib/uml/modules/.")).arg(tree.join("usr/lib/modules"));
    sys::run(copy, COPY).map(drop)
}

fn link(target: &str, path: &Path) -> Result<(), LabError> {
    if let Some(dir) = path.parent() {
        sys::make_dir(dir)?;
    }
    let _ = fs::remove_file(path);
    symlink(target, path).map_err(LabError::io("create link", path))
}

/// User-Mode Linux runs on this machine but may need a newer C library than it has: its private copy names the
/// loader and the library of the image. The program may be started anew by itself, so this must be in the file.
fn runtime(tree: &Path, uml: &Path, dir: &Path, end: &Path) -> Result<(), LabError> {
    sys::make_dir(&dir.join("lib"))?;
    for name in UML_LIBRARIES {
        copy(&tree.join("usr/lib/x86_64-linux-gnu").join(name), &dir.join("lib").join(name))?;
    }
    let linux = dir.join("linux");
    copy(&uml.join("usr/bin/linux.uml"), &linux)?;
    let mut patch = Command::new("patchelf");
    patch.arg("--set-interpreter").arg(end.join("lib/ld-linux-x86-64.so.2"));
    patch.arg("--set-rpath").arg(end.join("lib")).arg(linux);
    sys::run(patch, SHORT).map(drop)
}

fn kernel(tree: &Path, dir: &Path) -> Result<(), LabError> {
    let boot = tree.join("boot");
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let file = only(&boot, |n| n.starts_with(prefix))?;
        copy(&file, &dir.join(name))?;
        fs::remove_file(&file).map_err(LabError::io("remove", &file))?;
    }
    Ok(())
}

/// What a nested guest needs beside the kernel, laid out as in its own root.
fn guest(tree: &Path, dir: &Path) -> Result<(), LabError> {
    let libraries = dir.join("lib64");
    sys::make_dir(&libraries)?;
    for name in GUEST_LIBRARIES {
        copy(&tree.join("usr/lib/x86_64-linux-gnu").join(name), &libraries.join(name))?;
    }
    let release = only(&tree.join("usr/lib/modules"), |n| n.contains("-cloud-"))?;
    for module in GUEST_MODULES {
        let packed = release.join(format!("{module}.xz"));
        let mut unpack = Command::new("xz");
        unpack.args(["--decompress", "--keep", "--force"]).arg(&packed);
        sys::run(unpack, SHORT)?;
        let (plain, name) = (release.join(module), Path::new(module).file_name());
        copy(&plain, &dir.join(name.unwrap_or_default()))?;
        fs::remove_file(&plain).map_err(LabError::io("remove", plain))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    fs::copy(from, to).map(drop).map_err(LabError::io("copy", from))
}

fn pack(tree: &Path, image: &Path) -> Result<(), LabError> {
    sys::sparse(image, SIZE_MIB << 20)?;
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-L", "lab-root", "-d"]).arg(tree).arg(image);
    sys::run(make, COPY).map(drop)
}
