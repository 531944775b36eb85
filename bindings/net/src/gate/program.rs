//! Owns the bytes of the gate's classifier (rule S4). Assembled here, so that neither a compiler
//! nor a loader library is needed on the node. In C it would read:
//!
//! ```c
//! u32 slot = SLOT;
//! u64 *deadline = bpf_map_lookup_elem(&deadlines, &slot);
//! if (deadline && *deadline > bpf_ktime_get_ns()) return TC_ACT_UNSPEC;
//! return TC_ACT_SHOT;
//! ```
//!
//! Instruction format: Documentation/bpf/standardization/instruction-set.rst.

use std::ffi::CStr;

/// Licence told to the kernel. `bpf_ktime_get_ns` asks for none since Linux 5.8 (`gpl_only =
/// false` in kernel/bpf/helpers.c), `bpf_map_lookup_elem` never did; so the program carries the
/// licence of this crate.
pub(super) const LICENSE: &CStr = c"MIT";

/// Instructions of the program: the map reference counts as two.
pub(super) const LENGTH: usize = 14;

const ST_MEM_W: u8 = 0x62;
const MOV64_REG: u8 = 0xbf;
const MOV64_IMM: u8 = 0xb7;
const ADD64_IMM: u8 = 0x07;
const LD_IMM_DW: u8 = 0x18;
const LDX_MEM_DW: u8 = 0x79;
const CALL: u8 = 0x85;
const JEQ_IMM: u8 = 0x15;
const JGT_REG: u8 = 0x2d;
const EXIT: u8 = 0x95;

const PSEUDO_MAP_FD: u8 = 1;
const MAP_LOOKUP_ELEM: i32 = 1;
const KTIME_GET_NS: i32 = 5;
const FRAME: u8 = 10;

/// Go on to the next filter: others may still shape or count.
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

/// One instruction in the machine's byte order.
fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    // The two register numbers are bit fields, which C lays out by byte order too.
    let registers =
        if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

/// The classifier that compares `slot` of the map behind `map_fd` with the clock.
pub(super) fn assemble(map_fd: i32, slot: u32) -> [u64; LENGTH] {
    [
        instruction(ST_MEM_W, FRAME, 0, -4, slot.cast_signed()),
        instruction(MOV64_REG, 2, FRAME, 0, 0),
        instruction(ADD64_IMM, 2, 0, 0, -4),
        instruction(LD_IMM_DW, 1, PSEUDO_MAP_FD, 0, map_fd),
        0,
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        // No such slot: drop (S12).
        instruction(JEQ_IMM, 0, 0, 3, 0),
        instruction(LDX_MEM_DW, 6, 0, 0, 0),
        instruction(CALL, 0, 0, 0, KTIME_GET_NS),
        // Unsigned: u64::MAX is "never", 0 is "always past".
        instruction(JGT_REG, 6, 0, 2, 0),
        instruction(MOV64_IMM, 0, 0, 0, TC_ACT_SHOT),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(MOV64_IMM, 0, 0, 0, TC_ACT_UNSPEC),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MonotonicInstant;
    use crate::sys::bpf;
    use std::os::fd::AsRawFd;

    const PASS: u32 = TC_ACT_UNSPEC as u32;
    const DROP: u32 = TC_ACT_SHOT as u32;

    /// S4: the verdict depends on nothing but the slot's deadline and the clock. Needs root.
    #[test]
    fn s4_verdicts_follow_the_deadline() {
        let map = bpf::create_u64_array("test", 2).unwrap();
        let load =
            |slot| bpf::load_classifier("test", &assemble(map.as_raw_fd(), slot), LICENSE).unwrap();
        let (first, second, outside) = (load(0), load(1), load(2));
        let frame = [0u8; 60];
        let run = |program| bpf::test_run(program, &frame).unwrap();
        assert_eq!((run(&first), run(&second)), (DROP, DROP), "zero is closed");
        bpf::update(&map, 0, u64::MAX).unwrap();
        assert_eq!((run(&first), run(&second)), (PASS, DROP), "slots are apart");
        assert_eq!(run(&outside), DROP, "a missing slot drops");
        let now = MonotonicInstant::now().as_nanos();
        bpf::update(&map, 1, now).unwrap();
        assert_eq!(run(&second), DROP, "a deadline of now is past");
        bpf::update(&map, 1, now + 200_000_000).unwrap();
        assert_eq!(run(&second), PASS);
        std::thread::sleep(std::time::Duration::from_millis(210));
        assert_eq!(run(&second), DROP, "it shuts by itself");
        assert_eq!(bpf::lookup(&map, 1).unwrap(), now + 200_000_000);
    }
}
