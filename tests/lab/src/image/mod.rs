//! The image that all nodes boot: built once, kept in a cache under a hash of its recipe.
//!
//! Several labs may want it at once: one builds under a lock, the others wait. A folder of the cache is complete or
//! not there, because it gets its name last.

mod build;
mod recipe;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::deps;
use crate::error::LabError;
use crate::progress::Step;
use crate::sys;

/// A built image.
#[derive(Clone, Debug)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The one in this folder.
    pub const fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Root file system, ext4. Nobody writes to it: nodes have copy-on-write files of their own.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// User-Mode Linux, made to run with the image's C library.
    pub fn uml(&self) -> PathBuf {
        self.dir.join("linux")
    }

    /// The stock kernel, for QEMU.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The stock kernel's initramfs, for QEMU.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// What a nested guest needs beside [`Image::kernel`]: libraries in `lib64/`, modules.
    pub fn guest(&self) -> PathBuf {
        self.dir.join("guest")
    }

    /// The image, built now unless it is in the cache.
    ///
    /// # Errors
    /// Those of the programs that build it.
    pub fn get() -> Result<Self, LabError> {
        let cache = cache_dir();
        let image = Self { dir: cache.join(format!("image-{:016x}", recipe::hash())) };
        if image.dir.exists() {
            return Ok(image);
        }
        sys::make_dir(&cache)?;
        let _lock = lock(&cache.join("image.lock"))?;
        // Another lab may have built it while this one waited.
        if !image.dir.exists() {
            deps::ensure(&[deps::IMAGE])?;
            build_into(&cache, &image)?;
        }
        Ok(image)
    }
}

/// `$NASD_LAB_CACHE`, `$XDG_CACHE_HOME/nasd-lab` or `~/.cache/nasd-lab`.
pub fn cache_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    var("NASD_LAB_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("nasd-lab")))
        .or_else(|| Some(var("HOME")?.join(".cache/nasd-lab")))
        .unwrap_or_else(|| PathBuf::from("/var/cache/nasd-lab"))
}

/// Waits for the lock without limit: who holds it builds the image, under limits of its own, and the kernel
/// releases it when that process ends.
fn lock(path: &Path) -> Result<Flock<File>, LabError> {
    let open = || File::create(path).map_err(LabError::io("create", path));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err(_) => eprintln!("Another lab builds the image; waiting for it …"),
    }
    Flock::lock(open()?, FlockArg::LockExclusive)
        .map_err(|(_, e)| LabError::io("lock", path)(e.into()))
}

fn build_into(cache: &Path, image: &Image) -> Result<(), LabError> {
    let step = Step::begin("Building the image (once)");
    let temporary = cache.join("image-new");
    // The lock is ours: what lies there was left by a build that was killed.
    remove(&temporary)?;
    sys::make_dir(&temporary)?;
    build::build(&temporary, &image.dir, &step)?;
    fs::rename(&temporary, &image.dir).map_err(LabError::io("rename to", &image.dir))?;
    step.done();
    Ok(())
}

fn remove(dir: &Path) -> Result<(), LabError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(LabError::io("remove", dir)(e)),
    }
}
