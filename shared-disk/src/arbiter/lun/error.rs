//! Why a SCSI device cannot serve as arbiter, and what a person can do.

use std::path::PathBuf;

use super::layout::{BLOCKS, CellError, SLOTS};
use crate::arbiter::ArbiterError;
use crate::scsi::{CommandFault, ScsiError};

/// What is wrong with a device that is to be the arbiter.
#[derive(Debug, thiserror::Error)]
pub(super) enum LunError {
    #[error(transparent)]
    Scsi(#[from] ScsiError),
    #[error("{} is smaller than 2 MiB or {BLOCKS} blocks", .0.display())]
    Small(PathBuf),
    #[error("{} says it is '{content}', which this version of ftvm cannot use", path.display())]
    OtherVersion {
        path: PathBuf,
        /// Its header, with escapes.
        content: String,
    },
    #[error("{} holds something that is not ftvm's", path.display())]
    InUse {
        path: PathBuf,
        /// What is wrong with its first block.
        #[source]
        cause: CellError,
    },
    #[error("{} is not zeroed (something lies in its {count} blocks from {first} on), so it may be in use", path.display())]
    NotZeroed { path: PathBuf, first: u64, count: u64 },
    #[error("{} holds {SLOTS} guests already, and they keep their places", .0.display())]
    Full(PathBuf),
    #[error("{} is empty; is it the device on which the guest was started?", .0.display())]
    Empty(PathBuf),
    #[error("{} changes while it is read", .0.display())]
    Changing(PathBuf),
    #[error("no guest '{guest}' was ever started on {}", path.display())]
    NoGuest { path: PathBuf, guest: String },
}

/// The device cannot be the arbiter as it is.
pub(super) fn unusable(error: LunError) -> ArbiterError {
    ArbiterError::broken(
        error,
        "Give ftvm a SCSI device or partition of its own. If nothing on this one is needed any more, zero it (for instance \
         with `blkdiscard --zeroout`), and start again",
    )
}

/// Whether to wait or to act.
pub(super) fn failed(error: ScsiError) -> ArbiterError {
    if error.is_retryable() {
        return ArbiterError::unreachable(LunError::Scsi(error));
    }
    let advice = match &error {
        ScsiError::Command { fault, .. } => match fault {
            CommandFault::Unsupported { .. } => {
                "The device must know COMPARE AND WRITE (VMware calls it ATS): LIO and most arrays do, plain disks do not"
            }
            CommandFault::ReservationConflict => "The device of the test-and-set must not be reserved by anyone",
            _ => "Make the device writable for this host",
        },
        ScsiError::System { .. } => {
            "ftvm must be allowed to send any SCSI command: run it as root, or with CAP_SYS_RAWIO"
        }
        _ => "The shared device must be a whole SCSI disk or a partition of one, such as an iSCSI or Fibre Channel LUN",
    };
    ArbiterError::broken(LunError::Scsi(error), advice)
}
