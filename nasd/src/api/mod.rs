//! What nasd tells the outside: the status document and (in `control`, `peer`) the gRPC servers.

pub mod status;
