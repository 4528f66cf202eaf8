//! A CPU without KVM, for the simulator: it does what a [`Program`] says.
//!
//! It keeps the rules that the seam states, down to a second exit from `complete` and dirty pages that no exit
//! announces. Whatever reaches it (answers, interrupt vectors, loads from RAM) is folded into an accumulator *together with the
//! number of its exits so far*, and the accumulator goes into registers, memory and later outputs: an input that comes one exit too
//! early or too late changes everything after it (PROTOCOL, "What the simulator must be able to see").
//!
//! Time passes only while it computes without exits: a kick may be set to arrive after so many units.

mod program;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ftvm_schema::entry::{Digest, RegisterFile};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

pub use program::{Fill, Interrupts, Program, Scratch, Step, Value};

use super::{Cpu, CpuError, DeliveryMode, Exit, GuestMemory, Kick, Terminal, UserFrame};

const PAGE_SHIFT: u32 = 12;
const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
const INTERRUPT_FLAG: u64 = 1 << 9;
/// The always-set bit of RFLAGS.
const FLAGS: u64 = 2;
/// What stands in RIP for the first step; the handler's steps follow from `HANDLER_RIP`.
const FIRST_RIP: u64 = 0x1000;
const HANDLER_RIP: u64 = 0x8000_0000;
/// An answer that says #GP.
const REFUSED: u64 = 0x0067_7066_6175_6c74;
/// No kick is on its way.
const NO_KICK: u64 = u64::MAX;
/// After so many steps without an exit or a kick, `run` comes back by itself (an interruption may come at any time), so that a
/// program without exits cannot hang a simulation.
const QUIET_STEPS: u64 = 100_000;

const RAX: usize = 0;
const RBX: usize = 1;
const RCX: usize = 2;
const RDX: usize = 3;
const RIP: usize = 16;
const RFLAGS: usize = 17;

/// Where the CPU is in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    Program(usize),
    /// In the handler; it returns to a step of the program, so many units into it.
    Handler {
        step: usize,
        back: usize,
        units: u64,
    },
}

/// An access that has left and is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Nothing,
    Write,
    Read,
    Update { addr: u64 },
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

/// Kicks a scripted CPU, now or after it has computed for a while.
#[derive(Debug)]
pub struct ScriptedKick {
    /// Units until the kick arrives, or [`NO_KICK`].
    due: AtomicU64,
}

impl ScriptedKick {
    /// The kick arrives when the CPU has computed so many further units; earlier ones are forgotten.
    pub fn kick_after(&self, units: u64) {
        self.due.store(units, Ordering::SeqCst);
    }

    /// Units until the kick arrives; none when none is on its way.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        let due = self.due.load(Ordering::SeqCst);
        (due != NO_KICK).then_some(due)
    }

    /// Lets a unit pass; whether the kick has arrived, which answers it.
    fn arrives(&self, passed: u64) -> bool {
        let due = self.due.load(Ordering::SeqCst);
        let left = due.saturating_sub(passed);
        let next = if due == NO_KICK || left == 0 { NO_KICK } else { left };
        self.due.store(next, Ordering::SeqCst);
        due != NO_KICK && left == 0
    }
}

impl Kick for ScriptedKick {
    fn kick(&self) {
        self.kick_after(0);
    }
}

/// A CPU that follows a script.
pub struct ScriptedCpu {
    program: Arc<Program>,
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
    pub fn new(memory: &GuestMemory, program: Arc<Program>, delivery: DeliveryMode) -> Self {
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
            kick: Arc::new(ScriptedKick {
                due: AtomicU64::new(NO_KICK),
            }),
        }
    }

    /// The handle that can also kick later.
    #[must_use]
    pub fn scripted_kick(&self) -> Arc<ScriptedKick> {
        self.kick.clone()
    }

    /// Folds something that reached the CPU, with its position.
    fn take_in(&mut self, what: u64) {
        self.state.accumulator.fold(self.state.exits);
        self.state.accumulator.fold(what);
    }

    fn value(&self, value: Value) -> u64 {
        match value {
            Value::Const(number) => number,
            Value::Accumulator => self.state.accumulator.0,
        }
    }

    /// Leaves with a numbered exit.
    fn leave(&mut self, exit: Exit, pending: Pending, value: u64, len: u8) -> Exit {
        self.state.exits += 1;
        (self.pending, self.data, self.data_len) = (pending, value.to_le_bytes(), usize::from(len));
        exit
    }

    /// Finishes the access that is under way; `Some` is the exit that this produces.
    fn finish(&mut self) -> Option<Exit> {
        let answer = if std::mem::take(&mut self.refused) {
            // KVM drops what was queued before the access ended in #GP.
            self.state.queued = None;
            REFUSED
        } else {
            u64::from_le_bytes(self.data)
        };
        let (pending, len) = (self.pending, self.data_len);
        (self.pending, self.data_len) = (Pending::Nothing, 0);
        match pending {
            Pending::Nothing | Pending::Write => None,
            Pending::Read => {
                self.take_in(answer);
                None
            }
            Pending::Update { addr } => {
                self.take_in(answer);
                let len = u8::try_from(len).expect("at most 8");
                Some(self.leave(Exit::MmioWrite { addr, len }, Pending::Write, answer | 1, len))
            }
        }
    }

    fn step(&self) -> Step {
        match self.state.place {
            Place::Program(step) => self.program.steps[step],
            Place::Handler { step, .. } => self.program.handler[step],
        }
    }

    /// Goes on to the next step; the handler's last one returns, with interrupts on.
    fn advance(&mut self) {
        self.state.units = 0;
        self.state.place = match self.state.place {
            Place::Program(step) if step + 1 < self.program.steps.len() => Place::Program(step + 1),
            Place::Program(_) => Place::Program(self.program.repeat_from),
            Place::Handler { step, back, units } if step + 1 < self.program.handler.len() => Place::Handler {
                step: step + 1,
                back,
                units,
            },
            Place::Handler { back, units, .. } => {
                (self.state.units, self.state.interrupt_flag) = (units, true);
                Place::Program(back)
            }
        };
    }

    /// Takes the queued interrupt: the handler starts, interrupts are off.
    fn take_interrupt(&mut self) {
        let (Some(vector), Place::Program(back)) = (self.state.queued, self.state.place) else {
            return;
        };
        self.state.queued = None;
        self.take_in(u64::from(vector));
        self.take_in(self.state.units);
        if !self.program.handler.is_empty() {
            self.state.interrupt_flag = false;
            self.state.place = Place::Handler {
                step: 0,
                back,
                units: std::mem::take(&mut self.state.units),
            };
        }
    }

    /// Does one step, or one unit of it.
    fn execute(&mut self) -> Result<Option<Exit>, CpuError> {
        let step = self.step();
        if let Step::Spin { units } = step
            && self.state.units < units
        {
            self.spin()?;
            return Ok(None);
        }
        self.advance();
        Ok(match step {
            Step::PortRead { port, size } => {
                Some(self.leave(Exit::PortRead { port, size, count: 1 }, Pending::Read, 0, size))
            }
            Step::PortWrite { port, size, value } => Some(self.leave(
                Exit::PortWrite { port, size, count: 1 },
                Pending::Write,
                self.value(value),
                size,
            )),
            Step::MmioRead { addr, len } => Some(self.leave(Exit::MmioRead { addr, len }, Pending::Read, 0, len)),
            Step::MmioWrite { addr, len, value } => {
                Some(self.leave(Exit::MmioWrite { addr, len }, Pending::Write, self.value(value), len))
            }
            Step::MmioUpdate { addr, len } => {
                Some(self.leave(Exit::MmioRead { addr, len }, Pending::Update { addr }, 0, len))
            }
            Step::ReadMsr { index } => Some(self.leave(Exit::ReadMsr { index }, Pending::Read, 0, 8)),
            Step::Halt => Some(self.leave(Exit::Hlt, Pending::Nothing, 0, 0)),
            Step::Fail => Some(Exit::Terminal(Terminal::Shutdown)),
            Step::Load { addr, len } => {
                let mut bytes = [0; 8];
                let wanted = &mut bytes[..usize::from(len)];
                self.memory
                    .read_slice(wanted, GuestAddress(addr))
                    .map_err(|error| outside(addr, &error))?;
                self.take_in(u64::from_le_bytes(bytes));
                None
            }
            Step::Store { addr, len, value } => {
                self.store(addr, &self.value(value).to_le_bytes()[..usize::from(len)])?;
                None
            }
            Step::SetInterrupts(interrupts) => {
                self.state.interrupt_flag = interrupts == Interrupts::On;
                None
            }
            Step::Spin { .. } => None,
        })
    }

    /// One unit of computing.
    fn spin(&mut self) -> Result<(), CpuError> {
        self.state.units += 1;
        self.state.accumulator.fold(self.state.units);
        let Scratch { first, pages, fill } = self.program.scratch;
        let accumulator = self.state.accumulator.0;
        let page = first + accumulator % pages * PAGE_SIZE;
        match fill {
            Fill::Word => {
                let word = (accumulator >> 32) % (PAGE_SIZE / 8);
                self.store(page + word * 8, &accumulator.to_le_bytes())
            }
            Fill::Page => {
                let words = (0..PAGE_SIZE / 8).map(|word| scrambled(accumulator.wrapping_add(word)));
                let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
                self.store(page, &bytes)
            }
        }
    }

    /// Stores as a vCPU does: seen in this CPU's dirty log, not in the bitmap of what the host writes.
    #[allow(
        unsafe_code,
        reason = "safe accessors of guest memory set the bitmap, which a vCPU's stores do not"
    )]
    fn store(&mut self, addr: u64, bytes: &[u8]) -> Result<(), CpuError> {
        let slice = self
            .memory
            .get_slice(GuestAddress(addr), bytes.len())
            .map_err(|error| outside(addr, &error))?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard keeps this range of guest memory mapped; it is accessed as volatile memory only.
        unsafe { VolatileSlice::new(guard.as_ptr(), guard.len()) }.copy_from(bytes);
        let last = addr + (bytes.len() as u64).saturating_sub(1);
        self.dirty.extend(addr >> PAGE_SHIFT..=last >> PAGE_SHIFT);
        Ok(())
    }

    fn window_is_open(&self) -> bool {
        self.window_wanted && self.delivery != DeliveryMode::None && self.can_interrupt()
    }
}

/// The output function of splitmix64: neighbours have nothing in common.
fn scrambled(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn outside(addr: u64, error: &dyn fmt::Display) -> CpuError {
    CpuError::Unsupported(format!("the script accesses {addr:#x}, where no RAM is: {error}"))
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

    /// What is new in RAX or RDX (the answer to RDTSC) reaches the CPU as any input does, so that it cannot wipe out those
    /// before it; IF is set; the place in the script is not a matter of registers.
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
        Err(CpuError::Unsupported("the scripted CPU has no user mode".to_owned()))
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
            return Err(CpuError::Unsupported(format!(
                "a state of another script: {:?}",
                state.place
            )));
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
