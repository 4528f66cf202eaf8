//! From one exit of the guest to the next: interrupts are decided, the guest runs, its exit is answered, inputs are
//! applied.

use ftvm_schema::entry::{EndReason, ExitSeq, Input, Position};

use super::exit::{fold_exit, terminal_reason};
use super::trail::TrailStep;
use super::{HistoryError, Machine, MachineError, Phase, Step, TimeSource, linux};
use crate::config::GuestKind;
use ftvm_devices::{Access, AccessDirection, DeviceEnv, Effect};
use ftvm_hypervisor::{Cpu, DeliveryMode, Exit, GuestMemory};

/// MSR index of the time stamp counter (SDM vol. 4).
const MSR_TSC: u32 = 0x10;

impl<C: Cpu> Machine<C> {
    /// Runs to the guest's next own exit and handles it.
    ///
    /// # Errors
    /// If the hypervisor fails, or the time source finds a divergence.
    pub fn run_to_exit<T: TimeSource>(&mut self, time: &mut T) -> Result<Step, T::Error> {
        if let Some(reason) = &self.ended {
            return Ok(Step::Ended(reason.clone()));
        }
        if self.phase != Phase::Entered
            && let Some(exit) = self.decide_interrupt()?
        {
            return self.handle(exit, time);
        }
        if self.halted {
            return Ok(Step::Halted);
        }
        let exit = self.cpu.run().map_err(MachineError::from)?;
        self.handle(exit, time)
    }

    /// Completes the exit the machine stands at, and handles whatever further exits that yields. Inputs may be applied,
    /// and state saved, only afterwards. `Some` if the guest ended on the way.
    ///
    /// # Errors
    /// As [`Machine::run_to_exit`].
    pub fn settle<T: TimeSource>(&mut self, time: &mut T) -> Result<Option<EndReason>, T::Error> {
        while self.phase == Phase::AtExit && self.ended.is_none() {
            if let Some(exit) = self.complete()? {
                self.handle(exit, time)?;
            }
        }
        Ok(self.ended.clone())
    }

    /// Applies an input at the exit the machine stands at.
    ///
    /// # Errors
    /// If the input does not fit the machine's state: the log is not this machine's.
    ///
    /// # Panics
    /// If the machine is not settled at an exit: that is a caller's bug.
    pub fn apply(&mut self, input: &Input) -> Result<(), MachineError> {
        assert_eq!(
            self.phase,
            Phase::Settled,
            "inputs are applied only at a completed exit"
        );
        self.at.k += 1;
        match input {
            Input::Clock(time) => self.set_clock(*time)?,
            Input::Control(intervention) => return self.intervene(*intervention),
            _ => {}
        }
        let at = self.at;
        let mut env = env(&self.memory, self.clock.now(), &mut self.effects);
        self.chipset
            .apply(input, &mut env)
            .map_err(|source| MachineError::Apply { at, source })?;
        self.emit();
        if self.halted && self.chipset.interrupt_pending() && self.cpu.can_interrupt() {
            self.halted = false;
        }
        Ok(())
    }

    /// Whether inputs can be applied now: the guest has not been entered since its last exit.
    #[must_use]
    pub fn at_exit(&self) -> bool {
        self.phase != Phase::Entered
    }

    /// Completes; `Some` is a further exit, still to be handled.
    pub(super) fn complete(&mut self) -> Result<Option<Exit>, MachineError> {
        let exit = self.cpu.complete()?;
        if exit.is_none() {
            self.phase = Phase::Settled;
        }
        Ok(exit)
    }

    /// Injects a pending interrupt, or asks for a window. `Some` is a further exit that completing the last one
    /// yielded: it comes first.
    fn decide_interrupt(&mut self) -> Result<Option<Exit>, MachineError> {
        if self.chipset.interrupt_pending() {
            if self.phase == Phase::AtExit
                && let Some(exit) = self.complete()?
            {
                return Ok(Some(exit));
            }
            if self.cpu.can_interrupt() {
                let vector = self.chipset.acknowledge_interrupt();
                self.cpu.interrupt(vector)?;
                self.halted = false;
            }
        }
        if self.delivery != DeliveryMode::None {
            self.cpu.request_window(self.chipset.interrupt_pending());
        }
        if !self.halted {
            self.phase = Phase::Entered;
        }
        Ok(None)
    }

    /// Handles an exit: gives it its number, folds it into the digest, lets the devices answer, and collects what
    /// leaves.
    pub(super) fn handle<T: TimeSource>(&mut self, exit: Exit, time: &mut T) -> Result<Step, T::Error> {
        match exit {
            Exit::Interrupted => return Ok(Step::Interrupted),
            Exit::Terminal(terminal) => {
                let reason = terminal_reason(terminal, &self.cpu.registers());
                self.ended = Some(reason.clone());
                return Ok(Step::Ended(reason));
            }
            _ => {}
        }
        self.at = Position {
            exit: ExitSeq(self.at.exit.0 + 1),
            k: 0,
        };
        self.phase = Phase::AtExit;
        let registers = self.cpu.registers();
        fold_exit(&mut self.digest, exit, &registers);
        self.answer(exit, time)?;
        self.emit();
        if let Some(trail) = &mut self.trail {
            let check = self.digest.check();
            trail.push(self.at.exit, TrailStep { check, registers });
        }
        Ok(match &self.ended {
            Some(reason) => Step::Ended(reason.clone()),
            None => Step::Exit,
        })
    }

    /// What a numbered exit asks for.
    fn answer<T: TimeSource>(&mut self, exit: Exit, time: &mut T) -> Result<(), T::Error> {
        match exit {
            Exit::PortWrite {
                port: linux::RDTSC_PORT,
                ..
            } if self.guest == GuestKind::Linux => self.answer_rdtsc()?,
            Exit::PortWrite {
                port: linux::GP_HOOK_PORT,
                ..
            } if self.guest == GuestKind::Linux => self.answer_gp_hook()?,
            Exit::PortRead { .. } | Exit::PortWrite { .. } | Exit::MmioRead { .. } | Exit::MmioWrite { .. } => {
                self.access(exit, time)?;
            }
            Exit::Hlt if !self.cpu.interrupt_flag() => self.ended = Some(EndReason::Halted),
            Exit::Hlt => self.halted = true,
            Exit::ReadMsr { index: MSR_TSC } => {
                let value = self.clock.derive();
                self.cpu.data().copy_from_slice(&value.to_le_bytes());
            }
            // Writes to the TSC are accepted and ignored: it is derived from virtual time.
            Exit::WriteMsr { index: MSR_TSC, .. } => {}
            Exit::ReadMsr { .. } | Exit::WriteMsr { .. } => self.cpu.refuse_msr(),
            Exit::IrqWindow | Exit::SetTpr | Exit::Hypercall => {}
            Exit::Interrupted | Exit::Terminal(_) => unreachable!("they have no number"),
        }
        Ok(())
    }

    /// A device access. What is written is part of the history, and so goes into the digest.
    fn access<T: TimeSource>(&mut self, exit: Exit, time: &mut T) -> Result<(), T::Error> {
        let (read, write) = (AccessDirection::Read, AccessDirection::Write);
        let access = match exit {
            Exit::PortRead { port, .. } => Access::Port { port, dir: read },
            Exit::PortWrite { port, .. } => Access::Port { port, dir: write },
            Exit::MmioRead { addr, .. } => Access::Mmio { addr, dir: read },
            Exit::MmioWrite { addr, .. } => Access::Mmio { addr, dir: write },
            _ => return Ok(()),
        };
        self.clock_if_needed(access, time)?;
        let mut env = env(&self.memory, self.clock.now(), &mut self.effects);
        let data = self.cpu.data();
        match exit {
            Exit::PortRead { port, size, .. } => {
                for item in data.chunks_exact_mut(usize::from(size)) {
                    self.chipset.port_read(port, item, &mut env);
                }
            }
            Exit::PortWrite { port, size, .. } => {
                self.digest.fold_bytes(data);
                for item in data.chunks_exact(usize::from(size)) {
                    self.chipset.port_write(port, item, &mut env);
                }
            }
            Exit::MmioRead { addr, .. } => self.chipset.mmio_read(addr, data, &mut env),
            Exit::MmioWrite { addr, .. } => {
                self.digest.fold_bytes(data);
                self.chipset.mmio_write(addr, data, &mut env);
            }
            _ => {}
        }
        Ok(())
    }

    fn set_clock(&mut self, time: u64) -> Result<(), MachineError> {
        let floor = self.clock.floor();
        if self.clock.set(time) {
            return Ok(());
        }
        Err(HistoryError::ClockBackwards { floor, found: time }.into())
    }

    fn clock_if_needed<T: TimeSource>(&mut self, access: Access, time: &mut T) -> Result<(), T::Error> {
        if !self.chipset.access_needs_clock(access) {
            return Ok(());
        }
        let now = time.read(self.at, self.clock.floor())?;
        self.at.k += 1;
        self.set_clock(now)?;
        let at = self.at;
        let mut env = env(&self.memory, now, &mut self.effects);
        self.chipset
            .apply(&Input::Clock(now), &mut env)
            .map_err(|source| MachineError::Apply { at, source })?;
        Ok(())
    }
}

fn env<'a>(memory: &'a GuestMemory, now: u64, effects: &'a mut Vec<Effect>) -> DeviceEnv<'a> {
    DeviceEnv { memory, now, effects }
}
