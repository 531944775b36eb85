//! The operator's side of the program: `hvagent status`, `hvagent accept` and `hvagent check`.

pub mod check;
pub mod status;
