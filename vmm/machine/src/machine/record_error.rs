//! What can be wrong with records of a machine: state records, micro-checkpoints, boot records.

use ftvm_schema::record::CodecError;
use vm_memory::GuestMemoryError;

use super::pages::PagesError;
use crate::config::MACHINE_VERSION;
use ftvm_devices::RestoreError;

/// Why a state record cannot be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes are no state record.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Written by another version of this program.
    #[error("version {MACHINE_VERSION} expected, {found} found")]
    Version { found: u32 },
    /// The pages in it are not this guest's.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The devices do not take their state.
    #[error(transparent)]
    Devices(#[from] RestoreError),
    /// There is nothing to reset to.
    #[error(transparent)]
    Boot(#[from] BootRecordError),
}

/// Why a reset cannot start from the boot record.
#[derive(Debug, thiserror::Error)]
pub enum BootRecordError {
    /// This side has not been given one.
    #[error("this side has no boot record to reset to")]
    Missing,
    /// The bytes are no boot record.
    #[error("boot record: {0}")]
    Codec(#[from] CodecError),
    /// Written by another version of this program.
    #[error("boot record: version {MACHINE_VERSION} expected, {found} found")]
    Version { found: u32 },
    /// The pages in it are not this guest's.
    #[error("boot record: {0}")]
    Pages(#[from] PagesError),
}

impl StateError {
    /// RAM does not have a page that is written or read.
    pub(crate) fn ram(number: u64, source: GuestMemoryError) -> Self {
        PagesError::Ram { number, source }.into()
    }
}
