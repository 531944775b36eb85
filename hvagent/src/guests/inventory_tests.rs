//! Guests, their mounts, and what is known when nobody answers.

use proptest::prelude::*;
use zbus::ObjectPath;

use super::*;
use crate::guests::samples::{guest_with, migration, object, running, told};
use crate::libvirt::events::Lost;

const NOW: Now = Duration::from_secs(100);

fn mount() -> PathBuf {
    PathBuf::from("/vms")
}

fn with(told: Vec<(&str, Told)>) -> Inventory {
    let mut inventory = Inventory::default();
    inventory.mounts(vec!["/vms".into(), "/vms/other".into(), "/".into()]);
    let paths: Vec<_> = told.iter().map(|(name, _)| object(name)).collect();
    inventory.listed(NOW, &paths);
    for (name, told) in told {
        inventory.told(NOW, object(name), told);
    }
    inventory
}

fn names(inventory: &Inventory) -> Vec<String> {
    inventory.names(&mount())
}

#[test]
fn the_longest_mount_point_counts() {
    let on = |path: &str| {
        let inventory = with(vec![("a", running("a", &[path]))]);
        !names(&inventory).is_empty()
    };
    assert!(on("/vms/a.raw") && on("/vms/x/../a.raw") && on("//vms/./a.raw"));
    assert!(!on("/vms/other/a.raw"), "another mount lies over it");
    assert!(!on("/vms2/a.raw") && !on("/vms/../a.raw") && !on("/local/a.raw"));
}

#[test]
fn s12_a_guest_of_which_nothing_is_known_is_on_every_mount() {
    let mut inventory = Inventory::default();
    inventory.listed(NOW, &[object("a")]);
    assert_eq!(inventory.on(&mount()).count(), 1);
}

#[test]
fn s12_a_volume_of_an_unknown_pool_is_on_every_mount() {
    let mut volume = running("a", &[]);
    let xml = "<domain type='kvm'><name>a</name><uuid>u-a</uuid><memory>1</memory><devices>\
        <disk type='volume'><source pool='p' volume='v'/><target dev='vda'/></disk>\
        </devices></domain>";
    volume.domain = Domain::parse(xml).unwrap();
    let mut inventory = with(vec![("a", volume)]);
    assert!(inventory.needs_pools() && names(&inventory) == ["a"]);
    inventory.pools(BTreeMap::from([("p".to_owned(), "/local".to_owned())]));
    assert!(!inventory.needs_pools() && names(&inventory).is_empty());
    inventory.pools(BTreeMap::from([("p".to_owned(), "/vms/pool".to_owned())]));
    assert_eq!(names(&inventory), ["a"]);
}

fn qemu(guest: &str, file: &str) -> Qemu {
    Qemu {
        pid: 5,
        started: 1,
        guest: guest.to_owned(),
        uuid: Some(format!("u-{guest}")),
        files: vec![file.into()],
        written: None,
    }
}

#[test]
fn open_files_tell_what_the_definition_does_not() {
    let mut inventory = with(vec![("a", running("a", &["/link/a.raw"]))]);
    assert!(names(&inventory).is_empty());
    inventory.processes(NOW, vec![qemu("a", "/vms/a.raw"), qemu("b", "/vms/b.raw")]);
    assert_eq!(names(&inventory), ["a", "b"]);
    assert_eq!(inventory.strays(&mount()).count(), 1, "libvirt has not named b");
}

#[test]
fn what_libvirt_told_stays_when_it_hangs_and_is_told_as_old() {
    let mut inventory = with(vec![("a", running("a", &["/vms/a.raw"]))]);
    assert_eq!(inventory.doubt(NOW), None);
    inventory.failed("it hangs".to_owned());
    let doubt = inventory.doubt(NOW + Duration::from_secs(7)).unwrap();
    assert!(doubt.contains("7 s ago") && doubt.contains("it hangs"), "{doubt}");
    assert_eq!(names(&inventory), ["a"]);
    assert!(!inventory.is_gone(NOW, "/other"), "nobody is known to be gone while it hangs");
    inventory.listed(NOW, &[object("a")]);
    assert!(inventory.is_gone(NOW, "/other") && inventory.doubt(NOW + OLD * 2).is_some());
    assert!(Inventory::default().doubt(NOW).unwrap().contains("nothing yet"));
}

#[test]
fn guests_that_are_off_or_not_listed_are_gone() {
    let mut inventory = with(vec![("a", running("a", &[])), ("b", running("b", &[]))]);
    inventory.listed(NOW, &[object("a")]);
    assert!(inventory.get(object("b").as_str()).is_none());
    let off = Told { state: DomainState::Off, ..running("a", &[]) };
    inventory.told(NOW, object("a"), off);
    assert_eq!(inventory.all().count(), 0);
}

#[test]
fn a_migration_is_seen_by_its_job_or_by_its_pause() {
    let out = guest_with(told("a", DomainState::Running, Ok(Some(migration(1, 1, 1)))));
    assert!(out.is_migrating());
    assert!(guest_with(told("a", DomainState::of((3, 2)), Ok(None))).is_migrating());
    assert!(!guest_with(running("a", &[])).is_migrating());
}

#[test]
fn events_say_what_to_ask() {
    let domain = object("a");
    let life = |change| Event::Lifecycle { domain: object("a"), change, detail: 0 };
    assert_eq!(wanted(&life(Change::Started)), Ask::One(domain.clone()));
    assert_eq!(wanted(&life(Change::Stopped)), Ask::One(domain.clone()));
    assert_eq!(wanted(&life(Change::Other(0))), Ask::Nothing);
    assert_eq!(wanted(&Event::JobCompleted { domain: domain.clone() }), Ask::One(domain));
    assert_eq!(wanted(&Event::Resync(Lost::Overrun)), Ask::All);
    let pool = ObjectPath::try_from("/p").unwrap().into();
    assert_eq!(wanted(&Event::Pool { pool }), Ask::Nothing);
}

proptest! {
    #[test]
    fn paths_never_panic(path in ".{0,60}") {
        let plain = plain(Path::new(&path));
        prop_assert!(!plain.components().any(|part| part == Component::ParentDir));
    }
}
