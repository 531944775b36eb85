//! The printed form, the exit codes, and what is understood of the agent's answer.

use clap::Parser;

use super::*;
use crate::check::reports::{NoReport, Received};

fn found() -> Vec<Finding> {
    vec![
        Finding::new(Severity::Error, "mount-soft", "/vm", "option soft", "mount with hard"),
        Finding::new(
            Severity::Error,
            "pool-not-mounted",
            "vms",
            "nothing \u{1b}[2Jthere",
            "start it",
        ),
        Finding::new(Severity::Warning, "own-name-loopback", "hv1", "127.0.1.1", "edit /etc/hosts"),
        Finding::new(Severity::Info, "clock-unknown", "hv1", "no bus", "look"),
    ]
}

const SHOWN: &str = "\
hv1: 2 errors, 1 warning

errors
  mount-soft        /vm
      seen  option soft
      do    mount with hard
  pool-not-mounted  vms
      seen  nothing  [2Jthere
      do    start it

warnings
  own-name-loopback  hv1
      seen  127.0.1.1
      do    edit /etc/hosts

worth knowing
  clock-unknown  hv1
      seen  no bus
      do    look
";

#[test]
fn the_printed_form() {
    let verdict = verdict("hv1".into(), None, found());
    assert_eq!(shown(&verdict, Paint(false)), SHOWN);
    let coloured = shown(&verdict, Paint(true));
    assert!(coloured.contains("\u{1b}[1;31merrors\u{1b}[0m") && !coloured.contains("\u{1b}[2J"));
}

#[test]
fn a_migration_without_findings() {
    let migration = Migration { guest: "vm1".into(), to: "hv2".into() };
    let verdict = verdict("hv1".into(), Some(migration), Vec::new());
    assert_eq!(shown(&verdict, Paint(false)), "vm1: hv1 -> hv2: nothing wrong\n");
}

#[test]
fn json_has_everything_a_script_needs() {
    let migration = Migration { guest: "vm1".into(), to: "hv2".into() };
    let json = serde_json::to_value(verdict("hv1".into(), Some(migration), found())).unwrap();
    assert_eq!(json["host"], "hv1");
    assert_eq!(json["migration"]["to"], "hv2");
    assert_eq!(json["worst"], "error");
    assert_eq!(json["findings"][0]["code"], "mount-soft");
    assert_eq!(json["findings"][0]["severity"], "error");
    for key in ["subject", "evidence", "remedy"] {
        assert!(json["findings"][0][key].is_string(), "{key}");
    }
}

#[test]
fn exit_codes_follow_the_worst() {
    let code = |severity| format!("{:?}", exit_code(severity));
    let expected = |n: u8| format!("{:?}", ExitCode::from(n));
    assert_eq!(code(None), expected(0));
    assert_eq!(code(Some(Severity::Info)), expected(0));
    assert_eq!(code(Some(Severity::Warning)), expected(1));
    assert_eq!(code(Some(Severity::Error)), expected(2));
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    check: CheckArgs,
}

#[test]
fn a_guest_and_a_host_belong_together() {
    let parse = |args: &[&str]| Command::try_parse_from(["x"].iter().chain(args)).is_ok();
    assert!(parse(&[]) && parse(&["--json"]) && parse(&["--migrate", "a", "--to", "b", "--json"]));
    assert!(!parse(&["--migrate", "a"]) && !parse(&["--to", "b"]));
    assert!(!parse(&["--report", "--json"]));
}

#[test]
fn help_tells_the_exit_codes() {
    use clap::CommandFactory;
    let help = Command::command().render_long_help().to_string();
    assert!(help.contains("Exit codes") && help.contains("3  could not check"), "{help}");
}

#[test]
fn services_of_the_configuration_win() {
    let ip = |last: u8| std::net::IpAddr::from([192, 0, 2, last]);
    let config = Config {
        services: [("vm".to_owned(), vec![ip(50)])].into(),
        nasd: vec![config::Nasd { name: "nas1".into(), address: (ip(1), 7400).into() }],
        ..Config::default()
    };
    let told = [("vm".to_owned(), vec![ip(99)]), ("iso".to_owned(), vec![ip(60)])].into();
    let services = services(&config, &[("nas1".to_owned(), told)].into());
    let shown: Vec<_> =
        services.floating.iter().map(|n| (n.name.as_str(), n.addresses[0])).collect();
    assert_eq!(shown, [("iso", ip(60)), ("vm", ip(50))]);
    assert_eq!((services.nodes[0].name.as_str(), services.nodes[0].addresses[0]), ("nas1", ip(1)));
}

#[test]
fn s12_an_agents_answer_is_understood_or_unknown() {
    let line = r#"{"host":"hv1","mounts":[{"mount":"/vm","phase":"normal","margin_ms":5}]}"#;
    assert_eq!(understood(line).get().unwrap()[0].phase, "normal");
    for rubbish in ["", "{}", "{\"mounts\":[{}]}", "x"] {
        assert!(understood(rubbish).why().is_some(), "{rubbish}");
    }
}

#[tokio::test]
async fn no_agent_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let found = phases(&dir.path().join("socket")).await;
    assert!(found.why().unwrap().contains("does hvagent run?"));
}

struct Nobody;

impl Reports for Nobody {
    async fn of(&self, _host: &str) -> Result<Received, NoReport> {
        Err(NoReport::NotTold(vec!["hv3".to_owned()]))
    }
}

#[tokio::test]
async fn s12_a_target_without_a_report_is_an_error() {
    let from = Sources {
        root: "/".into(),
        libvirt: Err("none".into()),
        bus: Err("none".into()),
        sanlock: nasd_sanlock::Client::new("/nonexistent", Duration::from_millis(50)),
        services: Services::default(),
        phases: Known::Unknown("none".into()),
        stall: None,
    };
    let (_, found) = migration("vm1", "hv2", &from, &Nobody).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].code.as_str(), found[0].severity), ("target-unknown", Severity::Error));
    assert!(found[0].evidence.contains("it knows hv3"));
}
