//! The gRPC schema shared by nasd, nasctl and hvagent, generated from `proto/nasd.proto`.
//!
//! Owns the wire format only: what a field means for safety is decided in nasd's `core`. Every field
//! that is absent reads as "no" (S12): proto3 defaults never permit anything.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

tonic::include_proto!("nasd.v1");
