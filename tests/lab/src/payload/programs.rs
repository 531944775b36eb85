//! Our programs, built here and copied into the nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::deps;
use crate::error::LabError;
use crate::progress::Step;
use crate::sys::{self, SHORT};

/// What goes into the nodes, as far as it exists.
const PROGRAMS: [&str; 9] = [
    "nasd",
    "nasd-io",
    "nasctl",
    "nasd-fence-peer",
    "hvagent",
    "hvagent-hook",
    "lab-agent",
    "lab-blocks",
    "lab-guest",
];

/// Limit for a build from nothing on a small machine.
const BUILD: Duration = Duration::from_secs(3600);

/// Root of the sources.
pub fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    // A run of another package's test has another manifest; both lie below the root.
    let root = package.ancestors().find(|d| d.join("tests/lab/Cargo.toml").exists());
    root.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo puts programs: where this one lies, or above it for tests.
fn output() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let dir = exe.parent().unwrap_or(Path::new("."));
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    dir.to_path_buf()
}

/// Builds all programs that go into the nodes, in the profile and folder of this one.
///
/// # Errors
/// The compiler's.
pub fn build() -> Result<(), LabError> {
    deps::ensure(&[deps::BUILD])?;
    let step = Step::begin("Building the programs");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "nasd", "--package", "lab", "--bins"]);
    if workspace().join("hvagent/Cargo.toml").exists() {
        command.args(["--package", "hvagent"]);
    }
    command.current_dir(workspace());
    same_output(&mut command);
    sys::run(command, BUILD)?;
    step.done();
    Ok(())
}

/// Lets a command of cargo that builds use the profile and folder of this program.
pub fn same_output(command: &mut Command) {
    let out = output();
    if out.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = out.parent() {
        command.arg("--target-dir").arg(target);
    }
}

/// Copies the programs, stripped, into `dir`.
///
/// # Errors
/// [`LabError::Io`], or those of `strip`.
pub fn stage(dir: &Path) -> Result<(), LabError> {
    sys::make_dir(dir)?;
    for name in PROGRAMS {
        let from = output().join(name);
        if !from.is_file() {
            if name == "lab-agent" {
                return Err(LabError::io("find", from)(std::io::ErrorKind::NotFound.into()));
            }
            continue;
        }
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(dir.join(name)).arg(from);
        sys::run(strip, SHORT)?;
    }
    Ok(())
}

/// Copies the product's units, which nothing starts.
///
/// # Errors
/// [`LabError::Io`].
pub fn units(dir: &Path) -> Result<(), LabError> {
    let from = workspace().join("systemd");
    let Ok(entries) = fs::read_dir(&from) else { return Ok(()) };
    for path in entries.flatten().map(|e| e.path()) {
        let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if let Some(name) = path.file_name()
            && ["service", "socket", "target", "slice", "mount"].contains(&kind)
        {
            fs::copy(&path, dir.join(name)).map_err(LabError::io("copy", &path))?;
        }
    }
    Ok(())
}
