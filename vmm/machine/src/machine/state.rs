//! Saving a machine at an exit, and micro-checkpoints: the same record, with all pages or with the dirtied ones.

use ftvm_schema::entry::{Digest, EndReason, OutputSeq, Position};
use ftvm_schema::record;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::clock::VirtualClock;
use super::error::HistoryPoint;
use super::pages::Pages;
use super::record_error::StateError;
use super::{HistoryError, Machine, MachineError, Phase, Step, TimeSource};
use crate::config::MACHINE_VERSION;
use ftvm_devices::ChipsetState;
use ftvm_hypervisor::Cpu;

pub use super::pages::PAGE;

/// Most bytes of one state record: all of the largest RAM, and 64 MiB for the rest.
pub const MAX_RECORD: u64 = crate::config::MAX_MEMORY + (64 << 20);

/// What a record holds besides RAM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "C: DeserializeOwned"))]
struct StateRecord<C> {
    version: u32,
    at: Position,
    digest: Digest,
    outputs: OutputSeq,
    console: [u64; 2],
    clock: VirtualClock,
    halted: bool,
    paused: bool,
    cpu: C,
    chipset: ChipsetState,
    pages: Pages,
}

/// What a kick led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Moved {
    /// The machine stands settled at a new position between two exits, where inputs can be applied. Whoever replays
    /// needs a checkpoint to get there.
    ToBoundary,
    /// Completing the last exit yielded another one; it has been handled, and inputs can be applied at it.
    ToExit,
    /// The guest has interrupts off or an event half delivered: run on and kick again.
    NotNow,
    /// The guest ended while completing its last exit.
    ToEnd(EndReason),
}

impl<C: Cpu> Machine<C> {
    /// After a kick: makes a position of where the guest stands (DESIGN, idea 3), behind the last exit's inputs.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn preempt<T: TimeSource>(&mut self, time: &mut T) -> Result<Moved, T::Error> {
        if let Some(exit) = self.cpu.complete().map_err(MachineError::from)? {
            return Ok(match self.handle(exit, time)? {
                Step::Ended(reason) => Moved::ToEnd(reason),
                _ => Moved::ToExit,
            });
        }
        if !self.cpu.at_clean_boundary().map_err(MachineError::from)? {
            return Ok(Moved::NotNow);
        }
        self.cpu.request_window(false);
        self.phase = Phase::Settled;
        self.at.k += 1;
        Ok(Moved::ToBoundary)
    }

    /// The micro-checkpoint that brings another machine to the boundary that [`Machine::preempt`] has just reached:
    /// an encoded record, and how many pages it carries.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn checkpoint(&mut self) -> Result<(Vec<u8>, usize), MachineError> {
        let mut numbers = Vec::new();
        // What devices write follows from the inputs, which the other side has too.
        self.cpu.dirty(&mut numbers)?;
        let bytes = self.read_pages(&numbers)?;
        let (pages, differ) = Pages::differences(numbers.clone(), bytes, &mut self.copies);
        let carried = numbers.iter().copied().zip(differ);
        self.cpu.forget_dirty(&self.working_set.carried(carried))?;
        let record = self.encode(pages)?;
        self.digest.fold_bytes(&record);
        Ok((record, numbers.len()))
    }

    /// Which program runs: its address space at CPL 3, `None` at CPL 0 ([`Cpu::program`]).
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn program(&self) -> Result<Option<u64>, MachineError> {
        Ok(self.cpu.program()?)
    }

    /// Resets the dirty log at an exit, where a backup at the same exit has the same memory. Pages that the guest
    /// writes all the time stay in it.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn forget_dirty(&mut self) -> Result<(), MachineError> {
        let mut pages = Vec::new();
        self.cpu.dirty(&mut pages)?;
        pages.retain(|page| !self.working_set.keeps(*page));
        Ok(self.cpu.forget_dirty(&pages)?)
    }

    /// Pages that the guest or its devices have written since this was last asked, ascending.
    ///
    /// # Errors
    /// If the hypervisor fails.
    pub fn take_dirty(&mut self) -> Result<Vec<u64>, MachineError> {
        let mut pages = Vec::new();
        self.cpu.harvest_dirty(&mut pages)?;
        self.working_set.clear();
        for region in self.memory.iter() {
            let first = region.start_addr().0 / PAGE as u64;
            // The mapping's own bitmap; the trait's method of this name gives a view that cannot be reset.
            for (word, base) in (**region)
                .bitmap()
                .get_and_reset()
                .into_iter()
                .zip((first..).step_by(64))
            {
                pages.extend((0..64).filter(|bit| word & (1 << bit) != 0).map(|bit| base + bit));
            }
        }
        pages.sort_unstable();
        pages.dedup();
        Ok(pages)
    }

    /// The machine at the exit it stands at, settled, with the pages written since [`Machine::take_dirty`]: what is
    /// left for a joining backup that has the others.
    ///
    /// # Errors
    /// If the hypervisor fails.
    ///
    /// # Panics
    /// If the machine is not settled at an exit: that is a caller's bug.
    pub fn save(&mut self) -> Result<Vec<u8>, MachineError> {
        assert_eq!(self.phase, Phase::Settled, "state is saved only at a completed exit");
        let numbers = self.take_dirty()?;
        self.copies.clear();
        let bytes = self.read_pages(&numbers)?;
        self.encode(Pages::whole(numbers, bytes))
    }

    /// Puts pages of [`copy_pages`](super::pages::copy_pages) into a machine that has not run, ahead of
    /// [`Machine::load`].
    ///
    /// # Errors
    /// If they are not pages of this guest, ascending, with as much content. Nothing has changed then.
    pub fn write_pages(&mut self, numbers: Vec<u64>, content: Vec<u8>) -> Result<(), MachineError> {
        let pages = Pages::compressed(numbers, content);
        let bytes = pages.bytes(self.page_count(), &mut self.copies);
        let bytes = bytes.map_err(StateError::from)?;
        self.put_pages(&pages.numbers, &bytes)
    }

    /// Puts a record of [`Machine::save`] into a machine that has not run.
    ///
    /// # Errors
    /// If the record is not one, or the hypervisor refuses it.
    pub fn load(&mut self, record: &[u8]) -> Result<(), MachineError> {
        let state = self.decode(record)?;
        self.copies.clear();
        self.digest = state.digest;
        self.at = state.at;
        self.outputs = state.outputs;
        self.install(state)
    }

    /// Applies a micro-checkpoint instead of running the stretch it stands for.
    ///
    /// # Errors
    /// If the record is damaged, belongs elsewhere, or the hypervisor refuses it.
    pub fn apply_checkpoint(&mut self, record: &[u8]) -> Result<(), MachineError> {
        let state = self.decode(record)?;
        let expected = Position {
            exit: self.at.exit,
            k: self.at.k + 1,
        };
        if state.at != expected || state.digest != self.digest || state.outputs != self.outputs {
            let point = |at, digest, outputs| Box::new(HistoryPoint { at, digest, outputs });
            let error = HistoryError::CheckpointElsewhere {
                made: point(state.at, state.digest, state.outputs),
                stands: point(expected, self.digest, self.outputs),
            };
            return Err(error.into());
        }
        // An access of the last exit may still be pending in KVM, and would be completed over the new registers.
        if let Some(exit) = self.cpu.complete()? {
            return Err(HistoryError::CheckpointAtExit { exit }.into());
        }
        self.at = expected;
        self.digest.fold_bytes(record);
        self.install(state)
    }

    /// A hash of RAM and devices.
    ///
    /// # Errors
    /// If RAM cannot be read, which would be a bug.
    pub fn memory_hash(&self) -> Result<u64, MachineError> {
        let mut digest = Digest::default();
        let mut page = [0; PAGE];
        for number in 0..self.page_count() {
            self.read_page(number, &mut page)?;
            if page.iter().any(|byte| *byte != 0) {
                digest.fold(number);
                digest.fold_bytes(&page);
            }
        }
        let chipset = record::to_bytes(&self.chipset.save()).map_err(StateError::from)?;
        digest.fold_bytes(&chipset);
        Ok(digest.0)
    }

    pub(super) fn page_count(&self) -> u64 {
        self.memory.iter().map(|region| region.len()).sum::<u64>() / PAGE as u64
    }

    pub(super) fn read_page(&self, number: u64, page: &mut [u8; PAGE]) -> Result<(), MachineError> {
        self.memory
            .read_slice(page, GuestAddress(number * PAGE as u64))
            .map_err(|source| StateError::ram(number, source).into())
    }

    /// The pages one after the other.
    fn read_pages(&self, numbers: &[u64]) -> Result<Vec<u8>, MachineError> {
        let mut bytes = vec![0; numbers.len() * PAGE];
        for (number, page) in numbers.iter().zip(bytes.as_chunks_mut::<PAGE>().0) {
            self.read_page(*number, page)?;
        }
        Ok(bytes)
    }

    fn encode(&mut self, pages: Pages) -> Result<Vec<u8>, MachineError> {
        let state = StateRecord {
            version: MACHINE_VERSION,
            at: self.at,
            digest: self.digest,
            outputs: self.outputs,
            console: self.console,
            clock: self.clock,
            halted: self.halted,
            paused: self.paused,
            cpu: self.cpu.save()?,
            chipset: self.chipset.save(),
            pages,
        };
        Ok(record::to_bytes(&state).map_err(StateError::from)?)
    }

    fn decode(&self, record: &[u8]) -> Result<StateRecord<C::State>, MachineError> {
        let limit = usize::try_from(MAX_RECORD).unwrap_or(usize::MAX);
        let state: StateRecord<C::State> = record::from_bytes(record, limit).map_err(StateError::from)?;
        if state.version != MACHINE_VERSION {
            return Err(StateError::Version { found: state.version }.into());
        }
        Ok(state)
    }

    /// Pages first, then the vCPU (which makes it see new page tables), then the devices.
    fn install(&mut self, state: StateRecord<C::State>) -> Result<(), MachineError> {
        let pages = state.pages.bytes(self.page_count(), &mut self.copies);
        let pages = pages.map_err(StateError::from)?;
        self.put_pages(&state.pages.numbers, &pages)?;
        self.cpu.restore(&state.cpu)?;
        self.chipset.restore(&state.chipset).map_err(StateError::from)?;
        self.clock = state.clock;
        self.console = state.console;
        self.halted = state.halted;
        self.paused = state.paused;
        self.phase = Phase::Settled;
        Ok(())
    }

    /// Writes pages to RAM.
    pub(super) fn put_pages(&mut self, numbers: &[u64], bytes: &[u8]) -> Result<(), MachineError> {
        for (number, page) in numbers.iter().zip(bytes.chunks_exact(PAGE)) {
            self.memory
                .write_slice(page, GuestAddress(number * PAGE as u64))
                .map_err(|source| StateError::ram(*number, source))?;
        }
        Ok(())
    }
}
