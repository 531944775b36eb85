//! Everything that nasd knows of hypervisors, and what follows from it. Pure: inputs with a time, messages for
//! streams out.
//!
//! Keeps S12 (an answer counts only from a host that still speaks, and only for the move that was announced)
//! and S11 (an announcement that nobody carries on is withdrawn).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nasd_proto::agent_message::Kind;
use nasd_proto::agent_news::Kind as NewsKind;
use nasd_proto::{AgentNews, HostReportReply, HostStall, MountState};

use super::StreamId;
use super::hosts::{Host, Hosts};
use super::number::{MoveId, Numbers};
use super::readiness::{self, Question, Standing};
use super::services::{Announcement, Said, Service, Terms};
use super::status::{self, Hypervisors, KnownHost};
use super::tame;
use crate::core::preflight::Finding;
use crate::core::view::Now;

/// What is to be sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Out {
    /// To one agent.
    Send {
        /// Its stream.
        to: StreamId,
        /// The message.
        news: AgentNews,
    },
    /// The stream is over.
    Close(StreamId),
}

/// The book.
#[derive(Debug)]
pub struct Book {
    me: String,
    required: Vec<String>,
    hosts: Hosts,
    services: BTreeMap<String, Service>,
    numbers: Numbers,
}

impl Book {
    /// An empty book of node `me`, whose planned moves need the agents of `required`.
    #[must_use]
    pub fn new(
        me: String,
        services: impl IntoIterator<Item = String>,
        required: Vec<String>,
    ) -> Self {
        let services = services.into_iter().map(|name| (name, Service::default())).collect();
        Self { me, required, hosts: Hosts::default(), services, numbers: Numbers::default() }
    }

    // ---- streams -----------------------------------------------------------------------------

    /// An agent has attached; `None` when there is no place for it. It hears at once of what goes on.
    pub fn attach(
        &mut self,
        now: Now,
        host: &str,
        version: &str,
        stream: StreamId,
    ) -> Option<Vec<Out>> {
        let before = self.hosts.attach(now, host, tame::name(version), stream)?;
        let mut out: Vec<_> = before.map(Out::Close).into_iter().collect();
        for (name, service) in &mut self.services {
            service.forget_answer(host);
            let news = service.recent(now).cloned().map(NewsKind::News);
            let announce = service.announcement(name, now, true).map(NewsKind::Announce);
            out.extend([news, announce].into_iter().flatten().map(|kind| send(stream, kind)));
        }
        Some(out)
    }

    /// Something that an agent said.
    pub fn heard(&mut self, now: Now, stream: StreamId, kind: Kind) {
        let Some((name, host)) = self.hosts.spoke(now, stream) else { return };
        match kind {
            // Said once, when the stream began.
            Kind::Hello(_) => {}
            Kind::State(state) => host.mounts = Some(tame::state(&state)),
            Kind::HostReportJson(report) if report.len() <= tame::REPORT => {
                host.report = Some((now, report));
            }
            Kind::HostReportJson(report) => {
                tracing::warn!(
                    host = name,
                    bytes = report.len(),
                    "a host report is too long; it is not kept"
                );
            }
            Kind::Readiness(said) => {
                let said = tame::readiness(&said);
                if let Some(service) = self.services.get_mut(&said.service) {
                    service.answered(name, said);
                }
            }
            Kind::Stall(report) => {
                let report = tame::stall(&report);
                tracing::info!(host = name, ?report, "stall");
                if let Some(service) = self.services.get_mut(&report.service) {
                    service.stalled(name, report);
                }
            }
        }
    }

    /// Forgets a host that is proven dead: no planned move waits for it any more.
    ///
    /// # Errors
    /// It answers; how long ago it spoke. Nothing is changed.
    pub fn forget(&mut self, now: Now, host: &str) -> Result<Vec<Out>, Duration> {
        let stream = self.hosts.forget(now, host)?;
        for service in self.services.values_mut() {
            service.forget_answer(host);
        }
        Ok(stream.map(Out::Close).into_iter().collect())
    }

    /// A stream has ended.
    pub fn detach(&mut self, stream: StreamId) {
        self.hosts.detach(stream);
    }

    // ---- moves -------------------------------------------------------------------------------

    /// Announces a planned move to all agents.
    ///
    /// # Errors
    /// A finding that refuses: another move of the service is announced already.
    pub fn announce(
        &mut self,
        now: Now,
        unix_s: u64,
        name: &str,
        terms: &Terms,
    ) -> Result<Vec<Out>, Finding> {
        let busy = || {
            Finding::refusal(
                "hypervisors-busy",
                format!("another move of {name} is being announced to the hypervisors"),
                "wait for its end, or abort it (nasctl switchover --abort)",
            )
        };
        let service = self.services.get_mut(name).ok_or_else(busy)?;
        service.announce(now, unix_s, &mut self.numbers, terms).ok_or_else(busy)?;
        let news = service.announcement(name, now, true).map(NewsKind::Announce);
        Ok(self.to_all(news))
    }

    /// Whether all are ready for the announced move; `None`: not known yet.
    #[must_use]
    pub fn verdict(&self, now: Now, name: &str) -> Option<Vec<Finding>> {
        let a = self.services.get(name)?.announced()?;
        self.judged(now, name, a, a.deadline)
    }

    /// What speaks against the announced move by now, after it was found ready; `None`: none is announced.
    #[must_use]
    pub fn standing(&self, now: Now, name: &str) -> Option<Vec<Finding>> {
        let a = self.services.get(name)?.announced()?;
        Some(self.judged(now, name, a, now).unwrap_or_default())
    }

    fn judged(
        &self,
        now: Now,
        name: &str,
        a: &Announcement,
        deadline: Now,
    ) -> Option<Vec<Finding>> {
        let question = Question {
            service: name,
            node: &self.me,
            now,
            deadline,
            began: a.began,
            force: a.force,
            predicted_stall_ms: a.predicted_stall_ms,
        };
        let standing = |(host, known): (&'_ str, &Host)| {
            let heard = now.saturating_sub(known.spoke);
            (host.to_owned(), silence(known, now), heard, a.answers.get(host))
        };
        let standings: Vec<_> = self.hosts.concerned(name, now).map(standing).collect();
        let standings: Vec<_> = standings
            .iter()
            .map(|(host, silent, heard, said)| Standing {
                host,
                silent: *silent,
                heard: *heard,
                said: *said,
            })
            .collect();
        readiness::judge(&question, &standings, &self.absent(now, name))
    }

    /// What agents say now, without an announcement.
    #[must_use]
    pub fn look(&self, now: Now, name: &str, predicted_stall_ms: u32, force: bool) -> Vec<Finding> {
        let (deadline, began, node) = (now, now, self.me.as_str());
        let question =
            Question { service: name, node, now, deadline, began, force, predicted_stall_ms };
        let mut found = Vec::new();
        for (host, known) in self.hosts.concerned(name, now) {
            let mounts =
                known.mounts.as_ref().map(|_| known.mounts_of(name).collect::<Vec<&MountState>>());
            found.extend(readiness::look(&question, host, silence(known, now), mounts.as_deref()));
        }
        found.extend(readiness::look_for(&question, &self.absent(now, name)));
        found
    }

    /// Required hosts that are not attached and not told of otherwise.
    fn absent(&self, now: Now, service: &str) -> Vec<&str> {
        let told: BTreeSet<_> = self.hosts.concerned(service, now).map(|(host, _)| host).collect();
        let here = |host: &str| self.hosts.get(host).is_some_and(|h| h.answers(now));
        let missing = self.required.iter().map(String::as_str);
        missing.filter(|host| !here(host) && !told.contains(host)).collect()
    }

    /// The number of the move that now begins, announced or not.
    pub fn moving(&mut self, now: Now, unix_s: u64, name: &str, epoch: u64) -> MoveId {
        let Some(service) = self.services.get_mut(name) else { return 0 };
        service.moving(now, unix_s, &mut self.numbers, epoch)
    }

    /// Takes what happened to a service, and tells all agents.
    pub fn say(&mut self, now: Now, name: &str, said: Said) -> Vec<Out> {
        let Some(service) = self.services.get_mut(name) else { return Vec::new() };
        let news = service.take(name, &self.me, now, said);
        if let Some(news) = &news {
            tracing::info!(service = name, ?news, "told to the hypervisors");
        }
        self.to_all(news.map(NewsKind::News))
    }

    /// Whether a move is announced.
    #[must_use]
    pub fn is_announced(&self, name: &str) -> bool {
        self.services.get(name).is_some_and(|s| s.announced().is_some())
    }

    /// Time has passed: renews announcements, ends those that nobody carried on, closes dead streams.
    pub fn tick(&mut self, now: Now) -> Vec<Out> {
        let mut out: Vec<_> = self.hosts.deaf(now).into_iter().map(Out::Close).collect();
        let overdue: Vec<_> = self
            .services
            .iter()
            .filter(|(_, s)| s.is_overdue(now))
            .map(|(n, _)| n.clone())
            .collect();
        for name in overdue {
            tracing::warn!(service = name, "an announced move never began; it is withdrawn");
            out.extend(self.say(now, &name, Said::Withdrawn { epoch: 0 }));
        }
        let due = |(name, s): (&String, &mut Service)| s.announcement(name, now, false);
        let due: Vec<_> = self.services.iter_mut().filter_map(due).collect();
        for announce in due {
            out.extend(self.to_all(Some(NewsKind::Announce(announce))));
        }
        out
    }

    fn to_all(&self, kind: Option<NewsKind>) -> Vec<Out> {
        let Some(kind) = kind else { return Vec::new() };
        self.hosts.streams().map(|to| send(to, kind.clone())).collect()
    }

    // ---- what others ask ---------------------------------------------------------------------

    /// Stalls of the last move, and whether every host that has the service mounted has told its own.
    #[must_use]
    pub fn stalls(&self, now: Now, name: &str) -> (Vec<HostStall>, bool) {
        let told = self.services.get(name).map(Service::stalls).unwrap_or_default();
        let mut hosts = self.hosts.concerned(name, now).filter(|(_, h)| h.answers(now));
        let complete = hosts.all(|(host, _)| told.iter().any(|s| s.host == host));
        (told.to_vec(), complete)
    }

    /// For the status document.
    #[must_use]
    pub fn status(&self, now: Now) -> BTreeMap<String, Hypervisors> {
        let of = |(name, service): (&String, &Service)| {
            (name.clone(), status::of_service(name, now, &self.hosts, service.stalls()))
        };
        self.services.iter().map(of).collect()
    }

    /// All hosts, attached or not.
    #[must_use]
    pub fn known(&self, now: Now) -> Vec<KnownHost> {
        self.hosts.iter().map(|(name, host)| status::known(name, host, now)).collect()
    }

    /// What a host told of itself last.
    #[must_use]
    pub fn report(&self, now: Now, host: &str) -> HostReportReply {
        let hosts = self.hosts.iter().map(|(name, _)| name.to_owned()).collect();
        let told = self.hosts.get(host).and_then(|h| h.report.as_ref());
        let (report_json, age) = told
            .map_or_else(Default::default, |(at, text)| (text.clone(), now.saturating_sub(*at)));
        HostReportReply {
            report_json,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            hosts,
        }
    }

    /// Hosts whose agents are attached.
    #[must_use]
    pub fn attached(&self) -> Vec<String> {
        self.hosts
            .iter()
            .filter(|(_, h)| h.stream.is_some())
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

/// How long a host has said nothing, if that is too long.
fn silence(host: &Host, now: Now) -> Option<Duration> {
    (!host.answers(now)).then(|| now.saturating_sub(host.spoke))
}

fn send(to: StreamId, kind: NewsKind) -> Out {
    Out::Send { to, news: AgentNews { kind: Some(kind) } }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
