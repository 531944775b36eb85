//! `hvagent check`.
