//! What agent and helper say: one JSON object a line, one answer for each request.
//!
//! No path is ever said: the helper gets its mount when it is started. An answer that is not
//! understood is none (S12).

use serde::{Deserialize, Serialize};

/// Longest line, the line end not counted. Answers are far shorter.
pub const LONGEST_LINE: usize = 4096;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Make the probe file if it is not there.
    Prepare,
    /// Open the mount's root and the probe file, and keep both.
    Hold,
    /// Read from the kept file, past the cache.
    Read,
    /// Open a name that has never been there: only the server can say that it is not.
    Open,
    /// Close what is kept.
    Drop,
    /// As [`What::Open`], and keep nothing.
    Visit,
}

/// Agent to helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back with the answer.
    pub id: u64,
    /// What is to be done.
    #[serde(rename = "do")]
    pub what: What,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// The server has answered.
    Good,
    /// An error came back.
    Error {
        /// Its number.
        errno: i32,
    },
}

/// Helper to agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The request's.
    pub id: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Microseconds that it took.
    pub took_us: u64,
}

/// Why a line is none of ours.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Longer than [`LONGEST_LINE`].
    #[error("a line of {0} bytes is too long for the probe protocol: the other side is not ours")]
    Long(usize),
    /// No JSON of the expected form.
    #[error("a line is not of the probe protocol: {0}")]
    Json(#[from] serde_json::Error),
}

/// A line, its end included.
///
/// # Errors
/// Serialising failed, which these types do not do.
pub fn line<T: Serialize>(message: &T) -> Result<Vec<u8>, LineError> {
    let mut out = serde_json::to_vec(message)?;
    out.push(b'\n');
    Ok(out)
}

/// What a line says.
///
/// # Errors
/// It is too long, or not of this protocol.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, LineError> {
    if line.len() > LONGEST_LINE {
        return Err(LineError::Long(line.len()));
    }
    Ok(serde_json::from_slice(line)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_words() {
        let request = Request { id: 7, what: What::Hold };
        assert_eq!(line(&request).unwrap(), b"{\"id\":7,\"do\":\"hold\"}\n");
        let reply = Reply { id: 7, outcome: Outcome::Error { errno: 116 }, took_us: 3 };
        let text = "{\"id\":7,\"outcome\":{\"error\":{\"errno\":116}},\"took_us\":3}\n";
        assert_eq!(String::from_utf8(line(&reply).unwrap()).unwrap(), text);
    }

    #[test]
    fn other_words_are_none() {
        for bad in
            ["", "{}", "{\"id\":1,\"do\":\"rm\"}", "{\"id\":1,\"do\":\"read\",\"x\":1}", "[]"]
        {
            assert!(parse::<Request>(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(matches!(parse::<Reply>(&[b' '; 5000]), Err(LineError::Long(5000))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<Request>(&raw);
            let _ = parse::<Reply>(&raw);
        }

        #[test]
        fn replies_come_back(id in any::<u64>(), took_us in any::<u64>(), errno in any::<i32>(), good in any::<bool>()) {
            let outcome = if good { Outcome::Good } else { Outcome::Error { errno } };
            let reply = Reply { id, outcome, took_us };
            prop_assert_eq!(parse::<Reply>(&line(&reply).unwrap()).unwrap(), reply);
        }
    }
}
