//! The frames between the lab program and the agents in the nodes.
//!
//! One TCP connection carries one request. A frame is a length (4 bytes, little endian, of what follows), a kind
//! (1 byte) and a body. Both ends are built from this file, so there is no version negotiation.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Port of the agent on a node's management address.
pub const PORT: u16 = 7700;

/// Longest body that is accepted; a peer that announces more is broken.
const MAX_BODY: usize = 1 << 20;

/// Bytes of a stream that are sent in one frame.
pub const CHUNK: usize = 64 << 10;

/// What the lab asks an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// Run to the end, streams and exit code come back.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Killed with its process group after this time, ms.
        timeout_ms: u64,
    },
    /// Start in the background, both outputs go to a file.
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Wait for a background job.
    Wait {
        /// Number of the job.
        job: u64,
        /// Longest wait, ms.
        timeout_ms: u64,
    },
    /// Send a signal to a background job's process group.
    Kill {
        /// Number of the job.
        job: u64,
        /// Number of the signal.
        signal: i32,
    },
    /// Write a file: `Data` frames follow, then `Eof`.
    Push {
        /// Absolute path; missing folders are made.
        path: String,
        /// Permission bits.
        mode: u32,
    },
    /// Read a file: `Data` frames come back, then `Done`.
    Pull {
        /// Absolute path.
        path: String,
    },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was done.
    Ok,
    /// The process ended with this code; 128 + number for a signal.
    Exited(i32),
    /// The time was over. A process of `Exec` was killed; it may linger in the kernel.
    TimedOut,
    /// A background job runs.
    Started {
        /// Number of the job.
        job: u64,
        /// Process id; its process group has the same number.
        pid: u32,
        /// File that collects both outputs.
        log: String,
    },
    /// It could not be done.
    Failed(String),
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame to the agent.
    Request(Request),
    /// Bytes of a file.
    Data(Vec<u8>),
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// No more `Data`.
    Eof,
    /// Last frame from the agent.
    Done(Reply),
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Frame {
    fn parts(&self) -> io::Result<(u8, Vec<u8>)> {
        Ok(match self {
            Self::Request(r) => (b'r', serde_json::to_vec(r)?),
            Self::Data(d) => (b'd', d.clone()),
            Self::Stdout(d) => (b'o', d.clone()),
            Self::Stderr(d) => (b'e', d.clone()),
            Self::Eof => (b'z', Vec::new()),
            Self::Done(r) => (b'f', serde_json::to_vec(r)?),
        })
    }

    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// The stream's, and `InvalidData` if the body is longer than any reader accepts.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, body) = self.parts()?;
        if body.len() > MAX_BODY {
            return Err(invalid("frame too long"));
        }
        let len = u32::try_from(body.len() + 1).map_err(|_| invalid("frame too long"))?;
        let mut bytes = Vec::with_capacity(body.len() + 5);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.push(kind);
        bytes.extend_from_slice(&body);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// The stream's, `UnexpectedEof` at its end, `InvalidData` for what is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0u8; 5];
        from.read_exact(&mut head)?;
        let [a, b, c, d, kind] = head;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len == 0 || len > MAX_BODY + 1 {
            return Err(invalid("frame length out of range"));
        }
        let mut body = vec![0; len - 1];
        from.read_exact(&mut body)?;
        Self::from_parts(kind, body)
    }

    fn from_parts(kind: u8, body: Vec<u8>) -> io::Result<Self> {
        Ok(match kind {
            b'r' => Self::Request(serde_json::from_slice(&body)?),
            b'd' => Self::Data(body),
            b'o' => Self::Stdout(body),
            b'e' => Self::Stderr(body),
            b'z' if body.is_empty() => Self::Eof,
            b'f' => Self::Done(serde_json::from_slice(&body)?),
            _ => return Err(invalid("unknown kind of frame")),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            bytes.clone().prop_map(Frame::Data),
            bytes.clone().prop_map(Frame::Stdout),
            bytes.prop_map(Frame::Stderr),
            Just(Frame::Eof),
            any::<i32>().prop_map(|c| Frame::Done(Reply::Exited(c))),
            ".*".prop_map(|s| Frame::Done(Reply::Failed(s))),
            (".*", any::<u32>())
                .prop_map(|(path, mode)| Frame::Request(Request::Push { path, mode })),
            (proptest::collection::vec(".*", 0..4), any::<u64>())
                .prop_map(|(argv, timeout_ms)| Frame::Request(Request::Exec { argv, timeout_ms })),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(frames in proptest::collection::vec(frame(), 1..5)) {
            let mut bytes = Vec::new();
            for f in &frames {
                f.write(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            for f in &frames {
                prop_assert_eq!(&Frame::read(&mut rest).unwrap(), f);
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::read(&mut bytes.as_slice());
        }

        #[test]
        fn a_cut_frame_is_no_frame(f in frame(), cut in 1usize..5) {
            let mut bytes = Vec::new();
            f.write(&mut bytes).unwrap();
            let short = &bytes[..bytes.len() - cut];
            prop_assert!(Frame::read(&mut &*short).is_err());
        }
    }

    #[test]
    fn absurd_lengths_are_refused_without_allocating() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.push(b'd');
        let e = Frame::read(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    }
}
