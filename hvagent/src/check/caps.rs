//! What guests can be given, out of libvirt's XML: capabilities, domain capabilities, a guest's processor.
//!
//! Pure. Rule kept: S12. XML that is not understood is an error, so that nothing is thought to be
//! possible that was not told.

use roxmltree::{Document, Node, ParsingOptions};

use super::report::{Capabilities, KindOfGuest, Processor};

/// The most elements that are read. All machine types of all architectures are about ten thousand.
const NODES: u32 = 200_000;

/// XML that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum BadCapabilities {
    /// Not XML.
    #[error("libvirt's {kind} are not XML ({source}): what guests can be given here is not known")]
    Xml {
        /// Which of them.
        kind: &'static str,
        /// Why not.
        #[source]
        source: roxmltree::Error,
    },
    /// XML of something else.
    #[error("libvirt's {kind} have no {missing}: what guests can be given here is not known")]
    Missing {
        /// Which of them.
        kind: &'static str,
        /// What they should have.
        missing: &'static str,
    },
}

fn parse<'a>(kind: &'static str, text: &'a str) -> Result<Document<'a>, BadCapabilities> {
    let options = ParsingOptions { nodes_limit: NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options)
        .map_err(|source| BadCapabilities::Xml { kind, source })
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn children<'a, 'i: 'a>(
    node: Node<'a, 'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

fn text(node: Node<'_, '_>) -> Option<String> {
    node.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The host's processor and the machines it can be, of `GetCapabilities`. Also the kinds of guest,
/// by which domain capabilities are to be asked for.
///
/// # Errors
/// It is not understood.
pub fn host(xml: &str) -> Result<(Capabilities, Vec<String>), BadCapabilities> {
    let kind = "capabilities";
    let document = parse(kind, xml)?;
    let root = document.root_element();
    let missing = |missing| BadCapabilities::Missing { kind, missing };
    let cpu = child(root, "host").and_then(|host| child(host, "cpu"));
    let cpu = cpu.ok_or_else(|| missing("processor of the host"))?;
    let arch = child(cpu, "arch").and_then(text).ok_or_else(|| missing("architecture"))?;
    let features = children(cpu, "feature").filter_map(|f| f.attribute("name"));
    let (machines, kinds) = machines(root, &arch);
    let capabilities = Capabilities {
        model: child(cpu, "model").and_then(text),
        features: features.map(str::to_owned).collect(),
        machines,
        kinds: Vec::new(),
        arch,
    };
    Ok((capabilities, kinds))
}

/// Machine types for guests of the host's architecture, with their other names, and kinds of guest.
fn machines(root: Node<'_, '_>, arch: &str) -> (Vec<String>, Vec<String>) {
    let ours = |node: &Node<'_, '_>| node.attribute("name") == Some(arch);
    let (mut machines, mut kinds) = (Vec::new(), Vec::new());
    for guest in children(root, "guest").filter_map(|guest| child(guest, "arch")).filter(ours) {
        let domains = || children(guest, "domain");
        kinds.extend(domains().filter_map(|d| d.attribute("type")).map(str::to_owned));
        let lists = std::iter::once(guest).chain(domains());
        for machine in lists.flat_map(|list| children(list, "machine")) {
            machines.extend(text(machine));
            machines.extend(machine.attribute("canonical").map(str::to_owned));
        }
    }
    for list in [&mut machines, &mut kinds] {
        list.sort_unstable();
        list.dedup();
    }
    (machines, kinds)
}

/// The processors for one kind of guest, of `GetDomainCapabilities`.
///
/// # Errors
/// It is not understood.
pub fn kind_of_guest(virt_type: &str, xml: &str) -> Result<KindOfGuest, BadCapabilities> {
    let kind = "domain capabilities";
    let document = parse(kind, xml)?;
    let cpu = child(document.root_element(), "cpu");
    let cpu = cpu.ok_or(BadCapabilities::Missing { kind, missing: "processors" })?;
    let mode = |name: &str| {
        let named = |mode: &Node<'_, '_>| mode.attribute("name") == Some(name);
        children(cpu, "mode").find(named)
    };
    let mut found = KindOfGuest { virt_type: virt_type.to_owned(), ..KindOfGuest::default() };
    for model in mode("custom").into_iter().flat_map(|mode| children(mode, "model")) {
        let list = match model.attribute("usable") {
            Some("yes") => &mut found.usable,
            _ => &mut found.unusable,
        };
        list.extend(text(model));
    }
    if let Some(host) = mode("host-model") {
        found.host_model = child(host, "model").and_then(text);
        found.host_features = required(host);
    }
    Ok(found)
}

/// A guest's processor, as its definition gives it.
#[must_use]
pub fn processor(cpu: &crate::libvirt::domain::Cpu) -> Processor {
    let features = |xml: &String| {
        let document = Document::parse(xml).ok()?;
        Some(required(document.root_element()))
    };
    Processor {
        mode: cpu.mode.clone(),
        model: cpu.model.clone(),
        features: cpu.xml.as_ref().and_then(features).unwrap_or_default(),
    }
}

/// The features that must be there.
fn required(node: Node<'_, '_>) -> Vec<String> {
    let must = |f: &Node<'_, '_>| matches!(f.attribute("policy"), Some("require" | "force"));
    let features = children(node, "feature").filter(must);
    features.filter_map(|f| f.attribute("name")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "<capabilities><host><uuid>u</uuid><cpu><arch>x86_64</arch>
        <model>Skylake-Server</model><vendor>Intel</vendor><topology sockets='1'/>
        <feature name='vmx'/><feature name='pdpe1gb'/></cpu></host>
        <guest><os_type>hvm</os_type><arch name='i686'><machine>isapc</machine></arch></guest>
        <guest><os_type>hvm</os_type><arch name='x86_64'><wordsize>64</wordsize>
        <machine canonical='pc-i440fx-7.2' maxCpus='255'>pc</machine>
        <machine maxCpus='288'>pc-q35-7.2</machine><domain type='qemu'/>
        <domain type='kvm'><machine>pc-q35-7.1</machine></domain></arch></guest></capabilities>";
    const DOMAIN: &str = "<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
        <mode name='host-model' supported='yes'><model fallback='forbid'>EPYC</model>
        <feature policy='require' name='x2apic'/><feature policy='disable' name='svm'/></mode>
        <mode name='custom' supported='yes'><model usable='yes'>qemu64</model>
        <model usable='no'>EPYC-Rome</model><model usable='unknown'>new</model></mode>
        </cpu></domainCapabilities>";

    #[test]
    fn the_host_and_its_machines() {
        let (found, kinds) = host(HOST).unwrap();
        assert_eq!(
            (found.arch.as_str(), found.model.as_deref()),
            ("x86_64", Some("Skylake-Server"))
        );
        assert_eq!(found.features, ["vmx", "pdpe1gb"]);
        assert_eq!(found.machines, ["pc", "pc-i440fx-7.2", "pc-q35-7.1", "pc-q35-7.2"]);
        assert_eq!(kinds, ["kvm", "qemu"]);
    }

    #[test]
    fn the_processors_of_a_kind_of_guest() {
        let found = kind_of_guest("kvm", DOMAIN).unwrap();
        assert_eq!(found.usable, ["qemu64"]);
        assert_eq!(found.unusable, ["EPYC-Rome", "new"], "S12: not told is not usable");
        assert_eq!(found.host_model.as_deref(), Some("EPYC"));
        assert_eq!(found.host_features, ["x2apic"]);
    }

    #[test]
    fn a_guests_processor() {
        let xml = "<cpu mode='custom'><model>EPYC</model><feature policy='require' name='a'/>\
            <feature policy='optional' name='b'/><feature policy='force' name='c'/></cpu>";
        let cpu = crate::libvirt::domain::Cpu {
            mode: Some("custom".into()),
            model: Some("EPYC".into()),
            xml: Some(xml.into()),
        };
        assert_eq!(processor(&cpu).features, ["a", "c"]);
    }

    #[test]
    fn s12_other_xml_is_an_error() {
        assert!(host("<capabilities/>").unwrap_err().to_string().contains("not known"));
        assert!(host("<x").unwrap_err().to_string().contains("not XML"));
        assert!(kind_of_guest("kvm", "<domainCapabilities/>").is_err());
    }

    proptest! {
        #[test]
        fn changed_xml_never_panics(at: prop::sample::Index, piece in "[<>/'&; a-z0-9]{0,8}") {
            for text in [HOST, DOMAIN] {
                let cut = at.index(text.len());
                let changed = format!("{}{piece}{}", &text[..cut], &text[cut..]);
                let _ = (host(&changed), kind_of_guest("kvm", &changed));
            }
        }
    }
}
