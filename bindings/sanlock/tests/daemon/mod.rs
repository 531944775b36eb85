//! A daemon that answers as sanlock's current sources do, byte by byte, written down apart from the decoder.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

pub const MAGIC: u32 = 0x0428_2010;

/// The bytes of an answer under construction.
#[derive(Clone, Default)]
pub struct Answer(pub Vec<u8>);

impl Answer {
    pub fn header(cmd: u32, length: u32, data: i32, data2: u32) -> Self {
        let words = [MAGIC, 1, cmd, 0, length, 0, data.cast_unsigned(), data2];
        Self(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn text(mut self, text: &str, size: usize) -> Self {
        let end = self.0.len() + size;
        self.0.extend(text.as_bytes());
        self.0.resize(end, 0);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `struct sanlk_state` and its text.
    pub fn state(self, kind: u32, data32: u32, data64: u64, name: &str, text: &str) -> Self {
        let length = u32::try_from(text.len() + 1).unwrap();
        let fixed = self.u32(kind).u32(0).u32(data32).u32(0).u64(data64);
        fixed.text(name, 48).u32(length).u32(0).raw(text.as_bytes()).raw(&[0])
    }

    pub fn disk(self, path: &str, offset: u64) -> Self {
        self.text(path, 1024).u64(offset).u32(0).u32(0)
    }

    /// `struct sanlk_lockspace`.
    pub fn lockspace(self, name: &str, host_id: u64, flags: u32, path: &str) -> Self {
        self.text(name, 48).u64(host_id).u32(flags).u32(0).disk(path, 0)
    }

    /// `struct sanlk_resource` and its disks.
    pub fn resource(self, lockspace: &str, name: &str, flags: u32, disks: &[&str]) -> Self {
        let fixed = self.text(lockspace, 48).text(name, 48).u64(7).u64(0).u32(0).u32(0);
        let fixed = fixed.u32(flags).u32(u32::try_from(disks.len()).unwrap());
        disks.iter().fold(fixed, |answer, path| answer.disk(path, 1_048_576))
    }

    /// `struct sanlk_host`.
    pub fn host(self, id: u64, timestamp: u64, io_timeout: u32, flags: u32) -> Self {
        self.u64(id).u64(1).u64(timestamp).u32(io_timeout).u32(flags)
    }
}

pub const DAEMON: &str = "our_host_name=4c4c4544-0042.hv1 use_watchdog=0 high_priority=1 \
    mlock_level=1 quiet_fail=1 debug_renew=0 debug_clients=0 debug_cmds=0x0 \
    renewal_history_size=180 gid=117 uid=110 sh_retries=8 use_aio=1 io_timeout=10 \
    watchdog_fire_timeout=60 kill_grace_seconds=40 helper_pid=812 helper_kill_fd=5 \
    helper_full_count=0 helper_last_status=1200 monotime=1217 version_str=3.8.5 \
    version_num=3.8.5 version_hex=03080500 smproto_hex=00000001";

pub const LOCKSPACE: &str = "list=spaces space_id=1 io_timeout=10 sector_size=512 \
    align_size=1048576 host_generation=4 renew_fail=0 space_dead=0 killing_pids=0 \
    used_retries=0 external_used=0 used_by_orphans=0 renewal_read_extend_sec=10 \
    set_max_sectors_kb=0 corrupt_result=0 acquire_last_result=1 renewal_last_result=1 \
    acquire_last_attempt=100 acquire_last_success=100 renewal_last_attempt=1200 \
    renewal_last_success=1201";

pub const CLIENT: &str = "ci=4 fd=12 pid=4711 flags=0 restricted=1 cmd_active=0 cmd_last=7 \
    pid_dead=0 kill_count=2 kill_last=0 suspend=0 need_free=0";

pub const RESOURCE: &str =
    "list=held flags=0 sector_size=512 align_size=1048576 lver=7 reused=0 res_id=3 token_id=3";

pub const NAME: &str = "__LIBVIRT__DISKS__";
pub const PATH: &str = "/var/lib/libvirt/sanlock/__LIBVIRT__DISKS__";

/// A status answer with one of each kind.
pub fn full_status() -> Answer {
    Answer::header(5, 32, 0, 0)
        .state(1, 0, 0, "4c4c4544-0042.hv1", DAEMON)
        .state(7, 0, 0, "", "cmd_last=acquire busy=0 work_count=4 io_count=7 to_count=0")
        .state(2, u32::MAX, 0, "listener", &CLIENT.replace("4711", "-1"))
        .state(2, 4711, 0, "guest1", CLIENT)
        .state(3, 0, 1, NAME, LOCKSPACE)
        .lockspace(NAME, 1, 0, PATH)
        .state(4, 4711, 7, "0123abcd", RESOURCE)
        .resource(NAME, "0123abcd", 4, &["/leases/0123abcd"])
}

pub fn renewal(timestamp: u64) -> String {
    format!("timestamp={timestamp} read_ms=3 write_ms=4 next_timeouts=1 next_errors=0")
}

/// The socket of a daemon that serves one connection.
pub struct Fake {
    _dir: tempfile::TempDir,
    pub socket: PathBuf,
    served: JoinHandle<Vec<u8>>,
}

/// Starts a daemon: reads a request of `length` bytes in **one** read, as the real one relies on,
/// then does what `serve` says.
pub fn fake(length: usize, serve: impl FnOnce(UnixStream) + Send + 'static) -> Fake {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sanlock.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; length];
        let count = stream.read(&mut request).unwrap();
        request.truncate(count);
        serve(stream);
        request
    });
    Fake { _dir: dir, socket, served }
}

/// A daemon that gives that answer and closes.
pub fn answers(length: usize, answer: Answer) -> Fake {
    fake(length, move |mut stream| {
        // The client may have hung up on an answer it refuses.
        let _ = stream.write_all(&answer.0);
    })
}

impl Fake {
    /// The request it got.
    pub fn request(self) -> Vec<u8> {
        self.served.join().unwrap()
    }
}

/// A daemon that gives these answers, one connection each, whatever it is asked.
pub fn serves<const N: usize>(answers: [Answer; N]) -> PathBuf {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sanlock.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let _dir = dir;
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 2048]).unwrap();
            let _ = stream.write_all(&answer.0);
        }
    });
    socket
}
