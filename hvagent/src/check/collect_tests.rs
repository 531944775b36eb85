//! A report of a host made of files, without libvirt and sanlock.

use std::fs;

use super::*;
use crate::check::judge_host;

const MOUNTINFO: &str = "27 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw\n\
    212 27 0:52 / /vm rw - nfs4 192.0.2.50:/vm rw,vers=4.2,soft,proto=tcp,timeo=50,retrans=2,local_lock=none,addr=192.0.2.50\n";
const TCP: &str = "  sl  local_address rem_address   st\n   0: 00000000:407E 00000000:0000 0A 0\n   \
    1: 0100007F:0016 00000000:0000 0A 0\n   2: 00000000:C001 00000000:0000 0A 0\n";

fn sources(root: &std::path::Path) -> Sources {
    let write = |file: &str, text: &str| {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proc/self/mountinfo", MOUNTINFO);
    write("proc/fs/nfsfs/volumes", "NV SERVER PORT DEV FSID FSC\nv4 c0000232 801 0:52 8a:0 no\n");
    write("proc/net/tcp", TCP);
    write("proc/meminfo", "MemAvailable: 1024 kB\n");
    write("etc/libvirt/qemu.conf", "lock_manager = \"sanlock\"\n");
    write("etc/libvirt/qemu-sanlock.conf", "auto_disk_leases = 1\n");
    let services = Services {
        floating: vec![crate::check::report::Named {
            name: "vm".into(),
            addresses: vec!["192.0.2.50".parse().unwrap()],
        }],
        nodes: Vec::new(),
    };
    Sources {
        root: root.to_owned(),
        libvirt: Err("libvirt-dbus is not there".into()),
        bus: Err("no bus".into()),
        sanlock: Client::new(root.join("sanlock.sock"), Duration::from_millis(200)),
        services,
        phases: Known::Unknown("the agent does not run".into()),
        stall: None,
    }
}

#[tokio::test]
async fn a_host_without_libvirt_still_tells_what_the_kernel_knows() {
    let root = tempfile::tempdir().unwrap();
    let report = collect(&sources(root.path())).await;
    let mount = report.mount("/vm").unwrap();
    assert_eq!((mount.fsid.as_deref(), mount.service.as_deref()), (Some("8a:0"), Some("vm")));
    assert_eq!(mount.source(), "192.0.2.50:/vm");
    assert_eq!(report.free_memory, Known::Known(1 << 20));
    let listening = report.listening.get().unwrap();
    assert_eq!(listening.transports, []);
    assert_eq!(listening.taken, [49153]);
    assert_eq!(report.locks.needed, ["__LIBVIRT__DISKS__"]);
    assert!(report.uses_sanlock());
    assert_eq!(report.guests.why(), Some("libvirt-dbus is not there"));
    let codes: Vec<_> = judge_host(&report).into_iter().map(|f| f.code).collect();
    for code in ["mount-soft", "sanlock-no-answer", "libvirt-unknown", "guests-unknown"] {
        assert!(codes.iter().any(|c| c == code), "{code} in {codes:?}");
    }
}

#[tokio::test]
async fn s12_a_table_that_is_not_understood_is_unknown() {
    let root = tempfile::tempdir().unwrap();
    let from = sources(root.path());
    fs::write(root.path().join("proc/self/mountinfo"), "rubbish\n").unwrap();
    fs::remove_file(root.path().join("proc/net/tcp")).unwrap();
    let report = collect(&from).await;
    assert!(report.mounts.why().unwrap().contains("line 1"));
    assert!(report.listening.why().unwrap().contains("/proc/net/tcp"));
}

#[tokio::test]
async fn a_report_survives_the_way_to_another_host() {
    let root = tempfile::tempdir().unwrap();
    let report = collect(&sources(root.path())).await;
    assert_eq!(HostReport::from_json(&report.to_json().unwrap()).unwrap(), report);
}

#[test]
fn a_survey_becomes_the_reports() {
    let root = tempfile::tempdir().unwrap();
    let expected = Expected { in_use: true, ..Expected::default() };
    let client = Client::new(root.path().join("no.sock"), Duration::from_millis(100));
    let (sanlock, findings) = survey(&client, &expected);
    assert!(sanlock.why().is_some());
    assert_eq!(findings[0].code, "sanlock-no-answer");
}
