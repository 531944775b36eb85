//! What nasd tells the outside: the status document and the operator's gRPC server.

pub mod control;
mod forget;
mod operator;
mod recover;
pub mod status;
