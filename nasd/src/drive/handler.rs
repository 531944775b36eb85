//! Is the program that the kernel calls when it loses its peer ours, and can it be executed?
//!
//! Keeps S1: a handler that cannot run leaves the owner frozen for ever, a foreign one can unfreeze it
//! without the record. What cannot be found out is a violation (S12).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Our helper's file name.
const OURS: &str = "nasd-fence-peer";
/// What the kernel executes: a module parameter, for the whole node.
const KERNEL_HELPER: &str = "/sys/module/drbd/parameters/usermode_helper";
/// How long an answer of `drbdadm` holds, and how long the lack of one.
const HOLDS: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(5);

/// The handler of a resource as `drbdadm` told it, kept for a while: asking takes a process.
#[derive(Clone, Default)]
pub struct Handlers(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    told: Option<Result<Vec<String>, String>>,
    at: Option<Instant>,
    asking: bool,
}

impl Handlers {
    /// What is wrong with the chain from the kernel to our helper, in words. Never waits for `drbdadm`
    /// except the first time.
    #[must_use]
    pub fn violations(&self, resource: &str) -> Vec<String> {
        let kernel = std::fs::read_to_string(KERNEL_HELPER).map_err(|e| e.to_string());
        judge(kernel.as_deref().map(str::trim).map_err(String::as_str), || self.told(resource))
    }

    /// Only what was read and is wrong: nothing about what could not be looked at.
    #[must_use]
    pub fn wrong(&self, resource: &str) -> Vec<String> {
        let Ok(kernel) = std::fs::read_to_string(KERNEL_HELPER) else { return Vec::new() };
        match self.told(resource) {
            _ if is_ours(Path::new(kernel.trim())) => Vec::new(),
            Ok(all) if all.is_empty() => vec!["the fence-peer handler is unset".into()],
            Ok(all) => all.iter().filter_map(|command| foreign(command)).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn told(&self, resource: &str) -> Result<Vec<String>, String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = if matches!(known.told, Some(Ok(_))) { HOLDS } else { RETRY };
        let fresh = known.at.is_some_and(|at| at.elapsed() < holds);
        let told = known.told.clone();
        if fresh || known.asking {
            return told.unwrap_or_else(|| Err("drbdadm has not answered yet".into()));
        }
        known.asking = true;
        drop(known);
        let (this, name) = (self.clone(), resource.to_owned());
        let ask = std::thread::Builder::new().name("drbdadm".into()).spawn(move || {
            let answer = crate::config::host::handlers_of(&name);
            let mut known = this.0.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Known { told: Some(answer.clone()), at: Some(Instant::now()), asking: false };
            answer
        });
        match (told, ask) {
            (Some(told), _) => told,
            (None, Ok(asked)) => asked.join().unwrap_or_else(|_| Err("drbdadm".into())),
            (None, Err(error)) => Err(error.to_string()),
        }
    }
}

/// `kernel`: the module parameter; `told`: the handlers in DRBD's files, looked at only if the kernel
/// goes through `drbdadm`.
fn judge(
    kernel: Result<&str, &str>,
    told: impl FnOnce() -> Result<Vec<String>, String>,
) -> Vec<String> {
    let helper = match kernel {
        Ok(helper) => helper,
        Err(reason) => return vec![format!("DRBD's usermode_helper cannot be read: {reason}")],
    };
    if let Some(wrong) = not_executable(Path::new(helper)) {
        return vec![format!("DRBD's usermode_helper: {wrong}")];
    }
    if is_ours(Path::new(helper)) {
        return Vec::new();
    }
    match told() {
        Err(reason) => vec![format!("the fence-peer handler cannot be read: {reason}")],
        Ok(all) if all.is_empty() => vec!["the fence-peer handler is unset".into()],
        Ok(all) => all.iter().filter_map(|command| judge_command(command)).collect(),
    }
}

/// Another program than ours is called.
fn foreign(command: &str) -> Option<String> {
    let program = Path::new(command.split_whitespace().next().unwrap_or_default());
    (!is_ours(program)).then(|| format!("the fence-peer handler is {command:?}, not {OURS}"))
}

/// A handler's line in DRBD's files: the program, then arguments.
pub(crate) fn judge_command(command: &str) -> Option<String> {
    let program = Path::new(command.split_whitespace().next().unwrap_or_default());
    if !is_ours(program) {
        return Some(format!("the fence-peer handler is {command:?}, not {OURS}"));
    }
    not_executable(program).map(|wrong| format!("the fence-peer handler: {wrong}"))
}

fn is_ours(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == OURS)
}

/// A bare name is looked up by the shell in a path that we do not know: refused.
fn not_executable(program: &Path) -> Option<String> {
    if !program.is_absolute() {
        return Some(format!("{} is not an absolute path", program.display()));
    }
    match std::fs::metadata(program) {
        Ok(found) if !found.is_file() => Some(format!("{} is not a file", program.display())),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => {
            Some(format!("{} is not executable", program.display()))
        }
        Ok(_) => None,
        Err(error) => Some(format!("{}: {error}", program.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(dir: &Path, name: &str, mode: u32) -> String {
        let path = dir.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn s1_the_chain_from_the_kernel_to_our_helper() {
        let dir = tempfile::tempdir().unwrap();
        let ours = program(dir.path(), OURS, 0o755);
        let drbdadm = program(dir.path(), "drbdadm", 0o755);
        let never = || panic!("drbdadm is not asked");
        assert!(judge(Ok(&ours), never).is_empty(), "called by the kernel itself");
        assert!(judge(Ok(&drbdadm), || Ok(vec![ours.clone()])).is_empty());
        assert!(judge(Ok(&drbdadm), || Ok(vec![format!("{ours} --x")])).is_empty());
        for (kernel, told, why) in [
            ("disabled", Ok(vec![]), "absolute"),
            ("/nowhere/drbdadm", Ok(vec![]), "No such file"),
            (drbdadm.as_str(), Ok(vec![]), "unset"),
            (drbdadm.as_str(), Ok(vec!["/bin/true".to_owned()]), "not nasd-fence-peer"),
            (drbdadm.as_str(), Ok(vec![OURS.to_owned()]), "absolute"),
            (drbdadm.as_str(), Ok(vec![ours.clone(), "/bin/true".into()]), "/bin/true"),
            (drbdadm.as_str(), Err("no answer".to_owned()), "no answer"),
        ] {
            let found = judge(Ok(kernel), || told);
            assert!(found.len() == 1 && found[0].contains(why), "{kernel}: {found:?}");
        }
        assert_eq!(judge(Err("gone"), never).len(), 1);
    }

    #[test]
    fn s12_a_handler_that_cannot_run_is_a_violation() {
        let dir = tempfile::tempdir().unwrap();
        let dead = program(dir.path(), OURS, 0o644);
        assert!(judge_command(&dead).unwrap().contains("not executable"));
        std::fs::remove_file(&dead).unwrap();
        assert!(judge_command(&dead).unwrap().contains("No such file"));
        std::fs::create_dir(&dead).unwrap();
        assert!(judge_command(&dead).unwrap().contains("not a file"));
    }
}
