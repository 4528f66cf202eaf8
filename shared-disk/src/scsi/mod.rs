//! SCSI commands to a block device, past the kernel's block layer: what the test-and-set and reservations need and what
//! read(2) and write(2) cannot say.
//!
//! `cdb` encodes commands and decodes their answers, and `status` says what a device's status and sense data mean; both
//! are pure. [`ScsiDevice`] sends the commands. [`Reservation`] keeps every host but this one from writing to a device
//! (SPC-4, 5.9: persistent reservations). Command layouts are those of SBC-3 and SPC-4.

mod cdb;
mod device;
mod reservation;
mod span;
mod status;

pub use cdb::{Capacity, ScsiAnswerError};
pub(crate) use device::Compared;
pub use device::{ScsiDevice, Unfit};
pub use reservation::{Reservation, ReservationKey};
pub use status::CommandFault;

#[cfg(feature = "fuzzing")]
pub use self::{cdb::fuzz as fuzz_answer, status::fuzz as fuzz_reply};

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a device did not do what it was asked.
#[derive(Debug, Error)]
pub enum ScsiError {
    /// The device cannot be opened or examined.
    #[error("cannot {action} {}: {cause}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The device.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// Not a block device that takes SCSI commands, or not one of which the right blocks would be met.
    #[error("{} {cause}", path.display())]
    Unfit {
        /// The device.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: Unfit,
    },
    /// The device, or the way to it, answered a command with an error.
    #[error("{}: {command}: {fault}", path.display())]
    Command {
        /// The device.
        path: PathBuf,
        /// The command's name.
        command: &'static str,
        /// The answer.
        #[source]
        fault: CommandFault,
    },
    /// The device answered with something that is no answer to the command.
    #[error("{}: the answer to {command} makes no sense: {cause}", path.display())]
    Answer {
        /// The device.
        path: PathBuf,
        /// The command's name.
        command: &'static str,
        /// What is wrong.
        #[source]
        cause: ScsiAnswerError,
    },
    /// Another program has a persistent reservation, or is registered for one.
    #[error(
        "{} is reserved with the key {key:#018x}, which is not ftvm's: find out which program uses this device; if none \
         does any more, clear the reservation with `sg_persist --out --clear --param-rk={key:#x}`",
        path.display()
    )]
    Foreign {
        /// The device.
        path: PathBuf,
        /// The other's key.
        key: u64,
    },
    /// The reservation is not this host's alone although the device has confirmed every step: it changes meanwhile.
    #[error("{}: the persistent reservation does not hold: expected {expected:#018x} alone, found {found}", path.display())]
    NotHeld {
        /// The device.
        path: PathBuf,
        /// The key that should hold it.
        expected: u64,
        /// What the device says instead.
        found: String,
    },
}

impl ScsiError {
    /// Whether the same call may succeed later without anyone's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // The device may just not be attached yet, or the only path to it may be lost for now.
            ScsiError::System { cause, .. } => cause.kind() != io::ErrorKind::PermissionDenied,
            ScsiError::Command { fault, .. } => fault.is_passing(),
            ScsiError::NotHeld { .. } => true,
            ScsiError::Unfit { .. } | ScsiError::Answer { .. } | ScsiError::Foreign { .. } => false,
        }
    }
}
