//! The operator's side of the program: `hvagent status` and `hvagent check`.

pub mod check;
