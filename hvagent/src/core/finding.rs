//! What a check has found: how bad it is, what shows it, and what to do about it.
//!
//! Rule kept: S12. A thing that could not be looked at is a finding of its own, never silence.

use serde::{Deserialize, Serialize};

/// How much a finding matters. Ordered: the worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// Works today, and costs something on a bad day; or could not be looked at.
    Warning,
    /// A guest may lose its disk, its locks or data in a storage move.
    Error,
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable name for scripts, such as `mount-soft`.
    pub code: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about: a mount point, a guest, a pool.
    pub subject: String,
    /// What was seen, as it was seen.
    pub evidence: String,
    /// What the operator should do.
    pub remedy: String,
}

impl Finding {
    /// A finding about `subject`.
    #[must_use]
    pub fn new(
        severity: Severity,
        code: &str,
        subject: impl Into<String>,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            code: code.to_owned(),
            severity,
            subject: subject.into(),
            evidence: evidence.into(),
            remedy: remedy.into(),
        }
    }
}

/// The worst of some findings; `None` where there are none.
#[must_use]
pub fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|f| f.severity).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts() {
        let of = |severity| Finding::new(severity, "x", "y", "z", "w");
        assert_eq!(worst(&[]), None);
        assert_eq!(worst(&[of(Severity::Info), of(Severity::Error)]), Some(Severity::Error));
        assert_eq!(worst(&[of(Severity::Warning), of(Severity::Info)]), Some(Severity::Warning));
    }

    #[test]
    fn severities_are_lower_case_in_json() {
        let text = serde_json::to_string(&Severity::Warning).unwrap();
        assert_eq!(text, "\"warning\"");
    }
}
