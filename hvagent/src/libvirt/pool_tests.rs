//! Pools of each kind, as libvirt writes them.

use proptest::prelude::*;

use super::*;

pub(crate) const NETFS: &str = "
<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'>
  <name>vms</name>
  <uuid>7c0e9b0e-7d5d-4cf5-9a55-2f6a5b0b8b11</uuid>
  <capacity unit='bytes'>1000</capacity>
  <source>
    <host name='10.0.0.9'/>
    <dir path='/srv/vms'/>
    <format type='nfs'/>
    <protocol ver='4.2'/>
  </source>
  <target><path>/var/lib/libvirt/images/vms</path></target>
  <fs:mount_opts><fs:option name='hard'/><fs:option name='timeo=50'/></fs:mount_opts>
</pool>";

fn parse(kind: &str, source: &str) -> Pool {
    let text = format!(
        "<pool type='{kind}'><name>p</name><uuid>u</uuid><source>{source}</source>\
         <target><path>/t</path></target></pool>"
    );
    Pool::parse(&text).unwrap()
}

#[test]
fn a_network_file_system() {
    let pool = Pool::parse(NETFS).unwrap();
    assert_eq!((pool.name.as_str(), &pool.kind), ("vms", &Kind::Netfs));
    assert_eq!(pool.uuid.as_deref(), Some("7c0e9b0e-7d5d-4cf5-9a55-2f6a5b0b8b11"));
    assert_eq!(pool.mount_source().as_deref(), Some("10.0.0.9:/srv/vms"));
    assert_eq!(pool.target.as_deref(), Some("/var/lib/libvirt/images/vms"));
    assert_eq!(pool.source.protocol.as_deref(), Some("4.2"));
    assert_eq!(pool.mount_options, ["hard", "timeo=50"]);
    assert!(pool.kind.is_mounted());
}

#[test]
fn an_address_of_the_sixth_version_stands_in_brackets_in_the_mount_table() {
    let pool = parse("netfs", "<host name='fd00::9'/><dir path='/v'/>");
    assert_eq!(pool.mount_source().as_deref(), Some("[fd00::9]:/v"));
}

#[test]
fn a_directory_has_no_source() {
    let text = "<pool type='dir'><name>d</name><source/><target><path>/d</path></target></pool>";
    let pool = Pool::parse(text).unwrap();
    assert_eq!((pool.kind, pool.source), (Kind::Dir, Source::default()));
    assert_eq!(pool.target.as_deref(), Some("/d"));
}

#[test]
fn devices_volume_groups_and_targets() {
    let pool =
        parse("logical", "<device path='/dev/sdb'/><device path='/dev/sdc'/><name>vg</name>");
    assert_eq!((pool.source.devices.len(), pool.source.name.as_deref()), (2, Some("vg")));
    let pool = parse(
        "iscsi",
        "<host name='san' port='3260'/><device path='iqn.2026-01.x:t'/>\
         <initiator><iqn name='iqn.2026-01.x:hv1'/></initiator>",
    );
    assert_eq!(pool.source.hosts, [Host { name: "san".to_owned(), port: Some(3260) }]);
    assert_eq!(pool.source.initiator.as_deref(), Some("iqn.2026-01.x:hv1"));
    let pool = parse("fs", "<device path='/dev/vdb1'/><format type='ext4'/>");
    assert_eq!((pool.kind, pool.source.format.as_deref()), (Kind::Fs, Some("ext4")));
    let pool = parse("scsi", "<adapter type='fc_host' wwnn='20' wwpn='10'/>");
    assert_eq!(pool.source.adapter.as_deref(), Some("20/10"));
    let pool = parse("rbd", "<host name='a' port='6789'/><host name='b'/><name>rbd/x</name>");
    assert_eq!(pool.source.hosts.len(), 2);
}

#[test]
fn every_kind_is_known_by_its_name_and_a_new_one_is_kept() {
    let names = [
        "dir",
        "fs",
        "netfs",
        "logical",
        "disk",
        "iscsi",
        "iscsi-direct",
        "scsi",
        "mpath",
        "rbd",
        "sheepdog",
        "gluster",
        "zfs",
        "vstorage",
    ];
    for name in names {
        assert!(!matches!(parse(name, "").kind, Kind::Other(_)), "{name}");
    }
    assert_eq!(parse("new", "").kind, Kind::Other("new".to_owned()));
}

#[test]
fn definitions_are_compared_by_what_a_guest_would_notice() {
    let here = Pool::parse(NETFS).unwrap();
    let there = NETFS.replace("<dir path='/srv/vms'/>", "<dir path='/srv/vms/'/>");
    let there = there.replace("1000</capacity>", "2000</capacity>");
    assert_eq!(here.differences(&Pool::parse(&there).unwrap()), []);
    let there = there.replace("10.0.0.9", "10.0.0.2").replace("images/vms", "images/other");
    let differences = here.differences(&Pool::parse(&there).unwrap());
    let what: Vec<_> = differences.iter().map(|difference| difference.what).collect();
    assert_eq!(what, ["source host", "target path"]);
    assert_eq!(
        (differences[0].here.as_str(), differences[0].there.as_str()),
        ("10.0.0.9", "10.0.0.2")
    );
}

#[test]
fn what_is_no_pool_is_refused() {
    for text in [
        "",
        "<pool/>",
        "<pool type='dir'/>",
        "<domain type='kvm'><name>x</name></domain>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><pool type='dir'><name>&a;</name></pool>",
        "<pool type='rbd'><name>x</name><source><host name='h' port='70000'/></source></pool>",
    ] {
        assert!(matches!(Pool::parse(text), Err(Error::BadXml { .. })), "{text}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*") {
        let _ = Pool::parse(&text);
    }

    #[test]
    fn changed_xml_never_panics(at: prop::sample::Index, piece in "[<>/'&; a-z0-9]{0,8}") {
        let cut = at.index(NETFS.len());
        let _ = Pool::parse(&format!("{}{piece}{}", &NETFS[..cut], &NETFS[cut..]));
        let _ = Pool::parse(&format!("{}{piece}", &NETFS[..cut]));
    }
}
