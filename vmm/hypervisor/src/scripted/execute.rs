//! How a scripted CPU gets from one step of its program to the next.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use super::script::{Fill, Operand, Scratch, ScriptStep};
use super::{Pending, Place, ScriptError, ScriptedCpu};
use crate::{Cpu as _, CpuError, DeliveryMode, Exit, Interrupts, PAGE_SHIFT, PAGE_SIZE, Terminal};

/// What a refused MSR read folds into the accumulator in place of an answer: "gpfault" in ASCII.
const REFUSED: u64 = 0x0067_7066_6175_6c74;

impl ScriptedCpu {
    /// Folds something that reached the CPU into the accumulator, together with the number of the exit that it came at.
    pub(super) fn take_in(&mut self, what: u64) {
        self.state.accumulator.fold(self.state.exits);
        self.state.accumulator.fold(what);
    }

    fn value(&self, value: Operand) -> u64 {
        match value {
            Operand::Const(number) => number,
            Operand::Accumulator => self.state.accumulator.0,
        }
    }

    /// Leaves with a numbered exit.
    pub(super) fn leave(&mut self, exit: Exit, pending: Pending, value: u64, len: u8) -> Exit {
        self.state.exits += 1;
        (self.pending, self.data, self.data_len) = (pending, value.to_le_bytes(), usize::from(len));
        exit
    }

    /// Finishes the pending access, if there is one; `Some` is a further exit that this leads to.
    pub(super) fn finish(&mut self) -> Option<Exit> {
        let answer = if std::mem::take(&mut self.refused) {
            // As on KVM, which drops an interrupt that was queued before the access ended in #GP.
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

    fn step(&self) -> ScriptStep {
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
    pub(super) fn take_interrupt(&mut self) {
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
    pub(super) fn execute(&mut self) -> Result<Option<Exit>, CpuError> {
        let step = self.step();
        if let ScriptStep::Spin { units } = step
            && self.state.units < units
        {
            self.spin()?;
            return Ok(None);
        }
        self.advance();
        Ok(match step {
            ScriptStep::PortRead { port, size } => {
                Some(self.leave(Exit::PortRead { port, size, count: 1 }, Pending::Read, 0, size))
            }
            ScriptStep::PortWrite { port, size, value } => Some(self.leave(
                Exit::PortWrite { port, size, count: 1 },
                Pending::Write,
                self.value(value),
                size,
            )),
            ScriptStep::MmioRead { addr, len } => Some(self.leave(Exit::MmioRead { addr, len }, Pending::Read, 0, len)),
            ScriptStep::MmioWrite { addr, len, value } => {
                Some(self.leave(Exit::MmioWrite { addr, len }, Pending::Write, self.value(value), len))
            }
            ScriptStep::MmioUpdate { addr, len } => {
                Some(self.leave(Exit::MmioRead { addr, len }, Pending::Update { addr }, 0, len))
            }
            ScriptStep::ReadMsr { index } => Some(self.leave(Exit::ReadMsr { index }, Pending::Read, 0, 8)),
            ScriptStep::Halt => Some(self.leave(Exit::Hlt, Pending::Nothing, 0, 0)),
            ScriptStep::Fail => Some(Exit::Terminal(Terminal::Shutdown)),
            ScriptStep::Load { addr, len } => {
                let mut bytes = [0; 8];
                let wanted = &mut bytes[..usize::from(len)];
                self.memory
                    .read_slice(wanted, GuestAddress(addr))
                    .map_err(|error| outside(addr, error))?;
                self.take_in(u64::from_le_bytes(bytes));
                None
            }
            ScriptStep::Store { addr, len, value } => {
                self.store(addr, &self.value(value).to_le_bytes()[..usize::from(len)])?;
                None
            }
            ScriptStep::SetInterrupts(interrupts) => {
                self.state.interrupt_flag = interrupts == Interrupts::On;
                None
            }
            ScriptStep::Spin { .. } => None,
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
            .map_err(|error| outside(addr, error))?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard keeps this range of guest memory mapped; it is accessed as volatile memory only.
        unsafe { VolatileSlice::new(guard.as_ptr(), guard.len()) }.copy_from(bytes);
        let last = addr + (bytes.len() as u64).saturating_sub(1);
        self.dirty.extend(addr >> PAGE_SHIFT..=last >> PAGE_SHIFT);
        Ok(())
    }

    pub(super) fn window_is_open(&self) -> bool {
        self.window_wanted && self.delivery != DeliveryMode::None && self.can_interrupt()
    }
}

/// The output function of splitmix64: neighbours have nothing in common.
fn scrambled(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn outside(addr: u64, source: GuestMemoryError) -> CpuError {
    CpuError::unsupported(ScriptError::NoRam { addr, source })
}
