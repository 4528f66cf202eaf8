//! What an operator does to a machine (`Input::Control`): pause, resume, reset.
//!
//! These are inputs like any other: each has a position, is logged, and is applied by a backup too, so a backup that
//! goes live while its guest is paused, or after a reset, is where the primary was. A reset starts from the *boot
//! record*: vCPU and pages as they were before the first exit. Devices begin anew, except that requests a disk has
//! taken stay outstanding until they end, unseen by the new driver: writes may be in flight, and overlapping ones must
//! wait for them (PROTOCOL 8). Virtual time, positions, output numbers and console positions go on.

use std::sync::{Arc, OnceLock};

use ftvm_schema::entry::Intervention;
use ftvm_schema::record;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vm_memory::{Bytes as _, GuestAddress};

use super::pages::{PAGE, PageCopies, Pages, Zeros, copy_pages};
use super::record_error::{BootRecordError, StateError};
use super::state::MAX_RECORD;
use super::{Machine, MachineError, Phase};
use crate::config::MACHINE_VERSION;
use ftvm_hypervisor::{Cpu, GuestMemory};

/// Where a machine finds its boot record as soon as there is one: it is made, or comes to a backup, while the guest
/// runs.
pub type BootCell = Arc<OnceLock<Vec<u8>>>;

/// The state before the first exit.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "C: DeserializeOwned"))]
struct BootRecord<C> {
    version: u32,
    cpu: C,
    pages: Pages,
}

/// A boot record: a vCPU and RAM that have not run.
///
/// # Errors
/// If RAM cannot be read, which would be a bug.
pub fn boot_record<S: Serialize>(cpu: S, memory: &GuestMemory, pages: u64) -> Result<Vec<u8>, MachineError> {
    let all: Vec<u64> = (0..pages).collect();
    let (numbers, content) = copy_pages(memory, &all, Zeros::LeftOut).map_err(StateError::from)?;
    let record = BootRecord {
        version: MACHINE_VERSION,
        cpu,
        pages: Pages::compressed(numbers, content),
    };
    Ok(record::to_bytes(&record).map_err(StateError::from)?)
}

impl<C: Cpu> Machine<C> {
    /// Has resets start from what `cell` holds.
    pub fn set_boot(&mut self, cell: BootCell) {
        self.boot = cell;
    }

    /// The vCPU of a machine that has not run, for [`boot_record`].
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn boot_cpu(&mut self) -> Result<C::State, MachineError> {
        Ok(self.cpu.save()?)
    }

    /// Whether the operator has paused the machine: it takes inputs, but the caller must not run it.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused
    }

    pub(super) fn intervene(&mut self, intervention: Intervention) -> Result<(), MachineError> {
        self.digest.fold(intervention as u64);
        match intervention {
            Intervention::Pause => self.paused = true,
            Intervention::Resume => self.paused = false,
            Intervention::Reset => self.reset()?,
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), MachineError> {
        let boot = Arc::clone(&self.boot);
        let record = Self::boot_from(boot.get()).map_err(StateError::from)?;
        self.put_boot_pages(&record.pages)?;
        self.cpu.request_window(false);
        self.cpu.restore(&record.cpu)?;
        self.chipset.reset()?;
        self.halted = false;
        self.phase = Phase::Settled;
        Ok(())
    }

    fn boot_from(record: Option<&Vec<u8>>) -> Result<BootRecord<C::State>, BootRecordError> {
        let record = record.ok_or(BootRecordError::Missing)?;
        let limit = usize::try_from(MAX_RECORD).unwrap_or(usize::MAX);
        let record: BootRecord<C::State> = record::from_bytes(record, limit)?;
        if record.version != MACHINE_VERSION {
            return Err(BootRecordError::Version { found: record.version });
        }
        Ok(record)
    }

    /// Makes RAM what it was; pages that are so already are not written, and so not dirty.
    fn put_boot_pages(&mut self, pages: &Pages) -> Result<(), MachineError> {
        let count = self.page_count();
        let bytes = pages.bytes(count, &mut PageCopies::default());
        let bytes = bytes.map_err(BootRecordError::from).map_err(StateError::from)?;
        let mut kept = pages.numbers.iter().zip(bytes.as_chunks::<PAGE>().0).peekable();
        let mut found = [0; PAGE];
        for number in 0..count {
            let wanted = kept
                .next_if(|(named, _)| **named == number)
                .map_or(&[0; PAGE], |(_, page)| page);
            self.read_page(number, &mut found)?;
            if found != *wanted {
                self.memory
                    .write_slice(wanted, GuestAddress(number * PAGE as u64))
                    .map_err(|source| StateError::ram(number, source))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "intervention_tests.rs"]
mod tests;
