//! Errors of the bus and of what comes over it. Each says what is true now.

use std::time::Duration;

use zbus::DBusError;

/// Short form used throughout the module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no answer. None of these says anything about a guest.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No answer in time. The call may still be carried out.
    #[error("{service} did not answer {call} within {limit:?}; whether it was done is not known")]
    Deadline {
        /// Bus name.
        service: &'static str,
        /// Method.
        call: &'static str,
        /// The call's limit.
        limit: Duration,
    },
    /// Too many calls hang; this one was not made.
    #[error(
        "libvirt hangs ({outstanding} calls unanswered), {call} was not tried; it is asked again \
         in {wait:?}. See whether libvirtd answers `virsh list`"
    )]
    Open {
        /// Method.
        call: &'static str,
        /// Calls whose answers are still out.
        outstanding: u32,
        /// Until the next attempt.
        wait: Duration,
    },
    /// Nobody answers under the name: not installed, not started, or it has just died.
    #[error("{service} is not there ({message}); check that it is installed and can be started")]
    Absent {
        /// Bus name.
        service: &'static str,
        /// The bus's words.
        message: String,
    },
    /// It answered with an error. libvirt-dbus passes on a message only, no code: ask for the
    /// state again instead of reading the words.
    #[error("{call} was refused: {message}")]
    Refused {
        /// Method.
        call: &'static str,
        /// Its words.
        message: String,
    },
    /// The bus itself cannot be used.
    #[error("D-Bus cannot be used for {call}: {message}")]
    Bus {
        /// Method, or what else was tried.
        call: &'static str,
        /// zbus's words.
        message: String,
    },
    /// An answer that is not what the interface promises.
    #[error("{call} answered with what is not understood: {what}")]
    BadAnswer {
        /// Method.
        call: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// XML that does not describe what it should.
    #[error("the XML of a {kind} is not understood: {what}")]
    BadXml {
        /// domain or pool.
        kind: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// Names of errors which mean that nobody is there.
const ABSENT: [&str; 6] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.Disconnected",
    "org.freedesktop.DBus.Error.NoServer",
    "org.freedesktop.DBus.Error.TimedOut",
];
/// Names that begin so are about starting the service.
const NOT_STARTED: &str = "org.freedesktop.DBus.Error.Spawn.";

impl Error {
    /// What an error of the bus means for a call.
    pub(crate) fn of_bus(service: &'static str, call: &'static str, error: &zbus::Error) -> Self {
        let (name, message) = match error {
            zbus::Error::MethodError(name, words, _) => (name.to_string(), words.clone()),
            // zbus turns the errors of the bus's own name space into these.
            zbus::Error::FDO(error) => {
                (error.name().to_string(), error.description().map(str::to_owned))
            }
            other => return Self::Bus { call, message: other.to_string() },
        };
        let absent = ABSENT.contains(&name.as_str()) || name.starts_with(NOT_STARTED);
        let message = message.filter(|words| !words.is_empty()).unwrap_or(name);
        if absent { Self::Absent { service, message } } else { Self::Refused { call, message } }
    }

    /// Whether the service is gone, as opposed to slow or unwilling.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }

    /// Whether nothing is known because it hangs.
    #[must_use]
    pub const fn is_hang(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Open { .. })
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use zbus::{DynamicType, Message};

    use super::*;

    /// What an error reply of that name becomes.
    fn of(name: &str, body: &(impl Serialize + DynamicType)) -> Error {
        let call = Message::method_call("/", "Call").destination(":1.2").build(&()).unwrap();
        let reply = Message::error(&call.header(), name).build(body).unwrap();
        Error::of_bus("org.libvirt", "Call", &reply.into())
    }

    #[test]
    fn a_service_that_is_not_there_is_told_from_one_that_refuses() {
        let spawn = "org.freedesktop.DBus.Error.Spawn.ExecFailed";
        for name in ABSENT.into_iter().chain([spawn]) {
            assert!(of(name, &"why").is_absent(), "{name}");
        }
        for name in ["org.libvirt.Error", "org.freedesktop.DBus.Error.AccessDenied"] {
            let error = of(name, &"why");
            assert!(
                matches!(&error, Error::Refused { message, .. } if message == "why"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_error_without_words_has_its_name() {
        let error = of("org.libvirt.Error", &());
        assert!(matches!(&error, Error::Refused { message, .. } if message == "org.libvirt.Error"));
        assert!(!error.is_absent() && !error.is_hang());
    }
}
