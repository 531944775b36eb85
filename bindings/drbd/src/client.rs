//! Opening DRBD and reading its state.
//!
//! The state of a resource comes from the kernel's snapshot (dump 38), which is taken under the
//! resource's lock: roles, disks and connections in it belong together, as S1 and S2 need. The
//! configuration comes from the dumps 30 to 32, read before it.

use std::collections::BTreeMap;

use crate::abi::Abi;
use crate::commands::TransportError;
use crate::events::Events;
use crate::model::Model;
use crate::queue::CommandQueue;
use crate::retcode::ReturnCode;
use crate::socket::{Answer, Genl, Transport};
use crate::status::ResourceStatus;
use crate::wire::DecodeError;
use crate::wire::nests::{self, Config};
use crate::wire::request::Requests;

/// Why DRBD cannot be spoken to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The module is not loaded; load `drbd`.
    #[error("the DRBD module is not loaded")]
    ModuleAbsent,
    /// The interface is neither that of 8.4 nor that of 9.
    #[error("unknown DRBD interface: family version {version}, header of {header} bytes")]
    UnknownInterface {
        /// Version of the family; 1 and 2 are known.
        version: u32,
        /// Size of its header in bytes; 8 is known.
        header: u32,
    },
    /// The family has no number: the controller's answer is incomplete.
    #[error("the kernel does not tell the number of the DRBD family")]
    NoFamilyId,
    /// The family has no group `events`.
    #[error("the DRBD module offers no events")]
    NoEventsGroup,
    /// The socket failed.
    #[error(transparent)]
    Transport(TransportError),
}

impl From<TransportError> for OpenError {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::ModuleAbsent => Self::ModuleAbsent,
            other => Self::Transport(other),
        }
    }
}

impl From<DecodeError> for OpenError {
    fn from(error: DecodeError) -> Self {
        Self::Transport(TransportError::Decode(error))
    }
}

/// Why the state could not be read; nothing is known then (S12).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// The socket failed, or the answer makes no sense.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The kernel reports an error instead of an object.
    #[error("the kernel reports an error instead of its state ({0})")]
    Refused(ReturnCode),
    /// The dump ended without its end mark: it may be incomplete.
    #[error("the kernel's snapshot is incomplete")]
    Incomplete,
    /// There is no such resource.
    #[error("resource {0} does not exist")]
    NoSuchResource(String),
}

impl From<DecodeError> for StatusError {
    fn from(error: DecodeError) -> Self {
        Self::Transport(TransportError::Decode(error))
    }
}

/// DRBD on this node. Blocking; reading waits for DRBD's configuration lock at most.
#[derive(Debug)]
pub struct Drbd {
    genl: Genl,
}

impl Drbd {
    /// Finds the module and its interface.
    ///
    /// # Errors
    /// [`OpenError::ModuleAbsent`] and others.
    pub fn open() -> Result<Self, OpenError> {
        Ok(Self { genl: Genl::open()? })
    }

    /// The interface that the loaded module speaks.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.genl.family.abi
    }

    /// All resources, by name, with their configuration.
    ///
    /// # Errors
    /// Nothing is known.
    pub fn status(&mut self) -> Result<BTreeMap<String, ResourceStatus>, StatusError> {
        read(&mut self.genl)
    }

    /// One resource.
    ///
    /// # Errors
    /// [`StatusError::NoSuchResource`], or nothing is known.
    pub fn status_of(&mut self, name: &str) -> Result<ResourceStatus, StatusError> {
        read_one(&mut self.genl, name)
    }

    /// Follows all resources, on a socket of its own.
    ///
    /// # Errors
    /// As [`Drbd::open`].
    pub fn events(&self) -> Result<Events, OpenError> {
        Events::open()
    }

    /// Starts the command thread of a resource, with a socket of its own. One per resource.
    ///
    /// # Errors
    /// As [`Drbd::open`].
    pub fn commands(&self, resource: &str) -> Result<CommandQueue, OpenError> {
        CommandQueue::start(resource)
    }
}

pub(crate) fn read_one(
    transport: &mut dyn Transport,
    name: &str,
) -> Result<ResourceStatus, StatusError> {
    let mut all = read(transport)?;
    all.remove(name).ok_or_else(|| StatusError::NoSuchResource(name.to_owned()))
}

/// Configuration first, state last, so that the state is the newest.
pub(crate) fn read(
    transport: &mut dyn Transport,
) -> Result<BTreeMap<String, ResourceStatus>, StatusError> {
    let abi = transport.abi();
    let t = abi.table();
    let mut configs = Vec::new();
    for cmd in [t.cmd_resources, t.cmd_devices, t.cmd_connections] {
        for answer in transport.dump(&Requests::dump(cmd))? {
            check(&answer)?;
            configs.extend(nests::config(abi, &answer.message())?);
        }
    }
    let mut resources = snapshot(transport)?.into_resources();
    for (name, config) in configs {
        if let Some(status) = resources.get_mut(&name) {
            configure(abi, status, config)?;
        }
    }
    Ok(resources)
}

fn check(answer: &Answer) -> Result<(), StatusError> {
    let code = ReturnCode(answer.code);
    if code.is_success() { Ok(()) } else { Err(StatusError::Refused(code)) }
}

fn snapshot(transport: &mut dyn Transport) -> Result<Model, StatusError> {
    let abi = transport.abi();
    let mut model = Model::new(abi);
    for answer in transport.dump(&Requests::dump(abi.table().cmd_initial_state))? {
        check(&answer)?;
        if let Some(event) = nests::event(abi, &answer.message())? {
            model.apply(&event);
        }
    }
    if model.is_complete() { Ok(model) } else { Err(StatusError::Incomplete) }
}

/// Adds configuration to objects that the snapshot has; what is gone meanwhile is left out.
fn configure(abi: Abi, status: &mut ResourceStatus, config: Config) -> Result<(), DecodeError> {
    match config {
        Config::Resource(options) => status.options = Some(options),
        Config::Disk(volume, options) => {
            if let Some(device) = status.devices.get_mut(&volume) {
                device.options = Some(options);
            }
        }
        Config::Net { context, options } => {
            let key = context.key(abi)?;
            let found = status.connections.iter_mut().find(|found| found.key == key);
            if let Some(connection) = found {
                connection.my_addr = connection.my_addr.take().or(context.my_addr);
                connection.peer_addr = connection.peer_addr.take().or(context.peer_addr);
                connection.name = connection.name.take().or(context.conn_name);
                connection.options = options;
            }
        }
    }
    Ok(())
}
