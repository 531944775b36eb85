//! Owns the bpf(2) system call: the few commands and attribute layouts the gate needs
//! (`union bpf_attr` of include/uapi/linux/bpf.h). Attributes may be shorter than the kernel's
//! union: it reads the missing rest as zero.

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_GET_FD_BY_ID: i32 = 13;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// `BPF_MAP_TYPE_ARRAY`.
pub(crate) const MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_PROG_TYPE_SCHED_CLS`.
pub(crate) const PROG_TYPE_SCHED_CLS: u32 = 3;

/// Types that may be handed to bpf(2).
///
/// # Safety
/// The type is `repr(C)`, has no padding that is not an explicit field, and every pointer field
/// is valid for what the command does with it for the time of the call.
unsafe trait Attribute {}

macro_rules! attribute {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Default)]
        struct $name { $($field: $kind),* }
        // SAFETY: `repr(C)`; fields are ordered so that none is preceded by implicit padding.
        unsafe impl Attribute for $name {}
    };
}

attribute! {
    struct MapCreate {
        map_type: u32, key_size: u32, value_size: u32, max_entries: u32, map_flags: u32,
        inner_map_fd: u32, numa_node: u32, map_name: [u8; 16], map_ifindex: u32,
    }
}
attribute! {
    struct Element { map_fd: u32, pad: u32, key: u64, value: u64, flags: u64 }
}
attribute! {
    struct ProgLoad {
        prog_type: u32, insn_cnt: u32, insns: u64, license: u64, log_level: u32, log_size: u32,
        log_buf: u64, kern_version: u32, prog_flags: u32, prog_name: [u8; 16],
    }
}
attribute! {
    struct Object { pathname: u64, bpf_fd: u32, file_flags: u32 }
}
attribute! {
    struct ById { id: u32, next_id: u32, open_flags: u32 }
}
attribute! {
    struct InfoQuery { bpf_fd: u32, info_len: u32, info: u64 }
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) map_type: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) map_flags: u32,
}

/// The head of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
}

/// What tells two loaded programs apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramInfo {
    /// Digest of the instructions, map references left out.
    pub(crate) tag: [u8; 8],
    /// Ids of the maps it refers to.
    pub(crate) maps: Vec<u32>,
}

fn bpf<A: Attribute>(command: i32, attribute: &mut A) -> io::Result<i32> {
    // SAFETY: `Attribute` promises a layout bpf(2) understands and valid pointers inside.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<A>())
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(done).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn bpf_fd<A: Attribute>(command: i32, attribute: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attribute)?;
    // SAFETY: the command succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn object_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    out
}

/// Makes an array map of `entries` values of 8 bytes, all zero.
pub(crate) fn create_u64_array(name: &str, entries: u32) -> io::Result<OwnedFd> {
    let mut attribute = MapCreate {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: entries,
        map_name: object_name(name),
        ..MapCreate::default()
    };
    bpf_fd(MAP_CREATE, &mut attribute)
}

/// Reads one value.
pub(crate) fn lookup(map: &OwnedFd, key: u32) -> io::Result<u64> {
    let mut value = 0u64;
    let mut attribute = Element {
        map_fd: raw(map),
        key: (&raw const key).expose_provenance() as u64,
        value: (&raw mut value).expose_provenance() as u64,
        ..Element::default()
    };
    bpf(MAP_LOOKUP_ELEM, &mut attribute)?;
    // SAFETY: `value` is a live, aligned local; the volatile read keeps the compiler from
    // assuming it is still the zero it was before the kernel wrote it.
    Ok(unsafe { std::ptr::read_volatile(&raw const value) })
}

/// Writes one value; the kernel stores an aligned 8-byte value in one piece
/// (`bpf_long_memcpy`), so that the program never sees half of it.
pub(crate) fn update(map: &OwnedFd, key: u32, value: u64) -> io::Result<()> {
    let mut attribute = Element {
        map_fd: raw(map),
        key: (&raw const key).expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        ..Element::default()
    };
    bpf(MAP_UPDATE_ELEM, &mut attribute).map(drop)
}

/// Loads a classifier; the verifier checks it.
pub(crate) fn load_classifier(name: &str, code: &[u64], license: &CStr) -> io::Result<OwnedFd> {
    let mut attribute = ProgLoad {
        prog_type: PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        prog_name: object_name(name),
        ..ProgLoad::default()
    };
    bpf_fd(PROG_LOAD, &mut attribute)
}

/// Pins a map in a BPF file system.
pub(crate) fn pin(map: &OwnedFd, path: &CStr) -> io::Result<()> {
    let mut attribute = Object {
        pathname: path.as_ptr().expose_provenance() as u64,
        bpf_fd: raw(map),
        ..Object::default()
    };
    bpf(OBJ_PIN, &mut attribute).map(drop)
}

/// Opens what is pinned at `path`.
pub(crate) fn open_pinned(path: &CStr) -> io::Result<OwnedFd> {
    let mut attribute =
        Object { pathname: path.as_ptr().expose_provenance() as u64, ..Object::default() };
    bpf_fd(OBJ_GET, &mut attribute)
}

/// Opens a loaded program by its id (`CAP_SYS_ADMIN`).
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(PROG_GET_FD_BY_ID, &mut ById { id, ..ById::default() })
}

/// Describes a map. The descriptor must be a map's.
pub(crate) fn map_info(map: &OwnedFd) -> io::Result<MapInfo> {
    let mut info = MapInfo::default();
    query(map, &mut info)?;
    Ok(info)
}

/// Describes a program: its digest and the maps it uses.
pub(crate) fn program_info(program: &OwnedFd) -> io::Result<ProgramInfo> {
    let mut maps = vec![0u32; 8];
    let mut info = RawProgramInfo {
        nr_map_ids: 8,
        map_ids: maps.as_mut_ptr().expose_provenance() as u64,
        ..RawProgramInfo::default()
    };
    query(program, &mut info)?;
    maps.truncate(info.nr_map_ids as usize);
    Ok(ProgramInfo { tag: info.tag, maps })
}

/// Fills `info` with the head of what the kernel says about `object`.
fn query<I>(object: &OwnedFd, info: &mut I) -> io::Result<()> {
    let mut attribute = InfoQuery {
        bpf_fd: raw(object),
        info_len: u32::try_from(size_of::<I>()).map_err(|_| io::ErrorKind::InvalidInput)?,
        info: std::ptr::from_mut(info).expose_provenance() as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attribute).map(drop)
}

/// Runs a classifier once on a made-up frame and returns its verdict (`BPF_PROG_TEST_RUN`).
#[cfg(test)]
pub(crate) fn test_run(program: &OwnedFd, frame: &[u8]) -> io::Result<u32> {
    attribute! {
        struct TestRun {
            prog_fd: u32, retval: u32, data_size_in: u32, data_size_out: u32, data_in: u64,
            data_out: u64, repeat: u32, duration: u32,
        }
    }
    const PROG_TEST_RUN: i32 = 10;
    let mut attribute = TestRun {
        prog_fd: raw(program),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr().expose_provenance() as u64,
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attribute)?;
    Ok(attribute.retval)
}
