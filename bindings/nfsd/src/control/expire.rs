//! The clients of a server, and their expiry by hand: opens, locks and record gone at once.
//!
//! Keeps S12: only a client that is known to be silent for longer than its lease is expired, judged by what the
//! kernel says right before. The kernel frees everything before the write returns (`force_expire_client`) and
//! has the tracker remove the record inside it. It first waits for calls of that client that are in execution,
//! without an end: on a frozen volume the write hangs.

use std::path::Path;

use super::{ClientInfo, Server, files};
use crate::{Error, Result};

/// The one word that `client_ctl_write` takes, to the byte.
const EXPIRE: &str = "expire\n";

impl Server {
    /// The clients the server knows. One that goes away while being read is left out.
    pub fn clients(&self) -> Result<Vec<ClientInfo>> {
        let texts = files::read_each(&self.file("clients"), "info")?;
        Ok(texts.iter().filter_map(|text| ClientInfo::parse(text)).collect())
    }

    /// Expires every client with one of these owner strings, each silent for more than `lease_s` seconds; how
    /// many there were. All are looked at before the first is expired, and each again right before.
    ///
    /// # Errors
    /// [`Error::ClientLives`] when one has renewed, or nobody knows when; it says how many were expired before.
    /// [`Error::Control`] and [`Error::Unreadable`]: another was not expired.
    pub fn expire(&self, names: &[Vec<u8>], lease_s: u32) -> Result<usize> {
        let mut silent = Vec::new();
        for dir in files::entries(&self.file("clients"))? {
            match look(&dir)? {
                Some(info) if names.contains(&info.name) => {
                    check_silent(&info, lease_s, 0)?;
                    silent.push((dir, info));
                }
                _ => {}
            }
        }
        let mut expired = 0;
        for (dir, info) in silent {
            expired += usize::from(expire_one(&dir, &info, lease_s, expired)?);
        }
        Ok(expired)
    }
}

/// The client of a directory; none: it is gone.
fn look(dir: &Path) -> Result<Option<ClientInfo>> {
    let file = dir.join("info");
    let Some(text) = files::read_present(&file)? else { return Ok(None) };
    ClientInfo::parse(&text).map(Some).ok_or_else(|| files::unreadable(&file, &text))
}

/// False: it went away by itself. The number of a directory may name another client by now.
fn expire_one(dir: &Path, seen: &ClientInfo, lease_s: u32, expired: usize) -> Result<bool> {
    let Some(info) = look(dir)?.filter(|now| (now.id, &now.name) == (seen.id, &seen.name)) else {
        return Ok(false);
    };
    check_silent(&info, lease_s, expired)?;
    files::write_present(&dir.join("ctl"), EXPIRE)
}

fn check_silent(info: &ClientInfo, lease_s: u32, expired: usize) -> Result<()> {
    if info.is_silent(lease_s) {
        return Ok(());
    }
    let name = String::from_utf8_lossy(&info.name).into_owned();
    Err(Error::ClientLives { name, renewed_s: info.renewed_s, expired })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::control::tests::fake;

    const HV1: &str = "Linux NFSv4.2 hv1";

    /// A client's directory as the kernel makes it; its number is not the client's id.
    fn client(root: &Path, number: u32, name: &str, renewed: &str) {
        let dir = root.join("clients").join(number.to_string());
        fs::create_dir_all(&dir).unwrap();
        let id = 0x65f0_c1d2_0000_0000_u64 + u64::from(number) + 7;
        let info = format!("clientid: {id:#x}\n{renewed}name: \"{name}\"\nminor version: 2\n");
        fs::write(dir.join("info"), info).unwrap();
        fs::write(dir.join("ctl"), "").unwrap();
    }

    fn silent(seconds: i64) -> String {
        format!("status: courtesy\nseconds from last renew: {seconds}\n")
    }

    fn told(root: &Path, number: u32) -> String {
        fs::read_to_string(root.join("clients").join(number.to_string()).join("ctl")).unwrap()
    }

    fn expire(root: &Path, names: &[&str]) -> Result<usize> {
        let names: Vec<Vec<u8>> = names.iter().map(|n| n.as_bytes().to_vec()).collect();
        fake(root).expire(&names, 15)
    }

    #[test]
    fn only_clients_of_that_name_are_expired() {
        let root = tempfile::tempdir().unwrap();
        client(root.path(), 1, HV1, &silent(312));
        client(root.path(), 2, "Linux NFSv4.2 hv2", &silent(312));
        client(root.path(), 3, HV1, &silent(16));
        assert_eq!(expire(root.path(), &[HV1]).unwrap(), 2);
        let told = [1, 2, 3].map(|n| told(root.path(), n));
        assert_eq!(told, ["expire\n", "", "expire\n"]);
        assert_eq!(expire(root.path(), &["Linux NFSv4.2 hv"]).unwrap(), 0, "no such client");
    }

    #[test]
    fn s12_one_that_lives_spares_all_of_the_name() {
        let unknown = "status: confirmed\n".to_owned();
        for (renewed, known) in [(silent(15), Some(15)), (silent(-1), Some(-1)), (unknown, None)] {
            let root = tempfile::tempdir().unwrap();
            client(root.path(), 1, HV1, &silent(312));
            client(root.path(), 2, HV1, &renewed);
            let Err(Error::ClientLives { name, renewed_s, expired: 0 }) =
                expire(root.path(), &[HV1])
            else {
                panic!("{renewed}");
            };
            assert_eq!((name.as_str(), renewed_s), (HV1, known));
            assert_eq!(told(root.path(), 1) + &told(root.path(), 2), "");
        }
    }

    #[test]
    fn s12_a_client_that_cannot_be_read_may_be_the_one_that_lives() {
        let root = tempfile::tempdir().unwrap();
        client(root.path(), 1, HV1, &silent(312));
        fs::create_dir_all(root.path().join("clients/2")).unwrap();
        fs::write(root.path().join("clients/2/info"), "?").unwrap();
        assert!(matches!(expire(root.path(), &[HV1]), Err(Error::Unreadable { .. })));
        assert_eq!(told(root.path(), 1), "");
    }

    #[test]
    fn a_client_that_went_away_is_no_failure() {
        let root = tempfile::tempdir().unwrap();
        client(root.path(), 1, HV1, &silent(312));
        fs::create_dir_all(root.path().join("clients/2")).unwrap();
        assert_eq!(expire(root.path(), &[HV1]).unwrap(), 1, "the second lost its files meanwhile");
        let dir = root.path().join("clients/1");
        let seen = look(&dir).unwrap().unwrap();
        client(root.path(), 1, "Linux NFSv4.2 hv2", &silent(312));
        assert!(!expire_one(&dir, &seen, 15, 0).unwrap(), "another client by now");
        assert_eq!(told(root.path(), 1), "");
        let other = ClientInfo { id: seen.id + 1, ..seen };
        client(root.path(), 1, HV1, &silent(312));
        assert!(!expire_one(&dir, &other, 15, 0).unwrap(), "it has come back as a new one");
        assert!(matches!(expire(Path::new("/nonexistent"), &[HV1]), Err(Error::Control { .. })));
    }
}
