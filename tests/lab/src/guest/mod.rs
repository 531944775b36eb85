//! The nested guest of the lab's hypervisors: a virtual machine that does nothing but write self-describing blocks to
//! its disk, and says of each that it was acknowledged.
//!
//! Owns the program that is its `init`, the lines it says, and their judgement from outside. The lines leave the guest
//! by a virtio port that whichever hypervisor runs it connects to the lab program: so one clock stamps them all, and
//! the clock stands outside everything that is moved. It shows S1 (one writer), S2 (nothing stale) and S11 (a
//! migration waits for no storage move); it keeps no rule itself.

pub mod console;
pub mod ledger;
pub mod line;
pub mod program;

use crate::blocks::WriterId;

/// Blocks of the guest's disk; it goes round them.
pub const BLOCKS: u64 = 256;
/// Bytes per block.
pub const BLOCK_SIZE: u32 = 4096;
/// Environment variable of the guest's `init`, given on its kernel's command line: name of the writer.
pub const WRITER_VARIABLE: &str = "lab_writer";
/// Likewise: pause after each write, ms.
pub const PAUSE_VARIABLE: &str = "lab_pause_ms";
/// Folder of the kernel's modules in the guest, loaded in the order of their names.
pub const MODULES: &str = "modules";

/// Where on the disk the write of this number goes. Both sides reckon it, so that nothing but the number need be told.
#[must_use]
pub const fn offset_of(seq: u64) -> u64 {
    seq % BLOCKS * BLOCK_SIZE as u64
}

/// File name of the guest's disk, such that [`crate::blocks::check()`] takes it for the first file of that writer.
#[must_use]
pub fn disk_name(writer: &WriterId) -> String {
    format!("w{writer}-0.blk")
}
