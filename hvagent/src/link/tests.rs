//! Links against an in-process nasd.
