//! systemd and logind of our own on a private connection.

use std::io::Read;
use std::os::fd::OwnedFd as StdFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use zbus::interface;

use super::super::fake::{pair, path};
use super::*;

struct FakeSystemd;

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeSystemd {
    async fn list_units_by_names(&self, names: Vec<String>) -> Vec<ListedUnit> {
        names.into_iter().map(listed).collect()
    }
}

fn listed(name: String) -> ListedUnit {
    let s = str::to_owned;
    let (load, active, sub, job) = match name.as_str() {
        "libvirtd.socket" => ("loaded", "active", "listening", 0),
        "libvirtd.service" => ("loaded", "inactive", "dead", 7),
        "sanlock.service" => ("loaded", "failed", "failed", 0),
        _ => ("not-found", "inactive", "dead", 0),
    };
    let kind = if job > 0 { "start" } else { "" };
    (name, s("text"), s(load), s(active), s(sub), s(""), path("/u"), job, s(kind), path("/j"))
}

/// Keeps one end of a connection and hands out the other, as logind does with a pipe.
struct FakeLogind(Mutex<Option<UnixStream>>);

#[interface(name = "org.freedesktop.login1.Manager")]
impl FakeLogind {
    async fn inhibit(
        &self,
        what: String,
        _who: String,
        _why: String,
        mode: String,
    ) -> zbus::fdo::Result<zbus::OwnedFd> {
        let end = self.0.lock().unwrap().take();
        let good = (what.as_str(), mode.as_str()) == ("shutdown:sleep", "delay");
        let end = end.filter(|_| good).ok_or_else(|| zbus::fdo::Error::AccessDenied(mode))?;
        Ok(StdFd::from(end).into())
    }

    #[zbus(property)]
    async fn preparing_for_shutdown(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_are_told_in_one_call() {
    let (_server, client) =
        pair(|server| server.serve_at("/org/freedesktop/systemd1", FakeSystemd)).await;
    let units = units(&client, &UNITS).await.unwrap();
    assert_eq!(units.len(), UNITS.len());
    let job = units.iter().find_map(|unit| unit.job.as_deref());
    assert_eq!(job, Some("start"));
    assert_eq!(service(&units, "libvirtd"), Service::OnDemand, "idle is not down");
    assert_eq!(service(&units, "sanlock"), Service::Failed);
    assert_eq!(service(&units, "virtqemud"), Service::Missing);
}

#[test]
fn a_service_is_judged_with_its_socket() {
    let unit = |name: &str, active: &str| Unit {
        name: name.to_owned(),
        load: "loaded".to_owned(),
        active: active.to_owned(),
        sub: String::new(),
        job: None,
    };
    let of = |service_active, socket_active| {
        service(&[unit("x.service", service_active), unit("x.socket", socket_active)], "x")
    };
    assert_eq!(of("active", "inactive"), Service::Up);
    assert_eq!(of("failed", "active"), Service::Failed, "the socket would start it in vain");
    assert_eq!(of("inactive", "failed"), Service::Failed);
    assert_eq!(of("inactive", "inactive"), Service::Down);
    assert_eq!(service(&[unit("xy.service", "active")], "x"), Service::Missing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inhibitor_holds_until_it_is_dropped() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let logind = FakeLogind(Mutex::new(Some(theirs)));
    let (_server, client) = pair(|server| server.serve_at("/org/freedesktop/login1", logind)).await;
    assert!(shutting_down(&client).await.unwrap());
    let held = Inhibitor::take(&client, "storage moves", Mode::Delay).await.unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(ours.read(&mut [0]).is_err(), "still open");
    drop(held);
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "released");
    let error = Inhibitor::take(&client, "again", Mode::Block).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_systemd_that_says_nothing_costs_the_limit() {
    // Nothing is served, so nothing answers.
    let (_server, client) = pair(|server| server).await;
    let error = units(&client, &UNITS).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { service: SYSTEMD, .. }), "{error}");
}
