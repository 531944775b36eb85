//! Neighbours asked and heard, and replies acknowledged, in namespaces of their own. Needs root.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{CLIENT, CLIENT6, LIMIT, VIP, VIP6, World, must, wait_for};
use nasd_net::gate::{Deadline, Which};
use nasd_net::neighbours::Prober;
use nasd_net::sockets;

/// Asks and waits a little; who answered.
fn ask(prober: &Prober, own: &str, target: &str) -> Vec<IpAddr> {
    prober.ask(World::ip(own), World::ip(target)).unwrap();
    let until = Instant::now() + Duration::from_millis(600);
    while Instant::now() < until {
        let answers = prober.answers();
        if !answers.is_empty() {
            return answers;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Vec::new()
}

#[test]
fn s4_neighbours_answer_only_through_an_open_gate() {
    let world = World::new("nb", 1);
    let gate = world.stand_up(0);
    world.address(0);
    let prober = Prober::open(world.nodes[0].service.netns(), "svc0", true).unwrap();
    let shut = prober.ask(World::ip(VIP), World::ip(CLIENT));
    assert!(shut.is_err(), "{shut:?}");
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    for (own, target) in [(VIP, CLIENT), (VIP6, CLIENT6)] {
        assert_eq!(ask(&prober, own, target), [World::ip(target)]);
    }
    assert!(ask(&prober, VIP, "10.77.0.77").is_empty(), "nobody has that address");
    assert!(prober.ask(World::ip(VIP), World::ip(CLIENT6)).is_err(), "two families");
    must(&world.client, "ip link set eth0 down");
    assert!(ask(&prober, VIP, CLIENT).is_empty());
}

#[test]
fn a_neighbour_that_only_asks_is_not_heard() {
    let world = World::new("nq", 1);
    world.stand_up(0).set(Which::Both, Deadline::NEVER).unwrap();
    world.address(0);
    let prober = Prober::open(world.nodes[0].service.netns(), "svc0", true).unwrap();
    assert!(world.reachable(VIP) && world.reachable(VIP6), "the client asked for us");
    let heard = prober.answers();
    // The service's own kernel may have asked back, and was answered; nothing else may count.
    let client = [World::ip(CLIENT), World::ip(CLIENT6)];
    assert!(heard.iter().all(|ip| client.contains(ip)), "{heard:?}");
}

#[test]
fn acknowledged_replies_are_counted() {
    let world = World::new("ack", 1);
    world.stand_up(0).set(Which::Both, Deadline::NEVER).unwrap();
    world.address(0);
    let service = &world.nodes[0].service;
    let bind = || TcpListener::bind("[::]:2049".parse::<SocketAddr>().unwrap()).unwrap();
    let listener = service.netns().run(bind).unwrap();
    let to = SocketAddr::new(World::ip(VIP), 2049);
    let mut client = world.client.run(|| TcpStream::connect_timeout(&to, LIMIT).unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let counted = || {
        let traffic = sockets::traffic(service, 2049, LIMIT).unwrap();
        assert_eq!(traffic.len(), 1);
        assert_eq!(traffic[0].connection.peer, client.local_addr().unwrap());
        traffic[0].acknowledged.unwrap()
    };
    let before = counted();
    server.write_all(&[7; 1000]).unwrap();
    let mut buffer = [0; 1000];
    client.read_exact(&mut buffer).unwrap();
    wait_for("the acknowledgement", LIMIT, || {
        sockets::traffic(service, 2049, LIMIT).unwrap()[0].acknowledged.unwrap() >= before + 1000
    });
}
