//! Guests as libvirt writes them.

use proptest::prelude::*;

use super::*;

const GUEST: &str = "
<domain type='kvm' id='3'>
  <name>guest1</name>
  <uuid>5d3c1c9e-6a55-4c0e-9b6f-0f8d7b3c2a11</uuid>
  <memory unit='KiB'>1048576</memory>
  <currentMemory unit='KiB'>524288</currentMemory>
  <vcpu placement='static' current='1'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>
  <on_lockfailure>pause</on_lockfailure>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' error_policy='stop' io='native'/>
      <source file='/var/lib/libvirt/images/vms/guest1.qcow2' index='2'/>
      <backingStore type='file' index='3'>
        <format type='raw'/>
        <source file='/srv/templates/base.img'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/data'/>
      <backingStore/>
      <mirror type='file' job='copy'><source file='/x'/></mirror>
      <target dev='sda' bus='scsi'/>
      <shareable/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw' cache='writeback' error_policy='report' rerror_policy='stop'/>
      <source pool='vms' volume='data.img'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='nbd' name='export'><host name='nas' port='10809'/></source>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
    <lease><lockspace>vms</lockspace><key>k1</key><target path='/leases/k1' offset='1048576'/></lease>
    <interface type='network'><source network='default'/></interface>
  </devices>
</domain>";

fn guest() -> Domain {
    Domain::parse(GUEST).unwrap()
}

/// The blockers of a guest with these devices.
fn blockers_of(devices: &str) -> Vec<Blocker> {
    let text = format!(
        "<domain type='qemu'><name>n</name><uuid>u</uuid><memory>1</memory>\
         <devices>{devices}</devices></domain>"
    );
    Domain::parse(&text).unwrap().blockers
}

#[test]
fn what_the_guest_is() {
    let guest = guest();
    assert_eq!((guest.name.as_str(), guest.virt_type.as_str()), ("guest1", "kvm"));
    assert_eq!((guest.memory, guest.vcpus), (1 << 30, 2));
    assert_eq!(guest.machine.as_deref(), Some("pc-q35-7.2"));
    assert_eq!(guest.cpu.mode.as_deref(), Some("custom"));
    assert_eq!(guest.cpu.model.as_deref(), Some("qemu64"));
    assert!(guest.cpu.xml.unwrap().starts_with("<cpu mode='custom'"));
    assert_eq!(guest.on_lock_failure.as_deref(), Some("pause"));
    assert_eq!(guest.blockers, []);
    let lease = &guest.leases[0];
    assert_eq!((lease.key.as_str(), lease.path.as_deref()), ("k1", Some("/leases/k1")));
}

#[test]
fn where_its_disks_live() {
    let disks = guest().disks;
    let paths: Vec<_> = disks[0].paths().collect();
    assert_eq!(paths, ["/var/lib/libvirt/images/vms/guest1.qcow2", "/srv/templates/base.img"]);
    assert_eq!(disks[1].source, Source::Block("/dev/vg/data".to_owned()));
    let volume = Source::Volume { pool: "vms".to_owned(), volume: "data.img".to_owned() };
    assert_eq!(disks[2].source, volume);
    assert!(matches!(&disks[3].source, Source::Network { protocol, .. } if protocol == "nbd"));
    assert_eq!((&disks[4].source, disks[4].read_only), (&Source::Empty, true));
}

#[test]
fn how_its_disks_behave() {
    let disks = guest().disks;
    assert!(disks[0].cache.is_coherent() && disks[0].pauses_on_error());
    assert_eq!((disks[1].cache, disks[1].cache.is_coherent()), (Cache::Default, false));
    assert!(!disks[1].pauses_on_error(), "QEMU tells the guest by default");
    assert!(disks[1].mirroring && disks[1].shareable && !disks[0].mirroring);
    assert!(!disks[2].pauses_on_error(), "only reads would pause it");
    assert_eq!(disks[2].cache, Cache::WriteBack);
}

#[test]
fn disks_are_found_by_the_directory_they_are_in() {
    let guest = guest();
    let below =
        |dir: &str| guest.disks_below(dir).map(|disk| disk.target.clone()).collect::<Vec<_>>();
    assert_eq!(below("/var/lib/libvirt/images/vms"), ["vda"]);
    assert_eq!(below("/var/lib/libvirt/images/vms/"), ["vda"]);
    assert!(below("/var/lib/libvirt/images/vm").is_empty(), "a name that begins alike is another");
    assert_eq!(below("/srv/templates"), ["vda"], "a backing file counts");
    assert_eq!(below("/"), ["vda", "sda"]);
}

#[test]
fn what_stands_in_the_way_of_a_migration() {
    let one = |devices: &str| blockers_of(devices).pop();
    assert_eq!(one("<hostdev type='pci'/>"), Some(Blocker::HostDevice("pci".to_owned())));
    assert_eq!(one("<filesystem type='mount'/>"), Some(Blocker::SharedDirectory));
    assert_eq!(one("<shmem name='x'/>"), Some(Blocker::SharedMemory));
    assert_eq!(one("<tpm><backend type='emulator'/></tpm>"), Some(Blocker::LocalTpm));
    assert_eq!(one("<interface type='vdpa'/>"), Some(Blocker::HostNetwork("vdpa".to_owned())));
    assert_eq!(one("<interface type='bridge'/>"), None);
    let transient = "<disk type='file'><source file='/a'/><target dev='vda'/><transient/></disk>";
    assert_eq!(one(transient), Some(Blocker::TransientDisk("vda".to_owned())));
    let nvme = "<disk type='nvme'><source type='pci'/><target dev='vdb'/></disk>";
    assert_eq!(one(nvme), Some(Blocker::LocalDrive("vdb".to_owned())));
}

#[test]
fn memory_comes_in_many_units() {
    let of = |memory: &str| {
        let text = format!("<domain><name>n</name><uuid>u</uuid>{memory}</domain>");
        Domain::parse(&text).map(|domain| domain.memory).ok()
    };
    assert_eq!(of("<memory>4</memory>"), Some(4096));
    assert_eq!(of("<memory unit='GiB'>2</memory>"), Some(2 << 30));
    assert_eq!(of("<memory unit='MB'>2</memory>"), Some(2_000_000));
    assert_eq!(of("<memory unit='PiB'>2</memory>"), None);
    assert_eq!(of(&format!("<memory unit='TiB'>{}</memory>", u64::MAX)), None);
    assert_eq!(of(""), None);
}

#[test]
fn s12_a_guest_that_is_not_fully_described_is_no_guest() {
    for text in [
        "<domain/>",
        "<domain><name>n</name><memory>1</memory></domain>",
        "<domain><name>n</name><uuid>u</uuid><memory>1</memory><vcpu>x</vcpu></domain>",
        "<domain><name>n</name><uuid>u</uuid><memory>1</memory><devices><disk/></devices></domain>",
        "<pool type='dir'><name>x</name></pool>",
    ] {
        assert!(matches!(Domain::parse(text), Err(Error::BadXml { .. })), "{text}");
    }
}

#[test]
fn deep_and_wide_xml_is_refused_not_fatal() {
    let deep = "<domain>".repeat(200_000);
    assert!(Domain::parse(&deep).is_err());
    let wide = format!("<domain>{}</domain>", "<a/>".repeat(250_000));
    assert!(Domain::parse(&wide).is_err());
    let chain = "<backingStore type='file'><source file='/x'/>".repeat(300);
    let end = "</backingStore>".repeat(300);
    let disk =
        format!("<disk type='file'><source file='/a'/>{chain}{end}<target dev='vda'/></disk>");
    let text = format!(
        "<domain><name>n</name><uuid>u</uuid><memory>1</memory><devices>{disk}</devices></domain>"
    );
    assert!(Domain::parse(&text).is_err());
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*") {
        let _ = Domain::parse(&text);
    }

    #[test]
    fn changed_xml_never_panics(at: prop::sample::Index, piece in "[<>/'&; a-z0-9]{0,8}", drop in 0_usize..40) {
        let cut = at.index(GUEST.len());
        let after = (cut + drop).min(GUEST.len());
        let _ = Domain::parse(&format!("{}{piece}{}", &GUEST[..cut], &GUEST[after..]));
    }
}
