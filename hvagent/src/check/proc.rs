//! What the kernel's small tables say: listening sockets, free memory, mount points, file systems.
//!
//! Pure parsers of text that the kernel makes from memory (S10). What is not understood is left
//! out; callers say so where absence would be taken for good news (S12).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mounts::escape;

/// `TCP_LISTEN` in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The addresses and ports that something listens on, of `/proc/net/tcp` or `tcp6`.
pub fn listening(table: &str) -> impl Iterator<Item = (IpAddr, u16)> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        (state == LISTEN).then(|| endpoint(local)).flatten()
    })
}

/// `0100007F:0016`: words in the machine's byte order, the port as written.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let text = address.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes)
    };
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => IpAddr::V6(v6([word(0)?, word(1)?, word(2)?, word(3)?])),
        _ => return None,
    };
    Some((address.to_canonical(), port))
}

fn v6(words: [[u8; 4]; 4]) -> Ipv6Addr {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(words.into_iter().flatten()) {
        *to = from;
    }
    Ipv6Addr::from(bytes)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
#[must_use]
pub fn available_memory(table: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What is mounted at a point, whatever its type: the last of several hides the others.
#[must_use]
pub fn mounted_at(mountinfo: &[u8], point: &str) -> Option<String> {
    let lines = mountinfo.rsplit(|byte| *byte == b'\n');
    let mut mounts = lines.filter_map(any_mount);
    mounts.find(|(at, _)| at == point).map(|(_, source)| source)
}

fn any_mount(line: &[u8]) -> Option<(String, String)> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    Some((escape::text(fields.get(4)?), escape::text(fields.get(dash + 2)?)))
}

/// The server's identifiers of file systems by device, of `/proc/fs/nfsfs/volumes`.
#[must_use]
pub fn fsid(volumes: &str, device: (u32, u32)) -> Option<String> {
    let device = format!("{}:{}", device.0, device.1);
    volumes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        (fields.next()? == device).then(|| fields.next())?.map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0B4D4D0A:407D 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   2: 0B4D4D0A:0801 0B4D4D0A:03E8 01 00000000:00000000 00:00000000 00000000     0        0 1 1
";
    const TCP6: &str = "  sl  local_address remote_address st
   0: 00000000000000000000000000000000:4082 00000000000000000000000000000000:0000 0A 0 0
   1: 0000000000000000FFFF00000100007F:0016 00000000000000000000000000000000:0000 0A 0 0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_told_from_connections() {
        let found: Vec<_> = listening(TCP).collect();
        let expected = [("127.0.0.1", 22), ("10.77.77.11", 16509)];
        assert_eq!(found, expected.map(|(address, port)| (address.parse().unwrap(), port)));
        let found: Vec<_> = listening(TCP6).collect();
        let expected = [("::", 16514), ("127.0.0.1", 22)];
        assert_eq!(found, expected.map(|(address, port)| (address.parse().unwrap(), port)));
    }

    #[test]
    fn memory_is_in_bytes() {
        let table = "MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n";
        assert_eq!(available_memory(table), Some(1_024_000));
        assert_eq!(available_memory("MemFree: 1 kB"), None);
        assert_eq!(available_memory("MemAvailable: 99999999999999999999 kB"), None);
    }

    #[test]
    fn the_topmost_mount_of_any_type() {
        let table = b"27 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw\n\
            40 27 0:40 / /my\\040vms rw - nfs4 nas:/old rw\n\
            41 27 0:41 / /my\\040vms rw - nfs4 nas:/new rw\nrubbish\n";
        assert_eq!(mounted_at(table, "/my vms").as_deref(), Some("nas:/new"));
        assert_eq!(mounted_at(table, "/").as_deref(), Some("/dev/vda1"));
        assert_eq!(mounted_at(table, "/my"), None);
    }

    #[test]
    fn file_systems_of_the_server() {
        let table = "NV SERVER   PORT DEV          FSID                              FSC\n\
            v4 0a4d0032  801 0:52         8a3f6c0000000001:0                no\n";
        assert_eq!(fsid(table, (0, 52)).as_deref(), Some("8a3f6c0000000001:0"));
        assert_eq!(fsid(table, (0, 53)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = listening(&text).count();
            let _ = listening(&format!("h\n 0: {text}")).count();
            let _ = (available_memory(&text), fsid(&text, (0, 1)), mounted_at(&bytes, "/"));
        }

        #[test]
        fn any_endpoint_comes_back(address: [u8; 4], port: u16) {
            let text = format!("h\n0: {:08X}:{port:04X} 0:0 0A", u32::from_ne_bytes(address));
            let found: Vec<_> = listening(&text).collect();
            prop_assert_eq!(found, vec![(IpAddr::from(address), port)]);
        }
    }
}
