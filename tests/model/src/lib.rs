//! The core of nasd in a simulated world.
//!
//! Two [`nasd::core::machine::Machine`]s, the code that is shipped, run without clock and network. The
//! world around them ([`world`]) breaks in every way that the safety page knows; after everything that
//! happens the properties ([`properties`]) are checked. Seeded schedules ([`schedule`]) are long and
//! random, the exhaustive search ([`explore`]) is short and complete. Holes ([`hole`]) that are put
//! back must be found.

pub mod explore;
pub mod hole;
pub mod properties;
pub mod random;
pub mod schedule;
pub mod trace;
pub mod world;
