//! Tests of the export table: who may use what, and what the kernel is told.

use super::*;
use proptest::prelude::*;

fn export(name: &str, uuid: u8, clients: &[&str]) -> Export {
    Export {
        path: Path::new("/srv/nasd/s").join(name),
        uuid: FsUuid([uuid; 16]),
        clients: clients.iter().map(|c| c.parse().unwrap()).collect(),
        read_only: false,
        asynchronous: false,
        root_squash: false,
        all_squash: false,
        insecure_ports: false,
        anon_uid: 65534,
        anon_gid: 65534,
    }
}

fn table() -> ExportTable {
    let exports = vec![
        export("vms", 1, &["192.0.2.0/24", "2001:db8::/32"]),
        export("iso", 2, &["192.0.2.7", "198.51.100.0/24"]),
    ];
    ExportTable::new(Path::new("/srv/nasd/s"), exports).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn text(line: Vec<u8>) -> String {
    String::from_utf8(line).unwrap()
}

#[test]
fn domains_follow_the_set_of_exports() {
    let table = table();
    assert_eq!(table.domain_of(ip("192.0.2.1")).unwrap(), "nasd-01");
    assert_eq!(table.domain_of(ip("192.0.2.7")).unwrap(), "nasd-03");
    assert_eq!(table.domain_of(ip("198.51.100.9")).unwrap(), "nasd-02");
    assert_eq!(table.domain_of(ip("2001:db8::9")).unwrap(), "nasd-01");
    assert_eq!(table.domain_of(ip("::ffff:192.0.2.1")).unwrap(), "nasd-01");
    assert_eq!(table.domain_of(ip("203.0.113.1")), None);
    assert_eq!(table.domain_of(ip("127.0.0.1")).unwrap(), "nasd-probe");
}

#[test]
fn exports_are_given_only_to_domains_that_may_use_them() {
    let table = table();
    let ask = |domain: &str, path: &str| {
        let request = Request::Export { domain: domain.into(), path: path.into() };
        text(table.answer(&request, 1000))
    };
    let keep = 1000 + KEEP_S;
    assert_eq!(
        ask("nasd-01", "/srv/nasd/s/vms"),
        format!("nasd-01 /srv/nasd/s/vms {keep} 1024 65534 65534 0 uuid \\x{} \n", "01".repeat(16))
    );
    assert_eq!(ask("nasd-01", "/srv/nasd/s/iso"), "nasd-01 /srv/nasd/s/iso 1300 \n");
    // READONLY ROOTSQUASH NOSUBTREECHECK FSID V4ROOT
    let root = 0x1_2405;
    assert_eq!(
        ask("nasd-02", "/srv/nasd/s"),
        format!("nasd-02 /srv/nasd/s {keep} {root} 65534 65534 0 \n")
    );
    for stranger in ["nasd-00", "nasd-", "other", "nasd-zz"] {
        assert_eq!(ask(stranger, "/srv/nasd/s"), format!("{stranger} /srv/nasd/s 1300 \n"));
    }
}

#[test]
fn probe_sees_everything_read_only_from_any_port() {
    let request =
        Request::Export { domain: b"nasd-probe".to_vec(), path: b"/srv/nasd/s/iso".to_vec() };
    let flags = READONLY | INSECURE_PORT | NOSUBTREECHECK;
    assert!(text(table().answer(&request, 0)).contains(&format!(" {flags} 65534")));
}

#[test]
fn file_systems_are_found_by_uuid_and_root_by_zero() {
    let table = table();
    let ask = |domain: &str, key: FsidKey| {
        let (kind, raw) = lines::key_parts(key);
        text(table.answer(&Request::FileSystem { domain: domain.into(), kind, raw, key }, 0))
    };
    assert!(ask("nasd-01", FsidKey::Uuid([1; 16])).ends_with(" /srv/nasd/s/vms \n"));
    assert!(ask("nasd-01", FsidKey::Uuid([2; 16])).ends_with(" 300 \n"));
    assert!(ask("nasd-01", FsidKey::Number(0)).ends_with(" /srv/nasd/s \n"));
    assert!(ask("nasd-01", FsidKey::Number(1)).ends_with(" 300 \n"));
    assert!(ask("nasd-00", FsidKey::Number(0)).ends_with(" 300 \n"));
}

#[test]
fn prefill_names_addresses_before_the_domains_they_create() {
    let table = table();
    let requests = table.prefill(&[ip("192.0.2.9"), ip("203.0.113.1")]);
    let first_other = requests.iter().position(|r| !matches!(r, Request::Address { .. })).unwrap();
    let (addresses, others) = requests.split_at(first_other);
    assert!(others.iter().all(|r| !matches!(r, Request::Address { .. })));
    let known: Vec<Vec<u8>> = addresses
        .iter()
        .map(|r| match r {
            Request::Address { address, .. } => table.domain_of(*address).unwrap().into_bytes(),
            _ => unreachable!(),
        })
        .collect();
    for request in others {
        let (Request::Export { domain, .. } | Request::FileSystem { domain, .. }) = request else {
            unreachable!()
        };
        assert!(known.contains(domain));
    }
    let stranger = Request::Address { class: b"nfsd".to_vec(), address: ip("203.0.113.1") };
    assert!(!addresses.contains(&stranger));
    // Probe, 01, 02 and 03 each: root, and every visible export, two lines.
    assert_eq!(others.len(), 2 * (3 + 2 + 2 + 3));
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let root = Path::new("/srv/nasd/s");
    let new = |exports| ExportTable::new(root, exports);
    let mut deep = export("vms", 1, &[]);
    deep.path = "/srv/nasd/s/a/b".into();
    assert!(matches!(new(vec![deep]), Err(ExportError::NotBelowRoot { .. })));
    let twice = vec![export("a", 1, &[]), export("b", 1, &[])];
    assert!(matches!(new(twice), Err(ExportError::Repeated { .. })));
    let same_path = vec![export("a", 1, &[]), export("a", 2, &[])];
    assert!(matches!(new(same_path), Err(ExportError::Repeated { .. })));
    let long = vec![export(&"x".repeat(900), 1, &[])];
    assert!(matches!(new(long), Err(ExportError::BadPath { .. })));
    assert!(matches!(
        ExportTable::new(Path::new("relative"), Vec::new()),
        Err(ExportError::BadPath { .. })
    ));
}

#[test]
fn texts_of_ranges_and_uuids() {
    for bad in ["", "192.0.2.0/33", "192.0.2/24", "*", "host", "2001:db8::/129", "1.2.3.4/-1"] {
        assert!(bad.parse::<Cidr>().is_err(), "{bad}");
    }
    assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(ip("198.51.100.1")));
    assert!(!"0.0.0.0/0".parse::<Cidr>().unwrap().contains(ip("2001:db8::1")));
    let uuid: FsUuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
    assert_eq!(uuid.0[..3], [0x00, 0x11, 0x22]);
    assert_eq!(uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
    for bad in ["", "0011", "+0112233-4455-6677-8899-aabbccddeeff"] {
        assert!(bad.parse::<FsUuid>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn a_range_holds_exactly_the_addresses_that_share_its_prefix(
        base: u32, other: u32, prefix in 0_u8..=32,
    ) {
        let cidr = Cidr { address: Ipv4Addr::from_bits(base).into(), prefix };
        let mask = if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) };
        prop_assert_eq!(
            cidr.contains(Ipv4Addr::from_bits(other).into()),
            base & mask == other & mask
        );
        prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
    }

    #[test]
    fn any_uuid_reads_back(bytes: [u8; 16]) {
        prop_assert_eq!(FsUuid(bytes).to_string().parse::<FsUuid>().unwrap(), FsUuid(bytes));
    }
}
