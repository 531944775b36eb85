//! Namespaces, links, addresses, routes, sockets and tickles in namespaces of their own. Needs root.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{CLIENT, LIMIT, VIP, VIP6, World, must, output, wait_for};
use nasd_net::addr::{self, IfAddr, Lifetime};
use nasd_net::gate::{Deadline, Which};
use nasd_net::link::{self, Ensured, MacAddr, MacvlanSpec};
use nasd_net::route::{self, Route};
use nasd_net::sockets::{self, Connection};
use nasd_net::tickle::{Payload, Tickler};
use nasd_net::{NetError, Netns, NetnsWorker};

fn name(tag: &str) -> String {
    format!("nn{}-{tag}", std::process::id())
}

#[test]
fn namespaces_are_made_adopted_entered_and_removed() {
    let name = name("life");
    assert!(matches!(Netns::open(&name), Err(NetError::NamespaceMissing { .. })));
    let made = Netns::create(&name).unwrap();
    let adopted = Netns::create(&name).unwrap();
    assert_eq!(made.id().unwrap(), adopted.id().unwrap());
    assert_ne!(made.id().unwrap(), Netns::current().unwrap().id().unwrap());
    let inside = || Netns::current().unwrap().id().unwrap();
    assert_eq!(made.run(inside).unwrap(), made.id().unwrap());
    assert_eq!(made.spawn(inside).unwrap().join().unwrap().unwrap(), made.id().unwrap());
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(String::from_utf8(listed.stdout).unwrap().contains(&name));
    let mut child = Command::new("readlink");
    child.arg("/proc/self/ns/net");
    made.enter_on_exec(&mut child);
    let seen = String::from_utf8(child.output().unwrap().stdout).unwrap();
    let mine = made.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
    assert_eq!(seen.trim(), mine.to_str().unwrap());
    Netns::remove(&name).unwrap();
    Netns::remove(&name).unwrap();
    assert!(matches!(Netns::open(&name), Err(NetError::NamespaceMissing { .. })));

    // What a crash between the two steps leaves behind.
    std::fs::write(format!("/run/netns/{name}"), "").unwrap();
    assert!(matches!(Netns::open(&name), Err(NetError::NotANamespace { .. })));
    assert!(Netns::create(&name).unwrap().run(inside).is_ok());
    Netns::remove(&name).unwrap();
}

#[test]
fn s8_a_busy_worker_does_not_hold_its_callers_and_drops_late_calls() {
    let name = name("busy");
    let netns = Netns::create(&name).unwrap();
    let worker = std::sync::Arc::new(NetnsWorker::start(&netns).unwrap());
    let blocker = std::sync::Arc::clone(&worker);
    let busy = std::thread::spawn(move || {
        blocker.call("sleep", LIMIT, |_| {
            std::thread::sleep(Duration::from_millis(600));
            Ok(())
        })
    });
    std::thread::sleep(Duration::from_millis(100));
    let (ran, seen) = std::sync::mpsc::channel();
    let begun = Instant::now();
    let late = worker.call("late", Duration::from_millis(50), move |_| {
        let _ = ran.send(());
        Ok(())
    });
    assert!(matches!(late, Err(NetError::Timeout { .. })));
    assert!(begun.elapsed() < Duration::from_millis(300));
    busy.join().unwrap().unwrap();
    worker.call("next", LIMIT, |_| Ok(())).unwrap();
    assert!(seen.try_recv().is_err(), "a call given up must not run later");
    Netns::remove(&name).unwrap();
}

#[test]
fn macvlans_are_made_found_and_told_from_foreign_ones() {
    let world = World::new("mv", 2);
    let node = &world.nodes[0];
    let ensure = |spec: &MacvlanSpec| link::ensure_macvlan(&node.host, &node.service, spec, LIMIT);
    assert_eq!(ensure(&node.spec).unwrap(), Ensured::Created);
    assert_eq!(ensure(&node.spec).unwrap(), Ensured::Found);
    let made = link::get(&node.service, "svc0", LIMIT).unwrap();
    assert!(!made.up && made.mac == Some(node.spec.mac));
    let other_mac = MacvlanSpec { mac: MacAddr([2, 0, 0, 0, 0, 1]), ..node.spec.clone() };
    assert!(matches!(
        ensure(&other_mac),
        Err(NetError::ForeignInterface { property: "address", .. })
    ));
    let no_parent = MacvlanSpec { parent: "nosuch0".into(), ..node.spec.clone() };
    assert!(matches!(ensure(&no_parent), Err(NetError::InterfaceMissing { .. })));
    // The other host's eth0 has a number and a name like ours: only its namespace tells.
    let elsewhere = link::ensure_macvlan(&world.nodes[1].host, &node.service, &node.spec, LIMIT);
    assert!(matches!(elsewhere, Err(NetError::ForeignInterface { property: "parent", .. })));

    must(node.service.netns(), "ip link add veth9 type veth peer name veth8");
    let taken = MacvlanSpec { name: "veth9".into(), ..node.spec.clone() };
    assert!(matches!(ensure(&taken), Err(NetError::ForeignInterface { property: "kind", .. })));

    link::delete(&node.service, "svc0", LIMIT).unwrap();
    link::delete(&node.service, "svc0", LIMIT).unwrap();
    assert!(matches!(
        link::get(&node.service, "svc0", LIMIT),
        Err(NetError::InterfaceMissing { .. })
    ));
    must(
        node.host.netns(),
        &format!(
            "ip link add link eth0 name svc0 netns {} address {} type macvlan mode private",
            node.service.netns().name(),
            node.spec.mac
        ),
    );
    assert!(matches!(ensure(&node.spec), Err(NetError::ForeignInterface { property: "mode", .. })));
}

#[test]
fn settings_and_carrier_are_the_namespaces_own() {
    let world = World::new("set", 1);
    let node = &world.nodes[0];
    link::ensure_macvlan(&node.host, &node.service, &node.spec, LIMIT).unwrap();
    link::prepare(&node.service, "svc0", LIMIT).unwrap();
    let read = |key: &str| output(node.service.netns(), &format!("cat /proc/sys/net/{key}"));
    assert_eq!(read("ipv4/conf/svc0/promote_secondaries").trim(), "1");
    assert_eq!(read("ipv6/conf/svc0/accept_dad").trim(), "0");
    assert_eq!(read("ipv4/conf/svc0/arp_ignore").trim(), "1");
    assert!(link::get(&node.service, "lo", LIMIT).unwrap().up);

    assert!(link::carrier(&node.host, "eth0", LIMIT).unwrap());
    must(&world.client, "true");
    link::set_down(&node.host, "eth0", LIMIT).unwrap();
    assert!(!link::carrier(&node.host, "eth0", LIMIT).unwrap());
}

#[test]
fn addresses_live_as_long_as_they_are_told() {
    let world = World::new("addr", 1);
    let _gate = world.stand_up(0);
    let service = &world.nodes[0].service;
    let v4 = IfAddr { ip: World::ip(VIP), prefix: 24 };
    let v6 = IfAddr::host(World::ip(VIP6));
    let short = Lifetime::new(2, 2).unwrap();
    for address in [v4, v6] {
        let refreshed = addr::refresh(service, "svc0", address, short, LIMIT);
        assert!(matches!(refreshed, Err(NetError::AddressMissing { .. })));
        addr::add(service, "svc0", address, short, LIMIT).unwrap();
        addr::refresh(service, "svc0", address, short, LIMIT).unwrap();
    }
    let listed = addr::list(service, "svc0", LIMIT).unwrap();
    let ours: Vec<_> = listed.iter().filter(|l| [v4, v6].contains(&l.address)).collect();
    assert_eq!(ours.len(), 2);
    assert!(ours.iter().all(|l| l.lifetime.valid() <= 2 && !l.tentative));
    let gone = || {
        let listed = addr::list(service, "svc0", LIMIT).unwrap();
        !listed.iter().any(|l| [v4, v6].contains(&l.address))
    };
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!gone());
    wait_for("the kernel to remove them", Duration::from_secs(4), gone);
    assert!(!addr::delete(service, "svc0", v4, LIMIT).unwrap());
    addr::add(service, "svc0", v4, Lifetime::FOREVER, LIMIT).unwrap();
    assert!(addr::delete(service, "svc0", v4, LIMIT).unwrap());
}

#[test]
fn h8_deleting_the_first_address_keeps_the_others() {
    let world = World::new("h8", 1);
    let _gate = world.stand_up(0);
    let service = &world.nodes[0].service;
    let addresses: Vec<_> = ["10.77.0.9", "10.77.0.10"]
        .map(|ip| IfAddr { ip: World::ip(ip), prefix: 24 })
        .into_iter()
        .collect();
    for address in &addresses {
        addr::add(service, "svc0", *address, Lifetime::FOREVER, LIMIT).unwrap();
    }
    let listed = addr::list(service, "svc0", LIMIT).unwrap();
    assert!(listed.iter().any(|l| l.address == addresses[1] && l.secondary));
    assert!(addr::delete(service, "svc0", addresses[0], LIMIT).unwrap());
    let listed = addr::list(service, "svc0", LIMIT).unwrap();
    assert!(listed.iter().any(|l| l.address == addresses[1] && !l.secondary));
}

#[test]
fn routes_are_added_replaced_and_needed_again_after_the_address_went() {
    let world = World::new("route", 1);
    let gate = world.stand_up(0);
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    let service = &world.nodes[0].service;
    let host = IfAddr::host(World::ip(VIP));
    let net = Route::OnLink(IfAddr { ip: World::ip(VIP), prefix: 24 });
    let gateway = Route::Default(World::ip(CLIENT));
    let gateway6 = Route::Default(World::ip("fd77::2"));
    addr::add(service, "svc0", host, Lifetime::FOREVER, LIMIT).unwrap();
    for route in [net, gateway, net, gateway, gateway6, gateway6] {
        route::ensure(service, "svc0", route, LIMIT).unwrap();
    }
    assert!(world.reachable(VIP), "a /32 with an on-link route answers");
    let routes = || output(service.netns(), "ip route");
    assert!(routes().contains(&format!("default via {CLIENT}")), "{}", routes());
    assert!(output(service.netns(), "ip -6 route").contains("default via fd77::2"));
    addr::delete(service, "svc0", host, LIMIT).unwrap();
    assert!(!routes().contains("default"), "{}", routes());
}

/// A connection from the client to a listener at the service, both ends.
fn connect(world: &World, node: usize, ip: &str) -> (TcpStream, TcpStream, TcpListener) {
    let listener = world.nodes[node].service.netns().run(|| {
        let any = if ip.contains(':') { "[::]:2049" } else { "0.0.0.0:2049" };
        TcpListener::bind(any.parse::<SocketAddr>().unwrap()).unwrap()
    });
    let listener = listener.unwrap();
    let to = SocketAddr::new(World::ip(ip), 2049);
    let client = world.client.run(|| TcpStream::connect_timeout(&to, LIMIT).unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server, listener)
}

#[test]
fn connections_are_listed_and_destroyed() {
    let world = World::new("diag", 1);
    world.stand_up(0).set(Which::Both, Deadline::NEVER).unwrap();
    world.address(0);
    let service = &world.nodes[0].service;
    assert_eq!(sockets::established(service, 2049, LIMIT).unwrap(), []);
    // A listener on [::] gets IPv4 clients as mapped addresses.
    let (client6, server6, listener) = connect(&world, 0, VIP6);
    let to = SocketAddr::new(World::ip(VIP), 2049);
    let client4 = world.client.run(|| TcpStream::connect_timeout(&to, LIMIT).unwrap()).unwrap();
    let (server4, _) = listener.accept().unwrap();
    assert!(server4.peer_addr().unwrap().is_ipv6(), "mapped");
    let pair = |client: &TcpStream| Connection {
        local: client.peer_addr().unwrap(),
        peer: client.local_addr().unwrap(),
    };
    let mut wanted = vec![pair(&client4), pair(&client6)];
    wanted.sort();
    assert_eq!(sockets::established(service, 2049, LIMIT).unwrap(), wanted);
    assert_eq!(sockets::established(service, 2050, LIMIT).unwrap(), []);
    for connection in &wanted {
        match sockets::destroy(service, *connection, LIMIT) {
            Err(NetError::Unsupported { .. }) => return,
            done => done.unwrap(),
        }
        let again = sockets::destroy(service, *connection, LIMIT);
        assert!(matches!(again, Err(NetError::NoSuchConnection { .. })), "{again:?}");
    }
    assert_eq!(sockets::established(service, 2049, LIMIT).unwrap(), []);
    drop((server4, server6));
    // The kernel falls back to the listener when the connection is gone: it must survive.
    let alive = world.client.run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap();
    assert!(alive.is_ok(), "{alive:?}");
}

/// The old node falls silent, the address comes up on the new one, which has no such connection.
fn tickled(tag: &str, ip: &str, payload: Payload) {
    let world = World::new(tag, 2);
    let old = world.stand_up(0);
    world.address(0);
    old.set(Which::Both, Deadline::NEVER).unwrap();
    let (mut client, _server, _listener) = connect(&world, 0, ip);
    let recorded = sockets::established(&world.nodes[0].service, 2049, LIMIT).unwrap();
    assert_eq!(recorded.len(), 1);
    old.close(Which::Both).unwrap();
    world.unaddress(0);

    let new = world.stand_up(1);
    let tickler = Tickler::open(world.nodes[1].service.netns()).unwrap();
    world.address(1);
    new.set(Which::Both, Deadline::NEVER).unwrap();
    // Same MAC on both nodes: the bridge learns the new port from this.
    let service = world.nodes[1].service.netns();
    let announcer = nasd_net::frames::Announcer::open(service, "svc0").unwrap();
    announcer.announce(World::ip(ip)).unwrap();

    // Without a tickle an idle client notices nothing.
    client.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let stuck = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(stuck.kind(), ErrorKind::WouldBlock);

    client.set_read_timeout(Some(LIMIT)).unwrap();
    let begun = Instant::now();
    for connection in &recorded {
        tickler.send(connection.local, connection.peer, payload).unwrap();
    }
    let reset = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_tickle_kills_a_stuck_ipv4_connection() {
    tickled("t4", VIP, Payload::Empty);
}

#[test]
fn a_tickle_with_a_byte_kills_a_stuck_ipv4_connection() {
    tickled("t4b", VIP, Payload::OneByte);
}

#[test]
fn a_tickle_kills_a_stuck_ipv6_connection() {
    tickled("t6", VIP6, Payload::Empty);
}

#[test]
fn families_are_not_mixed() {
    let here = Netns::current().unwrap();
    let tickler = Tickler::open(&here).unwrap();
    let mixed =
        tickler.send("10.0.0.1:1".parse().unwrap(), "[fd00::1]:1".parse().unwrap(), Payload::Empty);
    assert!(matches!(mixed, Err(NetError::FamilyMismatch { .. })));
}
