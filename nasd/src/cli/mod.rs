//! nasctl: the operator's command (being written).
