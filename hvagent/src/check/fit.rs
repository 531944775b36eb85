//! Whether a target can give a guest what it has: processor, machine, memory, versions.
//!
//! Pure. Rule kept: S12. A processor that cannot be proven to be there is told.

use super::migrate::Pair;
use super::remedy;
use super::report::{Capabilities, Guest, KindOfGuest};
use crate::core::finding::{Finding, Severity};

use Severity::{Error, Info, Warning};

/// How to ask the target itself.
fn ask(guest: &Guest, host: &str) -> String {
    let name = remedy::word(&guest.name);
    let file = remedy::word(&format!("/tmp/{}.xml", guest.name));
    format!(
        "`virsh dumpxml --migratable {name} > {file} && scp {file} {host}:/tmp/`, then on {host}: \
         `virsh hypervisor-cpu-compare {file}`"
    )
}

/// Findings on the processor; at most one, the first that matters.
pub(super) fn processor(guest: &Guest, pair: Pair<'_>) -> Option<Finding> {
    let host = pair.there.host.as_str();
    let finding = |severity, code: &str, evidence: String, remedy: String| {
        Some(Finding::new(severity, code, guest.name.as_str(), evidence, remedy))
    };
    let mode = guest.cpu.mode.as_deref();
    let capabilities = pair.there.capabilities.get();
    let kind = capabilities.and_then(|c| c.kinds.iter().find(|k| k.virt_type == guest.virt_type));
    if let Some(why) = pair.there.capabilities.why() {
        let evidence = format!("what guests can be given on {host} is not known: {why}");
        return finding(Warning, "cpu-unknown", evidence, ask(guest, host));
    }
    if guest.virt_type == "kvm" && kind.is_none() {
        let evidence = format!("{host} does not run guests of type kvm");
        let remedy = format!(
            "on {host}: `modprobe kvm_intel || modprobe kvm_amd`, then `virt-host-validate qemu`"
        );
        return finding(Error, "kvm-missing", evidence, remedy);
    }
    if matches!(mode, Some("host-passthrough" | "maximum")) {
        return passthrough(guest, pair);
    }
    let model = guest.cpu.model.as_ref()?;
    let kind = kind?;
    if !kind.usable.contains(model) {
        let known = if kind.unusable.contains(model) { "does not run" } else { "is not known" };
        let evidence = format!("processor model {model} {known} on {host}");
        let remedy = format!(
            "give the guest a model that all hypervisors run (`virsh hypervisor-cpu-baseline`); look closer with {}",
            ask(guest, host)
        );
        return finding(Error, "cpu-model", evidence, remedy);
    }
    features(guest, model, kind, host)
}

/// What the guest must have beyond its model, against what the target has beyond its own.
fn features(guest: &Guest, model: &String, kind: &KindOfGuest, host: &str) -> Option<Finding> {
    let lacking: Vec<_> =
        guest.cpu.features.iter().filter(|f| !kind.host_features.contains(f)).cloned().collect();
    if lacking.is_empty() {
        return None;
    }
    let list = lacking.join(", ");
    let subject = guest.name.as_str();
    let same_model = kind.host_model.as_ref() == Some(model);
    let (severity, code, evidence) = if same_model {
        (Error, "cpu-feature", format!("{host} lacks {list}"))
    } else {
        (
            Warning,
            "cpu-not-proven",
            format!("whether {host} has {list} cannot be told from its model"),
        )
    };
    Some(Finding::new(severity, code, subject, evidence, ask(guest, host)))
}

/// The guest sees the host's processor as it is: both must be the same.
fn passthrough(guest: &Guest, pair: Pair<'_>) -> Option<Finding> {
    let mode = guest.cpu.mode.as_deref().unwrap_or_default();
    let host = pair.there.host.as_str();
    let key = |c: &Capabilities| {
        let mut features = c.features.clone();
        features.sort_unstable();
        (c.arch.clone(), c.model.clone(), features)
    };
    let (here, there) =
        (pair.here.capabilities.get().map(key), pair.there.capabilities.get().map(key));
    if here.is_some() && here == there {
        return None;
    }
    let shown = |c: Option<&Capabilities>| {
        c.and_then(|c| c.model.clone()).unwrap_or_else(|| "unknown".to_owned())
    };
    let evidence = format!(
        "cpu mode {mode} shows the guest the host's own processor, and they differ: {} here, {} on {host}",
        shown(pair.here.capabilities.get()),
        shown(pair.there.capabilities.get())
    );
    let remedy = "give the guest a model that all hypervisors run: `virsh hypervisor-cpu-baseline` with the \
                  `virsh domcapabilities` of each, then `virsh edit`, shut down, start";
    Some(Finding::new(Error, "cpu-passthrough", guest.name.as_str(), evidence, remedy))
}

/// The machine type must be known there, by that very name.
pub(super) fn machine(guest: &Guest, pair: Pair<'_>) -> Option<Finding> {
    let host = pair.there.host.as_str();
    let capabilities = pair.there.capabilities.get()?;
    let machine = guest.machine.as_ref()?;
    let other_arch = guest.arch.as_ref().filter(|arch| **arch != capabilities.arch);
    if let Some(arch) = other_arch.filter(|_| guest.virt_type == "kvm") {
        let evidence = format!("the guest is {arch}, {host} is {}", capabilities.arch);
        let remedy = "a running guest cannot change its architecture: start it anew there, or choose another host";
        return Some(Finding::new(Error, "arch-differs", guest.name.as_str(), evidence, remedy));
    }
    if other_arch.is_some() || capabilities.machines.contains(machine) {
        return None;
    }
    let evidence = format!("{host} does not know machine type {machine}");
    let remedy = format!(
        "install a QEMU on {host} that has it (`qemu-system-x86_64 -machine help`), or give the guest an \
         older type (`virsh edit {}`), shut it down and start it",
        remedy::word(&guest.name)
    );
    Some(Finding::new(Error, "machine-missing", guest.name.as_str(), evidence, remedy))
}

/// Memory for all the guest may have.
pub(super) fn memory(guest: &Guest, pair: Pair<'_>) -> Option<Finding> {
    let host = pair.there.host.as_str();
    let free = match &pair.there.free_memory {
        super::report::Known::Known(free) if *free >= guest.memory => return None,
        super::report::Known::Known(free) => *free,
        super::report::Known::Unknown(why) => {
            let remedy = format!("on {host}: `free -m`");
            return Some(Finding::new(
                Warning,
                "memory-unknown",
                guest.name.as_str(),
                why.as_str(),
                remedy,
            ));
        }
    };
    let mib = |bytes: u64| bytes >> 20;
    let evidence =
        format!("{host} has {} MiB free, the guest may need {} MiB", mib(free), mib(guest.memory));
    let remedy = format!("move a guest away from {host} first, or choose another host");
    Some(Finding::new(Error, "memory-short", guest.name.as_str(), evidence, remedy))
}

/// Versions of libvirt and QEMU: newer is fine, older is not.
pub(super) fn versions(pair: Pair<'_>) -> Vec<Finding> {
    let host = pair.there.host.as_str();
    let (Some(here), Some(there)) = (pair.here.libvirt.get(), pair.there.libvirt.get()) else {
        let why = pair.there.libvirt.why().or(pair.here.libvirt.why()).unwrap_or("not told");
        let remedy = "make libvirt answer on both hosts (`virsh version`), then check again";
        return vec![Finding::new(Error, "libvirt-unknown", host, why, remedy)];
    };
    let older = |what: &str, package: &str, severity, ours: u64, theirs: u64| {
        // The release alone does not matter: only bugs are repaired in it.
        let (series_here, series_there) = (ours / 1000, theirs / 1000);
        if series_there >= series_here {
            return (ours != theirs).then(|| {
                let evidence = format!("here {}, on {host} {}", version(ours), version(theirs));
                let remedy = "nothing for this migration; the way back goes to an older version: bring both hosts to the same";
                Finding::new(Info, &format!("{what}-differs"), host, evidence, remedy)
            });
        }
        let evidence = format!("{host} has {}, older than {} here", version(theirs), version(ours));
        let remedy = format!(
            "on {host}: `apt-get install --only-upgrade {package}` (or dnf upgrade), to the version of this host"
        );
        Some(Finding::new(severity, &format!("{what}-older"), host, evidence, remedy))
    };
    let qemu = older("qemu", "qemu-system-x86", Error, here.qemu, there.qemu);
    let libvirt = older("libvirt", "libvirt-daemon-system", Warning, here.libvirt, there.libvirt);
    qemu.into_iter().chain(libvirt).collect()
}

/// `9.0.0` of 9 000 000.
pub(crate) fn version(number: u64) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
}
