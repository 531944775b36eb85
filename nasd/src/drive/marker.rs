//! The marker of each volume: whose data it carries, and of which opening.
//!
//! Keeps S2: what is of another service, older than the record, or not to be read opens nothing. A file can be damaged
//! where the data are not, and the two nodes have the same file: the owner looks at it before a move, while it still
//! serves, and the message says what nasd would accept from an operator who knows the volume.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::hands::Hands;
use super::steps::{StepResult, refused};
use crate::config::FilesystemConfig;
use crate::core::machine::StepContext;
use crate::core::record::{Phase, Record};
use crate::core::step::{Step, StepError};
use crate::io::{Answer, CallError, Marker, Op, Refusal};
use crate::observe::history::Entry;

/// For a look beside the service: a volume that is well answers in milliseconds.
const LOOK: Duration = Duration::from_secs(1);
/// Below the mount point; nasd-io's name for it.
const FILE: &str = ".nasd/marker.json";

/// Why a marker does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is not there, or cannot be read: it tells nothing of the data.
    #[error("{0}")]
    Damaged(String),
    /// It tells that the data are others.
    #[error("{0}")]
    Other(String),
}

impl Unfit {
    /// In words, with the way back where an operator may take one.
    #[must_use]
    pub fn words(&self, target: &Path, fits: &Marker) -> String {
        match (self, serde_json::to_string(fits)) {
            (Self::Damaged(_), Ok(text)) => {
                let file = target.join(FILE);
                let (file, service) = (file.display(), &fits.service);
                format!(
                    "{self}; if this is the volume of {service} all the same, write into {file}: {text}"
                )
            }
            _ => format!("{}: {self}", target.display()),
        }
    }
}

/// Whether a volume's marker fits the record; the generation it has.
///
/// # Errors
/// What does not fit.
pub fn judge(service: &str, found: Option<&Marker>, context: &StepContext) -> Result<u64, Unfit> {
    let Some(marker) = found else {
        if context.generation == 0 {
            return Ok(0);
        }
        return Err(Unfit::Damaged(format!(
            "no marker, but the record says generation {}: this is not the service's volume",
            context.generation
        )));
    };
    if marker.service != service {
        return Err(Unfit::Other(format!("the marker is of service {}", marker.service)));
    }
    if marker.generation < context.accepts {
        return Err(Unfit::Other(format!(
            "the data is of generation {}, the record says {}: this replica is stale",
            marker.generation, context.generation
        )));
    }
    if marker.epoch > context.epoch {
        return Err(Unfit::Other(format!(
            "the marker is of epoch {}, the record of {}: the coordinator was restored or replaced",
            marker.epoch, context.epoch
        )));
    }
    Ok(marker.generation)
}

/// What is known of a marker that was looked at.
#[derive(Debug)]
pub enum Looked {
    /// It fits.
    Fits(u64),
    /// It does not, and why.
    Unfit(Unfit),
    /// Nobody can tell.
    Unknown(CallError),
}

/// Reads nasd-io's answer.
#[must_use]
pub fn read(service: &str, answer: Result<Answer, CallError>, context: &StepContext) -> Looked {
    let found = match answer {
        Ok(Answer::Marker { marker }) => marker,
        Ok(_) => None,
        Err(error) => {
            return match error.refusal() {
                Some(bad @ Refusal::BadMarker { .. }) => {
                    Looked::Unfit(Unfit::Damaged(bad.to_string()))
                }
                _ => Looked::Unknown(error),
            };
        }
    };
    judge(service, found.as_ref(), context).map_or_else(Looked::Unfit, Looked::Fits)
}

/// What the owner sees of its volumes' markers while it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// Those that would not be opened again, in words, with the way back.
    pub unfit: Vec<String>,
    /// Those that could not be looked at.
    pub unknown: Vec<String>,
}

impl Hands {
    /// On a volume that this node serves by the record: nasd-io writes its own files there anew where somebody else has
    /// damaged them. The next server, here or there, could not open with them.
    pub(super) async fn mend(&self, target: &Path) {
        let record = self.record.borrow().clone();
        let serves = |r: &Record| matches!(&r.phase, Phase::Serving { owner } if *owner == self.me);
        let Some(record) = record.filter(serves) else { return };
        if self.seen.borrow().emergency.is_some() {
            return; // what the marker must say is not in the record yet
        }
        let marker = self.own_marker(record.epoch, record.generation);
        let op = Op::Mend { target: target.to_path_buf(), marker };
        match self.io_call(op, LOOK).await {
            Ok(Answer::Mended { what }) if !what.is_empty() => {
                let what = what.join("; ");
                tracing::error!(volume = %target.display(), what, "damaged, and written anew");
                let entry = Entry::now(&self.me.0, "mend", record.epoch, "done", &what);
                self.history.note(entry);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(volume = %target.display(), %error, "could not be looked after");
            }
        }
    }

    /// The marker must be of this service and not older than the record; then this opening's is written, on every
    /// volume.
    pub(super) async fn marker(&self, context: &StepContext) -> StepResult {
        let mut generation = context.generation;
        for fs in &self.service.filesystems {
            generation = generation.max(self.check_marker(fs, context).await?);
        }
        let next = generation + 1;
        for fs in &self.service.filesystems {
            let marker = self.own_marker(context.epoch, next);
            let op = Op::WriteMarker { target: self.service.mountpoint(fs), marker };
            self.io_step(op, Step::Marker.deadline()).await.map_err(|e| refused("marker", &e))?;
        }
        Ok(Some(next))
    }

    fn own_marker(&self, epoch: u64, generation: u64) -> Marker {
        let (service, node) = (self.service.name.clone(), self.me.0.clone());
        Marker { service, epoch, generation, node }
    }

    async fn check_marker(
        &self,
        fs: &FilesystemConfig,
        context: &StepContext,
    ) -> Result<u64, StepError> {
        let target = self.service.mountpoint(fs);
        let op = Op::ReadMarker { target: target.clone() };
        let answer = self.io_step(op, Step::Marker.deadline()).await;
        match read(&self.service.name, answer, context) {
            Looked::Fits(generation) => Ok(generation),
            Looked::Unknown(error) => Err(refused("marker", &error)),
            Looked::Unfit(unfit) => {
                let fits = self.own_marker(context.epoch, context.generation);
                Err(StepError::WrongVolume { reason: unfit.words(&target, &fits) })
            }
        }
    }

    /// For a node that serves by this record: would its volumes be opened once more?
    pub async fn look_at_markers(&self, record: &Record) -> Sight {
        let (epoch, generation) = (record.epoch, record.generation);
        let context = StepContext { epoch, generation, accepts: generation, proof: None };
        let mut sight = Sight::default();
        for fs in &self.service.filesystems {
            let target: PathBuf = self.service.mountpoint(fs);
            let op = Op::ReadMarker { target: target.clone() };
            // Somebody else may be looking at the same moment: that is waited for.
            match read(&self.service.name, self.io_step(op, LOOK).await, &context) {
                Looked::Fits(_) => {}
                Looked::Unknown(error) => {
                    sight.unknown.push(format!("{}: {error}", target.display()));
                }
                Looked::Unfit(unfit) => {
                    sight.unfit.push(unfit.words(&target, &self.own_marker(epoch, generation)));
                }
            }
        }
        sight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(epoch: u64, generation: u64) -> StepContext {
        StepContext { epoch, generation, accepts: generation, proof: None }
    }

    fn marker(service: &str, epoch: u64, generation: u64) -> Marker {
        Marker { service: service.into(), epoch, generation, node: "a".into() }
    }

    #[test]
    fn s2_only_a_marker_that_fits_the_record_is_accepted() {
        let at = context(5, 7);
        assert_eq!(judge("vms", Some(&marker("vms", 5, 7)), &at), Ok(7));
        assert_eq!(judge("vms", Some(&marker("vms", 5, 8)), &at), Ok(8));
        for (bad, why) in [
            (Some(marker("vms", 5, 6)), "stale"),
            (Some(marker("iso", 5, 7)), "service iso"),
            (Some(marker("vms", 6, 7)), "restored"),
            (None, "no marker"),
        ] {
            let error = judge("vms", bad.as_ref(), &at).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(judge("vms", None, &context(1, 0)), Ok(0), "a new service");
    }

    fn refusal(refusal: Refusal) -> Result<Answer, CallError> {
        Err(CallError::Refused { op: "read_marker", refusal: Box::new(refusal) })
    }

    #[test]
    fn s12_a_damaged_marker_is_no_marker_and_no_answer_is_neither() {
        let target = PathBuf::from("/srv/v");
        let bad = Refusal::BadMarker { target, text: "EOF while parsing".into() };
        let looked = read("vms", refusal(bad), &context(5, 7));
        assert!(matches!(looked, Looked::Unfit(Unfit::Damaged(_))), "{looked:?}");
        let gone = Err(CallError::Gone { op: "read_marker" });
        assert!(matches!(read("vms", gone, &context(5, 7)), Looked::Unknown(_)));
    }

    /// What the message tells to write is accepted.
    #[test]
    fn the_way_back_is_told_for_a_damaged_marker_only() {
        let at = context(5, 7);
        let fits = marker("vms", at.epoch, at.generation);
        let words = judge("vms", None, &at).unwrap_err().words(Path::new("/srv/v"), &fits);
        let (before, text) = words.split_once("write into /srv/v/.nasd/marker.json: ").unwrap();
        assert!(before.contains("no marker"), "{before}");
        let written: Marker = serde_json::from_str(text).unwrap();
        assert_eq!(judge("vms", Some(&written), &at), Ok(7));
        let stale = judge("vms", Some(&marker("vms", 5, 6)), &at).unwrap_err();
        assert!(!stale.words(Path::new("/srv/v"), &fits).contains("write"), "never for other data");
    }
}
