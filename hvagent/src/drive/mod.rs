//! Executes what `core` decides: one task owns the mounts' machines, and threads and tasks of their
//! own do whatever may hang (S10).

pub mod hands;
