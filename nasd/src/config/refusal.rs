//! How a refusal is told: file, line, what is wrong, what to do.
//!
//! Keeps the rule that every refusal has a name, evidence and a remedy (design section 5). The same
//! shape serves the file's own faults and what the host checks find.

use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use thiserror::Error as ThisError;

use super::problem::Problem;

/// A problem that knows its name and its remedy.
pub trait Remedy: Error + Send + Sync + 'static {
    /// Stable name, for scripts and for the manual, as `config.clients.host_name`.
    fn code(&self) -> &'static str;
    /// What the administrator can do about it.
    fn remedy(&self) -> String;
}

/// The text of the configuration with the name it came from; kept so that later checks can point
/// into it.
#[derive(Debug, Clone)]
pub struct Origin(Arc<NamedSource<String>>);

impl Origin {
    pub(super) fn new(name: &str, text: &str) -> Self {
        Self(Arc::new(NamedSource::new(name, text.to_owned()).with_language("TOML")))
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// 1-based line of a byte offset.
    #[must_use]
    pub fn line(&self, offset: usize) -> usize {
        let text = self.0.inner().as_bytes();
        1 + text.iter().take(offset).filter(|b| **b == b'\n').count()
    }
}

/// One refusal: a problem at a place in the file.
#[derive(Debug, Clone)]
pub struct Refusal<P> {
    origin: Origin,
    span: Range<usize>,
    /// What is wrong.
    pub problem: P,
}

impl<P: Remedy> Refusal<P> {
    pub(super) fn new(origin: &Origin, span: Range<usize>, problem: P) -> Self {
        Self { origin: origin.clone(), span, problem }
    }

    /// 1-based line in the file.
    #[must_use]
    pub fn line(&self) -> usize {
        self.origin.line(self.span.start)
    }

    /// The file's name.
    #[must_use]
    pub fn file(&self) -> &str {
        self.origin.name()
    }
}

impl<P: Remedy> fmt::Display for Refusal<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = &self.problem;
        write!(f, "{}:{}: {problem}; {}", self.file(), self.line(), problem.remedy())
    }
}

impl<P: Remedy> Error for Refusal<P> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.problem.source()
    }
}

impl<P: Remedy> Diagnostic for Refusal<P> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.problem.code()))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.problem.remedy()))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&*self.origin.0)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_with_span(Some("here".to_owned()), self.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// Why there is no configuration. The daemon does not start; a running one keeps what it has.
#[derive(Debug, ThisError, Diagnostic)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read; create it, or make it readable for nasd", .path.display())]
    #[diagnostic(code("config.unreadable"))]
    Unreadable {
        /// The path that was tried.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is refused; all faults found are listed.
    #[error("{} refused: {}", .file, listed(.refusals))]
    #[diagnostic(code("config.refused"))]
    Refused {
        /// The file's name.
        file: String,
        /// One entry per fault, in the order of the file.
        #[related]
        refusals: Vec<Refusal<Problem>>,
    },
}

fn listed(refusals: &[Refusal<Problem>]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
