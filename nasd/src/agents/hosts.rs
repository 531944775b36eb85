//! Which hosts' agents are attached, when they last spoke, what they said of their mounts.
//!
//! Keeps S12: a host that fell silent is not forgotten at once, because its guests may still run on a
//! service that is about to move.

use std::collections::BTreeMap;
use std::time::Duration;

use nasd_proto::MountState;

use super::StreamId;
use crate::core::view::Now;

/// After so much silence an agent's word counts no more; it speaks every 5 s.
pub const SILENT: Duration = Duration::from_secs(15);
/// After so much silence its stream is closed: it has the connection made anew.
pub const DEAF: Duration = Duration::from_secs(60);
/// How long a silent host stands in the way of a planned move of what it had mounted.
pub const LATELY: Duration = Duration::from_secs(300);
/// How long anything of a silent host is kept where nobody else needs the place.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most hosts that are known at a time.
pub const MOST: usize = 64;

/// One host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Its stream; none: not attached.
    pub stream: Option<StreamId>,
    /// When it last said anything.
    pub spoke: Now,
    /// The agent's version.
    pub version: String,
    /// Its mounts; `None`: it has not told them yet.
    pub mounts: Option<Vec<MountState>>,
    /// What it told of itself for the checks before a migration, and when.
    pub report: Option<(Now, String)>,
}

impl Host {
    /// Attached, and heard lately.
    #[must_use]
    pub fn answers(&self, now: Now) -> bool {
        self.stream.is_some() && now.saturating_sub(self.spoke) <= SILENT
    }

    /// Its mounts of a service, as last told.
    pub fn mounts_of<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a MountState> {
        self.mounts.iter().flatten().filter(move |m| m.service == service)
    }

    /// Whether a move of the service needs this host's consent. One that has not told its mounts may have it
    /// mounted.
    #[must_use]
    pub fn concerned(&self, service: &str, now: Now) -> bool {
        let unknown = self.mounts.is_none() && self.stream.is_some();
        let lately = self.answers(now) || now.saturating_sub(self.spoke) < LATELY;
        lately && (unknown || self.mounts_of(service).next().is_some())
    }
}

/// All hosts, by name.
#[derive(Debug, Default)]
pub struct Hosts {
    by_name: BTreeMap<String, Host>,
}

impl Hosts {
    /// A host's agent has attached; the stream that it had before, if any, is over. `None` when there is no
    /// place for another host.
    pub fn attach(
        &mut self,
        now: Now,
        host: &str,
        version: String,
        stream: StreamId,
    ) -> Option<Option<StreamId>> {
        self.make_room(now, host);
        if self.by_name.len() >= MOST && !self.by_name.contains_key(host) {
            return None;
        }
        let entry = self.by_name.entry(host.to_owned()).or_default();
        let before = entry.stream.replace(stream);
        (entry.spoke, entry.version) = (now, version);
        // What it says next counts; until then the last word on its mounts stands.
        Some(before)
    }

    /// The host forgotten is one that nobody waits for, silent for longest.
    fn make_room(&mut self, now: Now, host: &str) {
        self.by_name.retain(|_, h| h.stream.is_some() || now.saturating_sub(h.spoke) < KEPT);
        if self.by_name.len() < MOST || self.by_name.contains_key(host) {
            return;
        }
        let old = |h: &Host| h.stream.is_none() && now.saturating_sub(h.spoke) >= LATELY;
        let oldest = self.by_name.iter().filter(|(_, h)| old(h)).min_by_key(|(_, h)| h.spoke);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.by_name.remove(&name);
        }
    }

    /// The host whose stream this is has spoken.
    pub fn spoke(&mut self, now: Now, stream: StreamId) -> Option<(&str, &mut Host)> {
        let of = |(_, h): &(&String, &mut Host)| h.stream == Some(stream);
        let (name, host) = self.by_name.iter_mut().find(of)?;
        host.spoke = now;
        Some((name, host))
    }

    /// A stream has ended; an older one than the host's own changes nothing.
    pub fn detach(&mut self, stream: StreamId) {
        if let Some(host) = self.by_name.values_mut().find(|h| h.stream == Some(stream)) {
            host.stream = None;
        }
    }

    /// A host that is proven dead is known no more. `Ok`: its stream, which is over; `None` in it: it had none,
    /// or no such host was known.
    ///
    /// # Errors
    /// It answers; how long ago it spoke. It stays.
    pub fn forget(&mut self, now: Now, host: &str) -> Result<Option<StreamId>, Duration> {
        match self.by_name.get(host) {
            Some(known) if known.answers(now) => Err(now.saturating_sub(known.spoke)),
            _ => Ok(self.by_name.remove(host).and_then(|known| known.stream)),
        }
    }

    /// Every stream.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.by_name.values().filter_map(|h| h.stream)
    }

    /// Streams that have been silent for too long.
    pub fn deaf(&self, now: Now) -> Vec<StreamId> {
        let deaf = self.by_name.values().filter(|h| now.saturating_sub(h.spoke) > DEAF);
        deaf.filter_map(|h| h.stream).collect()
    }

    /// A host by name.
    #[must_use]
    pub fn get(&self, host: &str) -> Option<&Host> {
        self.by_name.get(host)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Host)> {
        self.by_name.iter().map(|(name, host)| (name.as_str(), host))
    }

    /// Those that a move of the service concerns.
    pub fn concerned<'a>(
        &'a self,
        service: &'a str,
        now: Now,
    ) -> impl Iterator<Item = (&'a str, &'a Host)> {
        self.iter().filter(move |(_, h)| h.concerned(service, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_new_stream_takes_the_place_of_the_old_one() {
        let mut hosts = Hosts::default();
        assert_eq!(hosts.attach(s(0), "hv1", "1".into(), 1), Some(None));
        assert_eq!(hosts.attach(s(1), "hv1", "1".into(), 2), Some(Some(1)));
        hosts.detach(1);
        assert!(hosts.get("hv1").unwrap().answers(s(2)), "the old stream's end is not the host's");
        assert!(hosts.spoke(s(2), 1).is_none());
        hosts.detach(2);
        assert!(!hosts.get("hv1").unwrap().answers(s(2)));
    }

    #[test]
    fn s12_a_host_that_answers_is_not_forgotten() {
        let mut hosts = Hosts::default();
        hosts.attach(s(0), "hv1", "1".into(), 1);
        assert_eq!(hosts.forget(s(15), "hv1"), Err(s(15)));
        assert_eq!(hosts.forget(s(16), "hv1"), Ok(Some(1)), "its stream hangs, it is silent");
        assert_eq!((hosts.get("hv1").is_none(), hosts.forget(s(16), "hv1")), (true, Ok(None)));
        assert!(hosts.spoke(s(17), 1).is_none(), "what comes late on its stream is nobody's");
    }

    #[test]
    fn the_number_of_hosts_is_bounded_and_a_silent_one_is_kept_while_it_counts() {
        let mut hosts = Hosts::default();
        for i in 0..MOST as u64 {
            assert!(hosts.attach(s(i), &format!("hv{i}"), String::new(), i).is_some());
        }
        assert!(hosts.attach(s(100), "more", String::new(), 999).is_none());
        assert!(hosts.attach(s(100), "hv3", String::new(), 1000).is_some(), "one that is known");
        hosts.detach(0);
        assert!(hosts.attach(s(299), "more", String::new(), 999).is_none(), "silent lately");
        assert!(hosts.attach(s(300), "more", String::new(), 999).is_some());
        assert!(hosts.get("hv0").is_none());
    }
}
