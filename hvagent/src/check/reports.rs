//! What other hypervisors last told of themselves, by way of nasd.
//!
//! Keeps S10: each nasd is asked under one deadline that covers name, TLS and answer. Keeps S12: no
//! report is an error that says who was asked; of two the younger counts.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use nasd_proto::agents_client::AgentsClient;
use nasd_proto::{HostReportReply, HostReportRequest};
use tokio::time::{Instant, timeout};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::report::{BadReport, HostReport, LARGEST};
use crate::config::{Nasd, TlsPaths};

/// For one nasd, from the connection to the answer.
const LIMIT: Duration = Duration::from_secs(4);

/// A report that has come.
#[derive(Debug, Clone)]
pub struct Received {
    /// What it says.
    pub report: HostReport,
    /// How old it was when it came.
    pub age: Duration,
    /// When it came.
    pub at: Instant,
}

/// Why there is no report. The host is unknown: nothing may be concluded of it.
#[derive(Debug, thiserror::Error)]
pub enum NoReport {
    /// Nobody to ask.
    #[error("no nasd is named in the configuration, so that nothing is known of other hosts")]
    NobodyToAsk,
    /// No nasd answered.
    #[error("no nasd answered: {}", .0.join("; "))]
    NoAnswer(Vec<String>),
    /// nasd has none.
    #[error("nasd has no report of it; it knows {}", list(.0))]
    NotTold(Vec<String>),
    /// One that cannot be used.
    #[error(transparent)]
    Bad(#[from] BadReport),
}

fn list(hosts: &[String]) -> String {
    if hosts.is_empty() { "no host".to_owned() } else { hosts.join(", ") }
}

/// Where reports of other hosts come from.
pub trait Reports {
    /// The last report of a host.
    ///
    /// # Errors
    /// There is none, or it cannot be had.
    fn of(&self, host: &str) -> impl Future<Output = Result<Received, NoReport>> + Send;
}

/// Reports by way of the nasds.
#[derive(Debug, Clone)]
pub struct ByNasd {
    /// Whom to ask.
    pub nasds: Vec<Nasd>,
    /// How to show who asks; `None` with no nasd.
    pub tls: Option<TlsPaths>,
}

impl Reports for ByNasd {
    async fn of(&self, host: &str) -> Result<Received, NoReport> {
        let Some(tls) = self.tls.as_ref().filter(|_| !self.nasds.is_empty()) else {
            return Err(NoReport::NobodyToAsk);
        };
        let asked = self.nasds.iter().map(|nasd| answer(nasd, tls, host));
        let answers = futures_util::future::join_all(asked).await;
        youngest(answers, Instant::now())
    }
}

/// The youngest report of all answers.
fn youngest(
    answers: Vec<Result<HostReportReply, String>>,
    at: Instant,
) -> Result<Received, NoReport> {
    let (mut silent, mut known, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Err(why) => silent.push(why),
            Ok(reply) if reply.report_json.is_empty() => known.extend(reply.hosts),
            Ok(reply) => told.push(reply),
        }
    }
    known.sort_unstable();
    known.dedup();
    match told.into_iter().min_by_key(|reply| reply.age_ms) {
        Some(reply) => {
            let report = HostReport::from_json(&reply.report_json)?;
            Ok(Received { report, age: Duration::from_millis(reply.age_ms), at })
        }
        None if known.is_empty() && !silent.is_empty() => Err(NoReport::NoAnswer(silent)),
        None => Err(NoReport::NotTold(known)),
    }
}

async fn answer(nasd: &Nasd, tls: &TlsPaths, host: &str) -> Result<HostReportReply, String> {
    let name = &nasd.name;
    match timeout(LIMIT, ask(nasd, tls, host)).await {
        Ok(answer) => answer.map_err(|why| format!("{name}: {why}")),
        Err(_) => Err(format!("{name} ({}) did not answer within {LIMIT:?}", nasd.address)),
    }
}

async fn ask(nasd: &Nasd, tls: &TlsPaths, host: &str) -> Result<HostReportReply, String> {
    let tls = material(tls, &nasd.name)?;
    let endpoint = Endpoint::from_shared(format!("https://{}", nasd.address));
    let endpoint = endpoint.and_then(|e| e.tls_config(tls)).map_err(|e| words(&e))?;
    let channel = endpoint.connect().await.map_err(|error| words(&error))?;
    let mut client = AgentsClient::new(channel).max_decoding_message_size(LARGEST);
    let request = HostReportRequest { host: host.to_owned() };
    let reply = client.host_report(request).await;
    reply.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}

fn material(tls: &TlsPaths, name: &str) -> Result<ClientTlsConfig, String> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| format!("{} cannot be read ({error})", path.display()))
    };
    let ca = Certificate::from_pem(read(&tls.ca)?);
    let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
    Ok(ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(name))
}

/// An error with all that is below it: tonic's own words say nothing.
fn words(error: &tonic::transport::Error) -> String {
    let mut words = vec![error.to_string()];
    let mut below = error.source();
    while let Some(error) = below {
        words.push(error.to_string());
        below = error.source();
    }
    words.dedup();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::samples;

    fn reply(host: &str, age_ms: u64) -> HostReportReply {
        let report_json = samples::host(host).to_json().unwrap();
        HostReportReply { report_json, age_ms, hosts: Vec::new() }
    }

    fn none(hosts: &[&str]) -> HostReportReply {
        let hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        HostReportReply { hosts, ..HostReportReply::default() }
    }

    fn told(answers: Vec<Result<HostReportReply, String>>) -> Result<Received, NoReport> {
        youngest(answers, std::time::Instant::now().into())
    }

    #[test]
    fn of_two_reports_the_younger_counts() {
        let found = told(vec![Ok(reply("hv2", 900)), Ok(reply("hv3", 100))]).unwrap();
        assert_eq!((found.report.host.as_str(), found.age), ("hv3", Duration::from_millis(100)));
        let found = told(vec![Err("nas1: gone".into()), Ok(reply("hv2", 900))]).unwrap();
        assert_eq!(found.report.host, "hv2");
    }

    #[test]
    fn s12_no_report_says_why() {
        let text = |answers| told(answers).unwrap_err().to_string();
        assert_eq!(
            text(vec![Err("nas1: gone".into()), Err("nas2: gone".into())]),
            "no nasd answered: nas1: gone; nas2: gone"
        );
        assert!(text(vec![Err("nas1: gone".into()), Ok(none(&["hv1"]))]).contains("it knows hv1"));
        assert!(text(vec![Ok(none(&[]))]).contains("no host"));
        let rubbish = HostReportReply { report_json: "{}".into(), ..none(&[]) };
        assert!(text(vec![Ok(rubbish)]).contains("not understood"));
        let future = HostReportReply { report_json: "{\"version\":2}".into(), ..none(&[]) };
        assert!(text(vec![Ok(future)]).contains("has form 2"));
    }

    #[tokio::test]
    async fn nobody_to_ask_and_nobody_who_answers() {
        let nobody = ByNasd { nasds: Vec::new(), tls: None };
        assert!(matches!(nobody.of("hv2").await, Err(NoReport::NobodyToAsk)));
        let path = std::path::PathBuf::from("/nonexistent.pem");
        let tls = TlsPaths { ca: path.clone(), cert: path.clone(), key: path };
        let nasds = vec![Nasd { name: "nas1".into(), address: ([127, 0, 0, 1], 9).into() }];
        let error = ByNasd { nasds, tls: Some(tls) }.of("hv2").await.unwrap_err().to_string();
        assert!(error.contains("nas1: /nonexistent.pem cannot be read"), "{error}");
    }
}
