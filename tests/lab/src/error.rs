//! What can go wrong in the lab.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why the lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file, a socket or a process could not be used.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: "read", "create".
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A program of this machine failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Program {
        /// The command line.
        command: String,
        /// Exit code or signal.
        status: String,
        /// The end of its error output.
        stderr: String,
    },
    /// A program of this machine did not end in time and was killed.
    #[error("`{command}` did not end within {} s and was killed", limit.as_secs())]
    ProgramTimeout {
        /// The command line.
        command: String,
        /// Its limit.
        limit: Duration,
    },
    /// Programs are missing and the lab cannot install them here.
    #[error("programs are missing; install these packages (Debian names): {}", packages.join(" "))]
    Missing {
        /// Debian package names.
        packages: Vec<String>,
    },
    /// The lab makes network namespaces and taps.
    #[error("the lab needs root: it makes network namespaces and tap devices; run it as root")]
    NotRoot,
    /// No Debian mirror is configured in apt.
    #[error("apt knows no Debian mirror; set NASD_LAB_MIRROR to the URI of one")]
    NoMirror,
    /// The name of a lab is part of file and device names.
    #[error("lab name `{name}` is not usable: use 1 to 24 of a-z, 0-9 and `-`")]
    BadName {
        /// What was given.
        name: String,
    },
    /// A number of hypervisors that has no addresses.
    #[error("{clients} hypervisors asked for; the lab has addresses for 1 to 9")]
    BadClients {
        /// What was given.
        clients: usize,
    },
    /// There is a lab of this name already.
    #[error("lab `{name}` exists; take it down first: cargo lab down --name {name}")]
    Exists {
        /// Name of the lab.
        name: String,
    },
    /// There is no lab of this name.
    #[error("there is no lab `{name}`; bring it up first: cargo lab up --name {name}")]
    Unknown {
        /// Name of the lab.
        name: String,
    },
    /// There is no such node in the lab.
    #[error("there is no node `{node}`; the nodes are: {known}")]
    NoNode {
        /// What was asked for.
        node: String,
        /// Names of all nodes.
        known: String,
    },
    /// There is no such scenario.
    #[error("there is no scenario `{name}`; `cargo lab list` shows all")]
    NoScenario {
        /// What was asked for.
        name: String,
    },
    /// The fault cannot be applied in the node's present state.
    #[error("node {node} is {state}; {advice}")]
    WrongState {
        /// The node.
        node: String,
        /// What it is now.
        state: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The state file of the lab cannot be read.
    #[error(
        "the state of lab `{name}` is damaged ({source}); clean up: cargo lab down --name {name}"
    )]
    BadState {
        /// Name of the lab.
        name: String,
        /// The parser's answer.
        source: serde_json::Error,
    },
    /// A node did not become ready.
    #[error("node {node} did not answer within {} s; its console is in {}", limit.as_secs(), console.display())]
    NotReady {
        /// The node.
        node: String,
        /// The limit.
        limit: Duration,
        /// File with the console's output.
        console: PathBuf,
    },
    /// A node's process ended by itself.
    #[error("node {node} ended by itself; its console is in {}", console.display())]
    Died {
        /// The node.
        node: String,
        /// File with the console's output.
        console: PathBuf,
    },
    /// The agent in a node could not be reached or stopped answering.
    #[error("agent of node {node}: {source}")]
    Agent {
        /// The node.
        node: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The agent refused or could not do what was asked.
    #[error("agent of node {node}: {message}")]
    Refused {
        /// The node.
        node: String,
        /// The agent's words.
        message: String,
    },
    /// A command in a node did not end in time. It has been killed; whether it had an effect is unknown.
    #[error("{node}: `{command}` did not end within {:.1} s and was killed", limit.as_secs_f64())]
    ExecTimeout {
        /// The node.
        node: String,
        /// The command line.
        command: String,
        /// Its limit.
        limit: Duration,
    },
    /// A command in a node failed where the lab needs it to succeed.
    #[error("{node}: `{command}` exited with {code}: {stderr}")]
    ExecFailed {
        /// The node.
        node: String,
        /// The command line.
        command: String,
        /// Exit code; 128 + number for a signal.
        code: i32,
        /// Its error output.
        stderr: String,
    },
    /// A condition did not come true in time.
    #[error("waited {} s in vain for {what}; last seen: {last}", limit.as_secs())]
    WaitedInVain {
        /// The condition.
        what: String,
        /// The limit.
        limit: Duration,
        /// Last observation.
        last: String,
    },
    /// Certificates could not be made.
    #[error("cannot make certificates: {source}")]
    Pki {
        /// The library's answer.
        #[from]
        source: rcgen::Error,
    },
    /// No engine works on this machine.
    #[error("no engine runs here: {reason}")]
    NoEngine {
        /// What the probes said.
        reason: String,
    },
}

impl LabError {
    /// For `map_err`: names what was being done to which path.
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
