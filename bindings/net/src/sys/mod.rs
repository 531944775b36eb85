//! Owns the unsafe code of this crate: bpf(2), packet sockets, and entering a namespace between
//! fork and exec. Nothing here decides anything.
#![allow(unsafe_code)]

pub(crate) mod bpf;
pub(crate) mod packet;
pub(crate) mod spawn;
