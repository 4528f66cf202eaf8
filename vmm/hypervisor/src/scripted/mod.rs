//! A CPU without KVM, for the simulator: it does what a [`Script`] says.
//!
//! It keeps the rules that the seam states, down to a second exit from `complete` and dirty pages that no exit
//! announces. Whatever reaches it (answers, interrupt vectors, loads from RAM) is folded into an accumulator *together
//! with the number of its exits so far*, and the accumulator goes into registers, memory and later outputs: an input
//! that comes one exit too early or too late changes everything after it (PROTOCOL, "What the simulator must be able to
//! see").
//!
//! Time is counted in units of computing ([`ScriptStep::Spin`]) and passes only there: a kick may be set to arrive
//! after so many of them.

mod execute;
mod kick;
mod script;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ftvm_schema::entry::register::{RAX, RBX, RCX, RDX, RFLAGS, RIP};
use ftvm_schema::entry::{Digest, RegisterFile};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryError;

pub use crate::Interrupts;
pub use kick::ScriptedKick;
pub use script::{Fill, Operand, Scratch, Script, ScriptStep};

use super::{Cpu, CpuError, DeliveryMode, Exit, GuestMemory, INTERRUPT_FLAG, Kick, UserFrame};

/// The always-set bit of RFLAGS.
const FLAGS: u64 = 2;
/// What stands in RIP for the first step; the handler's steps follow from `HANDLER_RIP`.
const FIRST_RIP: u64 = 0x1000;
const HANDLER_RIP: u64 = 0x8000_0000;
/// After so many steps without an exit or a kick, `run` returns as if it had been kicked, which any caller must expect
/// at any time: a program without exits cannot hang a simulation.
const QUIET_STEPS: u64 = 100_000;

/// What a script, or a state for it, can be wrong about.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A step accesses memory that the guest does not have.
    #[error("the script accesses {addr:#x}, where no RAM is: {source}")]
    NoRam {
        /// Guest address of the access.
        addr: u64,
        source: GuestMemoryError,
    },
    /// There are no privilege levels here.
    #[error("the scripted CPU has no user mode")]
    NoUserMode,
    /// A saved state names a step that this script does not have.
    #[error("a state of another script: {place}")]
    ForeignState {
        /// The place that it names.
        place: String,
    },
}

/// Where the CPU is in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    Program(usize),
    /// In the handler.
    Handler {
        step: usize,
        /// The step of the program that it returns to, and how many units of that are done.
        back: usize,
        units: u64,
    },
}

/// An access that has caused an exit and is not finished, and what finishing it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    /// Nothing more happens.
    Write,
    /// The answer is folded into the accumulator.
    Read,
    /// As `Read`, and then a write comes out as the next exit.
    Update {
        addr: u64,
    },
}

/// See [`Cpu::State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptedState {
    place: Place,
    accumulator: Digest,
    /// Numbered exits so far.
    exits: u64,
    /// Units done of the current `Spin`.
    units: u64,
    interrupt_flag: bool,
    queued: Option<u8>,
}

/// A CPU that follows a script.
pub struct ScriptedCpu {
    program: Arc<Script>,
    memory: GuestMemory,
    delivery: DeliveryMode,
    state: ScriptedState,
    pending: Pending,
    data: [u8; 8],
    data_len: usize,
    refused: bool,
    window_wanted: bool,
    dirty: BTreeSet<u64>,
    kick: Arc<ScriptedKick>,
}

impl fmt::Debug for ScriptedCpu {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ScriptedCpu")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl ScriptedCpu {
    /// A CPU at the first step of `program`, interrupts off.
    ///
    /// # Panics
    /// If the program has no step to repeat.
    #[must_use]
    pub fn new(memory: &GuestMemory, program: Arc<Script>, delivery: DeliveryMode) -> Self {
        assert!(
            program.repeat_from < program.steps.len(),
            "a program without a step to repeat"
        );
        let state = ScriptedState {
            place: Place::Program(0),
            accumulator: Digest::default(),
            exits: 0,
            units: 0,
            interrupt_flag: false,
            queued: None,
        };
        ScriptedCpu {
            program,
            memory: memory.clone(),
            delivery,
            state,
            pending: Pending::Nothing,
            data: [0; 8],
            data_len: 0,
            refused: false,
            window_wanted: false,
            dirty: BTreeSet::new(),
            kick: Arc::default(),
        }
    }

    /// The handle that can also kick later.
    #[must_use]
    pub fn scripted_kick(&self) -> Arc<ScriptedKick> {
        self.kick.clone()
    }
}

impl Cpu for ScriptedCpu {
    type State = ScriptedState;

    fn run(&mut self) -> Result<Exit, CpuError> {
        if self.kick.arrives(0) {
            return Ok(Exit::Interrupted);
        }
        if let Some(exit) = self.finish() {
            return Ok(exit);
        }
        self.take_interrupt();
        for _ in 0..QUIET_STEPS {
            if self.window_is_open() {
                return Ok(self.leave(Exit::IrqWindow, Pending::Nothing, 0, 0));
            }
            let units = self.state.units;
            if let Some(exit) = self.execute()? {
                return Ok(exit);
            }
            if self.kick.arrives(u64::from(self.state.units > units)) {
                return Ok(Exit::Interrupted);
            }
        }
        Ok(Exit::Interrupted)
    }

    fn complete(&mut self) -> Result<Option<Exit>, CpuError> {
        Ok(self.finish())
    }

    fn data(&mut self) -> &mut [u8] {
        &mut self.data[..self.data_len]
    }

    fn refuse_msr(&mut self) {
        self.refused = true;
    }

    /// RAX is the accumulator, RBX the units of the current `Spin`, RCX the exits, RIP the place.
    fn registers(&self) -> RegisterFile {
        let mut registers = [0; 18];
        registers[RAX] = self.state.accumulator.0;
        registers[RBX] = self.state.units;
        registers[RCX] = self.state.exits;
        registers[RIP] = match self.state.place {
            Place::Program(step) => FIRST_RIP + step as u64,
            Place::Handler { step, .. } => HANDLER_RIP + step as u64,
        };
        registers[RFLAGS] = if self.state.interrupt_flag {
            FLAGS | INTERRUPT_FLAG
        } else {
            FLAGS
        };
        registers
    }

    /// What is new in RAX or RDX (the answer to RDTSC) reaches the CPU as any input does, so that it cannot wipe out
    /// those before it; IF is set; the place in the script is not a matter of registers.
    fn set_registers(&mut self, registers: &RegisterFile) -> Result<(), CpuError> {
        let before = self.registers();
        for index in [RAX, RDX] {
            if registers[index] != before[index] {
                self.take_in(registers[index]);
            }
        }
        self.state.interrupt_flag = registers[RFLAGS] & INTERRUPT_FLAG != 0;
        Ok(())
    }

    /// There is no paging here.
    fn translate(&self, linear: u64) -> Option<u64> {
        Some(linear)
    }

    fn return_to_user(&mut self, _registers: &RegisterFile, _frame: &UserFrame) -> Result<(), CpuError> {
        Err(CpuError::unsupported(ScriptError::NoUserMode))
    }

    fn can_interrupt(&self) -> bool {
        self.state.interrupt_flag && self.state.queued.is_none()
    }

    fn interrupt_flag(&self) -> bool {
        self.state.interrupt_flag
    }

    fn interrupt(&mut self, vector: u8) -> Result<(), CpuError> {
        debug_assert!(
            self.can_interrupt() && self.pending == Pending::Nothing,
            "complete first, and look at IF"
        );
        self.state.queued = Some(vector);
        Ok(())
    }

    fn request_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
    }

    fn at_clean_boundary(&mut self) -> Result<bool, CpuError> {
        debug_assert_eq!(self.pending, Pending::Nothing, "complete first");
        Ok(self.can_interrupt())
    }

    fn program(&self) -> Result<Option<u64>, CpuError> {
        Ok(None)
    }

    fn save(&mut self) -> Result<ScriptedState, CpuError> {
        debug_assert_eq!(self.pending, Pending::Nothing, "complete first");
        Ok(self.state.clone())
    }

    fn restore(&mut self, state: &ScriptedState) -> Result<(), CpuError> {
        debug_assert_eq!(self.pending, Pending::Nothing, "complete first");
        let fits = match state.place {
            Place::Program(step) => step < self.program.steps.len(),
            Place::Handler { step, back, .. } => step < self.program.handler.len() && back < self.program.steps.len(),
        };
        if !fits {
            let place = format!("{:?}", state.place);
            return Err(CpuError::unsupported(ScriptError::ForeignState { place }));
        }
        self.state = state.clone();
        self.window_wanted = false;
        Ok(())
    }

    fn dirty(&mut self, pages: &mut Vec<u64>) -> Result<(), CpuError> {
        pages.clear();
        pages.extend(&self.dirty);
        Ok(())
    }

    fn forget_dirty(&mut self, pages: &[u64]) -> Result<(), CpuError> {
        for page in pages {
            self.dirty.remove(page);
        }
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }
}

#[cfg(test)]
mod tests;
