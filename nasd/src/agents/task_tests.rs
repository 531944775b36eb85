//! The task with real channels: those who wait, those who do not read, those who are gone.

use nasd_proto::agent_news::Kind as NewsKind;
use nasd_proto::move_news::What;
use nasd_proto::{AgentState, MountState, Readiness};

use super::*;

type Inbox = mpsc::Receiver<Result<AgentNews, Status>>;

fn start() -> Agents {
    Agents::start(Book::new("nas1".into(), ["vms".to_owned()], Vec::new()))
}

/// An agent that has the service mounted.
async fn attach(agents: &Agents, host: &str) -> (StreamId, Inbox, oneshot::Receiver<()>) {
    let (outbox, inbox) = mpsc::channel(UNREAD);
    let (alive, over) = oneshot::channel();
    let attaching = Attaching { host: host.into(), version: "1".into(), outbox, alive };
    let stream = agents.attach(attaching).await.unwrap();
    let mount =
        MountState { service: "vms".into(), phase: "normal".into(), ..MountState::default() };
    agents.heard(stream, Kind::State(AgentState { mounts: vec![mount] })).await;
    (stream, inbox, over)
}

fn ask(wait: Duration) -> Ask {
    let keep = Duration::from_secs(60);
    let terms = Terms { epoch: 8, wait, keep, force: false, predicted_stall_ms: 0 };
    Ask { service: "vms".into(), terms }
}

async fn next(inbox: &mut Inbox) -> NewsKind {
    let news = tokio::time::timeout(Duration::from_secs(10), inbox.recv()).await.unwrap();
    news.unwrap().unwrap().kind.unwrap()
}

async fn announced(inbox: &mut Inbox) -> MoveId {
    match next(inbox).await {
        NewsKind::Announce(a) => a.move_id,
        other => panic!("not an announcement: {other:?}"),
    }
}

async fn told(inbox: &mut Inbox) -> What {
    loop {
        match next(inbox).await {
            NewsKind::News(news) => return news.what(),
            NewsKind::Announce(_) => {}
            NewsKind::Welcome(w) => panic!("a second welcome: {w:?}"),
        }
    }
}

fn codes(found: &[Finding]) -> Vec<&'static str> {
    found.iter().map(|f| f.code).collect()
}

#[tokio::test]
async fn the_asker_hears_as_soon_as_all_are_ready() {
    let agents = start();
    let (stream, mut inbox, _over) = attach(&agents, "hv1").await;
    let asking = tokio::spawn({
        let agents = agents.clone();
        async move { agents.announce(ask(Duration::from_secs(60))).await }
    });
    let move_id = announced(&mut inbox).await;
    let said = Readiness { service: "vms".into(), move_id, ready: true, ..Readiness::default() };
    agents.heard(stream, Kind::Readiness(said)).await;
    assert_eq!(asking.await.unwrap(), []);
    assert_eq!(agents.moving("vms", 8).await, move_id);
    agents.say("vms", Said::Cut { epoch: 8 });
    assert_eq!(told(&mut inbox).await, What::Cut);
}

#[tokio::test]
async fn a_refused_move_is_withdrawn_by_itself() {
    let agents = start();
    let (_stream, mut inbox, _over) = attach(&agents, "hv1").await;
    let found = agents.announce(ask(Duration::from_millis(300))).await;
    assert_eq!(codes(&found), ["hypervisor-not-ready"]);
    assert_eq!(told(&mut inbox).await, What::Withdrawn);
}

#[tokio::test]
async fn an_abort_ends_the_waiting_and_withdraws() {
    let agents = start();
    let (_stream, mut inbox, _over) = attach(&agents, "hv1").await;
    assert!(!agents.abort("vms").await, "nobody waits");
    let asking = tokio::spawn({
        let agents = agents.clone();
        async move { agents.announce(ask(Duration::from_secs(60))).await }
    });
    announced(&mut inbox).await;
    assert!(agents.abort("vms").await);
    let found = asking.await.unwrap();
    assert!(found[0].refuses && found[0].code == "aborted");
    assert_eq!(told(&mut inbox).await, What::Withdrawn);
}

#[tokio::test]
async fn s11_a_move_whose_asker_is_gone_is_withdrawn() {
    let agents = start();
    let (_stream, mut inbox, _over) = attach(&agents, "hv1").await;
    let asking = tokio::spawn({
        let agents = agents.clone();
        async move { agents.announce(ask(Duration::from_secs(60))).await }
    });
    announced(&mut inbox).await;
    asking.abort();
    assert_eq!(told(&mut inbox).await, What::Withdrawn);
}

#[tokio::test]
async fn s8_a_slow_reader_loses_its_stream_and_holds_up_nobody() {
    let agents = start();
    let (_slow, _unread, over) = attach(&agents, "slow").await;
    let (_stream, mut inbox, _over) = attach(&agents, "hv1").await;
    for epoch in 0..=UNREAD as u64 {
        agents.say("vms", Said::Opened { epoch });
        assert_eq!(told(&mut inbox).await, What::Opened);
    }
    assert_eq!(agents.attached().await, ["hv1"]);
    assert!(over.await.is_err(), "its reader is told to end");
}

#[tokio::test]
async fn s8_telling_never_waits_and_s12_no_answer_refuses() {
    let (commands, _inbox) = mpsc::channel(1);
    let (news, _told) = mpsc::channel(1);
    let hung = Agents { commands, news };
    let began = Instant::now();
    for epoch in 0..1000 {
        hung.say("vms", Said::Cut { epoch });
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    let found = hung.announce(ask(Duration::ZERO)).await;
    assert_eq!((codes(&found), found[0].refuses), (vec!["hypervisors-unknown"], true));
    assert!(hung.look("vms", 0, true).await[0].refuses, "nor does force make it known");
    assert_eq!(hung.moving("vms", 8).await, 0);
    assert_eq!(hung.status().await, None);
}

#[tokio::test]
async fn stalls_come_at_once_when_all_have_told_and_else_after_the_wait() {
    let agents = start();
    assert!(agents.stalls("vms", Duration::from_secs(60)).await.is_empty());
    let (stream, _inbox, _over) = attach(&agents, "hv1").await;
    assert!(agents.stalls("vms", Duration::from_millis(300)).await.is_empty());
    let report =
        nasd_proto::StallReport { service: "vms".into(), stall_ms: 7, ..Default::default() };
    let asking = agents.stalls("vms", Duration::from_secs(60));
    let telling = agents.heard(stream, Kind::Stall(report));
    let (told, _) = tokio::join!(asking, telling);
    assert_eq!((told.len(), told[0].host.as_str()), (1, "hv1"));
}
