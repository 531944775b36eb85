//! The channel between the two nasds: gRPC over mutual TLS, every call under a deadline.
//!
//! The other node's identity is the name in its certificate, which must be the configured one (a
//! service's addresses are never asked). An answer that does not come is a no (S12).

pub mod beat;
pub mod dial;
pub mod link;
pub mod server;
pub mod tls;
