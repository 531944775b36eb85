//! The number tables, one module per ABI; never selected at compile time, one binary drives either.
//!
//! The files are checked in and generated (feature `regenerate`, see `build.rs`): from the headers of
//! Debian 12's kernel 6.1 for 8.4, and from LINBIT's `drbd-headers` for 9.

#[cfg(not(nasd_drbd_v84_generated))]
#[allow(dead_code, missing_docs, non_upper_case_globals)]
pub mod v84;
#[cfg(nasd_drbd_v84_generated)]
#[allow(dead_code, missing_docs, non_upper_case_globals)]
pub mod v84 {
    include!(concat!(env!("OUT_DIR"), "/v84.rs"));
}

#[cfg(not(nasd_drbd_v9_generated))]
#[allow(dead_code, missing_docs, non_upper_case_globals)]
pub mod v9;
#[cfg(nasd_drbd_v9_generated)]
#[allow(dead_code, missing_docs, non_upper_case_globals)]
pub mod v9 {
    include!(concat!(env!("OUT_DIR"), "/v9.rs"));
}
