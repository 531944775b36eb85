//! Placeholder until the first commit.
pub mod blocks;
pub mod report;
