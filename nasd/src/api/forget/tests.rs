//! Which facts permit to forget a host, and what is told of it (S7, S12).

use std::collections::BTreeMap;

use super::facts::{Client, Facts, NodeFacts, Server};
use super::plan::{self, Found, Objection};
use super::{check, execute, refusal, text};
use crate::agents::status::KnownHost;
use crate::api::recover::{Attempt, Heard};

fn client(owner: &str, address: &str, renewed_s: Option<i64>) -> Client {
    let host = owner.strip_prefix("Linux NFSv4.2 ").map(|h| h.rsplit('/').next().unwrap().into());
    Client {
        owner: owner.into(),
        name: owner.into(),
        host,
        address: address.parse().ok(),
        status: "courtesy".into(),
        renewed_s,
    }
}

fn serving(clients: Vec<Client>) -> Server {
    Server::Here { lease_s: 15, grace_s: 90, in_grace: false, removals_ignored: false, clients }
}

fn agent(host: &str, attached: bool, heard_ms: u64) -> KnownHost {
    KnownHost { host: host.into(), attached, heard_ms, services: vec!["vms".into()] }
}

/// hv3 is dead, hv1 lives; nas1 serves `vms`, nas2 serves `iso`. nas1 was asked.
fn dead() -> Facts {
    let vms = serving(vec![
        client("Linux NFSv4.2 hv1", "192.0.2.1", Some(3)),
        client("Linux NFSv4.2 7f2e/hv3", "192.0.2.3", Some(312)),
    ]);
    let iso = serving(vec![client("Linux NFSv4.2 hv1", "192.0.2.1", Some(3))]);
    let node = |node: &str, agents, vms, iso| NodeFacts {
        node: node.into(),
        agents: Some(agents),
        services: BTreeMap::from([("vms".to_owned(), vms), ("iso".to_owned(), iso)]),
    };
    let here = vec![agent("hv1", true, 900), agent("hv3", false, 312_000)];
    Facts {
        host: "hv3".into(),
        here: node("nas1", here, vms, Server::Elsewhere),
        peer: "nas2".into(),
        there: Heard::Known(node("nas2", Vec::new(), Server::Elsewhere, iso)),
    }
}

fn there(f: &mut Facts) -> &mut NodeFacts {
    match &mut f.there {
        Heard::Known(node) => node,
        Heard::Unknown(why) => panic!("{why}"),
    }
}

fn clients(f: &mut Facts) -> &mut Vec<Client> {
    match f.here.services.get_mut("vms") {
        Some(Server::Here { clients, .. }) => clients,
        other => panic!("{other:?}"),
    }
}

/// The sentence that is asked for, or what speaks against it.
fn judge(f: &Facts) -> Result<String, Objection> {
    let objection = plan::judge(f, &plan::find(&f.host, &[], &f.nodes()));
    objection.map_or_else(|| Ok(plan::sentence(&f.host)), Err)
}

fn why_not(f: &Facts) -> String {
    judge(f).unwrap_err().to_string()
}

fn ask(sentence: &str) -> Result<String, Objection> {
    Ok(sentence.into())
}

#[test]
fn a_silent_host_can_be_forgotten_with_its_sentence() {
    let f = dead();
    assert_eq!(judge(&f), ask("hv3 is dead"));
    let found = plan::find("hv3", &[], &f.nodes()).unwrap();
    let owners: Vec<_> = found.clients.iter().map(|c| c.client.owner.as_str()).collect();
    assert_eq!(owners, ["Linux NFSv4.2 7f2e/hv3"], "nobody else");
    assert_eq!(found.agents.len(), 1);
    assert!(found.at("nas1") && !found.at("nas2"));
    assert_eq!(found.services().into_iter().collect::<Vec<_>>(), ["vms"]);
}

#[test]
fn only_the_exact_sentence_confirms_it() {
    assert!(judge(&dead()).is_ok());
    assert_eq!(refusal(None, "hv3", "hv3 is dead"), None);
    for wrong in ["", "yes", "hv3 is dead ", "hv1 is dead", "HV3 is dead"] {
        assert!(refusal(None, "hv3", wrong).is_some(), "{wrong:?}");
    }
    let no = Objection { why: "it lives".into(), instead: "no".into() };
    assert_eq!(refusal(Some(&no), "hv3", "hv3 is dead").unwrap(), "it lives; no");
}

#[test]
fn s12_a_host_that_is_heard_lives() {
    let mut f = dead();
    f.here.agents = Some(vec![agent("hv3", true, 14_900)]);
    assert!(why_not(&f).contains("hvagent of hv3 spoke 14 s ago: it lives"), "{}", why_not(&f));
    let mut f = dead();
    there(&mut f).agents = Some(vec![agent("hv3.example.com", true, 0)]);
    assert!(why_not(&f).contains("nas2 hears it"), "the other node counts, and the short name");
    for (renewed_s, told) in [(Some(15), "15 s ago: it lives"), (None, "is not known")] {
        let mut f = dead();
        clients(&mut f)[1].renewed_s = renewed_s;
        assert!(why_not(&f).contains(told), "{}", why_not(&f));
    }
    // It has been started again: a second client of that name is on its way.
    let mut f = dead();
    clients(&mut f).push(client("Linux NFSv4.2 hv3", "192.0.2.3", Some(1)));
    assert!(why_not(&f).contains("with vms 1 s ago"), "{}", why_not(&f));
}

#[test]
fn s12_what_a_node_that_answers_does_not_know_of_itself_permits_nothing() {
    let mut f = dead();
    there(&mut f).agents = None;
    assert!(why_not(&f).contains("on nas2 does not answer"), "{}", why_not(&f));
    let mut f = dead();
    there(&mut f).services.insert("iso".into(), Server::Unknown("nasd-io is gone".into()));
    assert!(why_not(&f).contains("whether iso knows hv3 is not known on nas2: nasd-io is gone"));
}

#[test]
fn s7_a_grace_ends_by_itself_and_is_waited_for() {
    for (grace, ignored, told) in
        [(true, true, "in 90 s at most"), (false, true, "in 15 s at most")]
    {
        let mut f = dead();
        let servers = &mut there(&mut f).services;
        let Some(Server::Here { in_grace, removals_ignored, .. }) = servers.get_mut("iso") else {
            panic!("nas2 serves iso");
        };
        (*in_grace, *removals_ignored) = (grace, ignored);
        assert!(why_not(&f).contains(told), "{}", why_not(&f));
    }
}

#[test]
fn a_host_is_found_by_name_label_or_address() {
    let named = |host: &str| Facts { host: host.into(), ..dead() };
    assert_eq!(judge(&named("192.0.2.3")), ask("192.0.2.3 is dead"));
    assert_eq!(judge(&named("::ffff:192.0.2.3")), ask("::ffff:192.0.2.3 is dead"));
    assert!(why_not(&named("192.0.2.1")).contains("hvagent of hv1"), "its agent speaks for it");
    let told = why_not(&named("hv4"));
    assert!(told.starts_with("no client or agent is called hv4; known are hv1, hv3;"), "{told}");
    assert!(why_not(&named("hv3.example.com")).contains("hv1, hv3"), "a long name must be exact");
    let mut f = named("hv3.example.com");
    f.here.agents = Some(vec![agent("hv3", true, 0)]);
    assert!(why_not(&f).contains("it lives"), "a shorter name may be the host's");
    let mut f = dead();
    clients(&mut f)[1] = client("Linux NFSv4.2 hv3.example.com", "192.0.2.3", Some(312));
    assert_eq!(judge(&f), ask("hv3 is dead"));
    assert_eq!(
        judge(&Facts { host: "hv3.example.com".into(), ..f.clone() }),
        ask("hv3.example.com is dead")
    );
    clients(&mut f).push(client("Linux NFSv4.2 hv3.example.net", "192.0.2.9", Some(312)));
    assert!(why_not(&f).starts_with("hv3 may be hv3.example.com or hv3.example.net;"));
    let mut f = dead();
    f.here.agents = Some(vec![agent("hv3.a", false, 99_000), agent("hv3.b", false, 99_000)]);
    there(&mut f).agents = Some(Vec::new());
    assert!(why_not(&f).starts_with("hv3 may be hv3.a or hv3.b;"), "{}", why_not(&f));
}

#[test]
fn an_address_stands_for_the_host_and_all_that_it_has() {
    let mut f = Facts { host: "192.0.2.3".into(), ..dead() };
    let Some(Server::Here { clients, .. }) = there(&mut f).services.get_mut("iso") else {
        panic!("nas2 serves iso");
    };
    clients.push(client("Linux NFSv4.2 hv3", "198.51.100.3", Some(40)));
    clients.push(client("VMware ESX", "192.0.2.77", Some(400)));
    let found = plan::find(&f.host, &[], &f.nodes()).unwrap();
    assert!(found.at("nas2"), "over its other address");
    assert_eq!((found.clients.len(), found.agents.len()), (2, 1));
    // The other node knows only what it was told.
    let names: Vec<String> = found.names.into_iter().collect();
    let at_peer = plan::find(&f.host, &names, &[f.there.known().unwrap()]).unwrap();
    assert_eq!(at_peer.clients.len(), 1);
    let other = Facts { host: "192.0.2.77".into(), ..f };
    assert_eq!(judge(&other), ask("192.0.2.77 is dead"), "not every client is Linux");
}

#[test]
fn a_node_that_does_not_answer_is_told_of() {
    let mut f = dead();
    f.there = Heard::Unknown("its nasd does not answer: timed out".into());
    assert_eq!(judge(&f), ask("hv3 is dead"), "nothing can be done there");
    let rest = text::not_told(&f).unwrap();
    assert!(rest.contains("iso, not served here, may still remember hv3"), "{rest}");
    f.host = "hv4".into();
    assert!(why_not(&f).contains("what nas2 knows is not known"), "{}", why_not(&f));
    assert_eq!(text::not_told(&dead()), None);
}

#[test]
fn the_explanation_says_first_what_to_do() {
    let f = dead();
    let found = plan::find("hv3", &[], &f.nodes()).unwrap();
    let told = text::explain(&f, Some(&found), judge(&f).err().as_ref());
    assert!(told.starts_with("first\n  switch hv3 off or fence it"), "{told}");
    for part in [
        r#"vms on nas1: "Linux NFSv4.2 7f2e/hv3" from 192.0.2.3, courtesy, renewed its lease 312 s ago"#,
        "hvagent of hv3: nas1 heard it 312 s ago",
        "lose their locks and opens, and could be\n  started twice",
        "vms: its opens and locks are released",
    ] {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
    assert!(!told.contains("is it the network"));
    let mut f = dead();
    clients(&mut f)[0].renewed_s = Some(300);
    let found = plan::find("hv3", &[], &f.nodes()).unwrap();
    let told = text::explain(&f, Some(&found), judge(&f).err().as_ref());
    assert!(told.contains("no client of vms has renewed its lease: is it the network"), "{told}");
    let told = text::explain(&f, None, Some(&Objection { why: "a".into(), instead: "b".into() }));
    assert!(told.contains("not possible now\n  a\n  b\n"), "{told}");
}

#[test]
fn what_came_of_all_parts_is_never_told_better_than_it_is() {
    let done = || Attempt::Done("vms".into());
    let refused = || Attempt::Refused("iso".into());
    let failed = || Attempt::Failed("img".into());
    let unknown = || Attempt::Unknown("nas2".into());
    for (parts, told) in [
        (vec![done(), done()], ("done", "vms\nvms")),
        (vec![refused(), refused()], ("refused", "iso\niso")),
        (vec![done(), refused()], ("failed", "vms\niso")),
        (vec![failed(), refused()], ("failed", "img\niso")),
        (vec![failed(), unknown(), done()], ("unknown", "img\nnas2\nvms")),
        (vec![unknown(), refused()], ("unknown", "nas2\niso")),
        (vec![], ("done", "it is known no more")),
    ] {
        assert_eq!(execute::sum(parts).told(), told);
    }
}

#[test]
fn facts_travel_without_what_only_the_own_node_can_use() {
    let f = dead();
    let wire = serde_json::to_string(&f.here).unwrap();
    let read: NodeFacts = serde_json::from_str(&wire).unwrap();
    let names = |node: &NodeFacts| match &node.services["vms"] {
        Server::Here { clients, .. } => clients.iter().map(|c| c.name.len()).sum::<usize>(),
        other => panic!("{other:?}"),
    };
    assert_eq!((names(&read), names(&f.here) > 0), (0, true));
    assert_eq!(read.agents, f.here.agents);
    assert_eq!(Found::default().names.len(), 0);
}

#[test]
fn names_that_no_host_can_have_are_refused() {
    assert!(check("hv3.example.com").is_ok() && check("2001:db8::3").is_ok());
    for bad in ["", "h v", "a/b", "hv3\n", "hü3", &"x".repeat(256)] {
        assert!(check(bad).is_err(), "{bad:?}");
    }
}
