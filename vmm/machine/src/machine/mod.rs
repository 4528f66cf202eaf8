//! The machine: RAM, one vCPU and the devices, moved from guest-caused exit to guest-caused exit.
//!
//! It is a function of its inputs. Everything asynchronous is given to [`Machine::apply`] at an exit; a clock reading
//! that an exit itself needs is asked of a [`TimeSource`], which either reads the host and logs, or reads the log. What
//! leaves the guest piles up as [`Output`]s. So recording, replaying, the primary and the backup drive the same code
//! (DESIGN, "The four ideas").

pub mod clock;
mod exit;
pub mod intervention;
pub mod linux;
pub mod pages;
pub mod state;
#[cfg(test)]
mod tests;
pub mod trail;
mod working_set;

use ftvm_schema::entry::{Digest, EndReason, ExitSeq, Input, OutputSeq, Position, RegisterFile};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::config::{GuestKind, MachineConfig};
use crate::output::{Emission, Output};
use clock::VirtualClock;
use exit::{fold_exit, terminal_reason};
use ftvm_devices::{Access, ApplyError, Chipset, ConfigError, Direction, Effect, Env};
use ftvm_hypervisor::{Cpu, CpuError, DeliveryMode, Exit, GuestMemory};
use intervention::BootCell;
use pages::Copies;
use trail::Trail;
use working_set::WorkingSet;

/// MSR index of the time stamp counter (SDM vol. 4).
const MSR_TSC: u32 = 0x10;

/// Where a clock reading comes from that an exit itself needs: the host (and into the log), or the log.
pub trait TimeSource {
    /// The time for the exit at `at`, at least `floor` virtual nanoseconds.
    ///
    /// # Errors
    /// [`MachineError::Divergence`] if a log has something else at this place.
    fn read(&mut self, at: Position, floor: u64) -> Result<u64, MachineError>;
}

/// What stopped the machine from going on, other than the guest itself.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The hypervisor failed.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// An input does not fit the machine's state.
    #[error("input at exit {}.{}: {source}", at.exit.0, at.k)]
    Apply { at: Position, source: ApplyError },
    /// The machine's history is not the recorded one.
    #[error("{0}")]
    Divergence(String),
    /// The running digest differs from a mark's.
    #[error("{0}")]
    MarkDiffers(Box<MarkDifference>),
    /// An exit's check byte differs from the recorded one.
    #[error("registers, access or outputs at exit {} differ from the recorded ones", exit.0)]
    CheckDiffers {
        exit: ExitSeq,
        registers: Box<RegisterFile>,
    },
    /// The configuration cannot be built.
    #[error("{0}")]
    Config(String),
    /// What the log leaves to the shared disk cannot be had there.
    #[error("{0}")]
    Disk(String),
    /// A state record does not fit this machine.
    #[error("state record: {0}")]
    State(String),
    /// The log could not be written or the channel is gone.
    #[error("log: {0}")]
    Log(String),
}

/// A mark and the machine that should agree with it: position, running digest, outputs so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkDifference {
    pub expected: (Position, Digest, OutputSeq),
    pub found: (Position, Digest, OutputSeq),
    /// Registers in the log, if it has them.
    pub recorded: Option<RegisterFile>,
}

impl std::fmt::Display for MarkDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |(at, digest, outputs): (Position, Digest, OutputSeq)| {
            format!(
                "digest {:016x} with {} outputs at exit {}.{}",
                digest.0, outputs.0, at.exit.0, at.k
            )
        };
        write!(
            f,
            "the log has {}, the replay {}",
            side(self.expected),
            side(self.found)
        )
    }
}

impl From<ConfigError> for MachineError {
    fn from(error: ConfigError) -> Self {
        MachineError::Config(error.to_string())
    }
}

/// How far one call moved the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A numbered exit was taken and handled.
    Exit,
    /// The guest sleeps in HLT until an input raises an interrupt.
    Halted,
    /// The guest was interrupted from outside; nothing has a number.
    Interrupted,
    /// The guest's life is over.
    Ended(EndReason),
}

/// Whether the interrupt for the coming entry has been decided: inputs are applied before, the guest runs after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// At an exit that may still have a part to come (`Cpu::complete` not yet called).
    AtExit,
    /// At an exit, completed.
    Settled,
    /// Interrupts are decided; the guest has been or is about to be entered.
    Entered,
}

/// One virtual machine.
#[derive(Debug)]
pub struct Machine<C: Cpu> {
    memory: GuestMemory,
    cpu: C,
    chipset: Chipset,
    delivery: DeliveryMode,
    guest: GuestKind,
    clock: VirtualClock,
    at: Position,
    digest: Digest,
    outputs: OutputSeq,
    /// Bytes written to each console so far.
    console: [u64; 2],
    private_disks: Vec<u8>,
    halted: bool,
    phase: Phase,
    ended: Option<EndReason>,
    effects: Vec<Effect>,
    emitted: Vec<Output>,
    trail: Option<Trail>,
    copies: Copies,
    working_set: WorkingSet,
    /// The operator has it stand still.
    paused: bool,
    /// What a reset starts from.
    boot: BootCell,
}

/// Guest RAM of `bytes` bytes from address 0.
///
/// # Errors
/// If the host has no such memory to give.
pub fn allocate_memory(bytes: u64) -> Result<GuestMemory, MachineError> {
    let size = usize::try_from(bytes).map_err(|_| MachineError::Config(format!("{bytes} bytes of RAM do not fit")))?;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)])
        .map_err(|e| MachineError::Config(format!("{} MiB of guest RAM: {e}", bytes >> 20)))
}

impl<C: Cpu> Machine<C> {
    /// A machine that has not run yet; `cpu` was made on `memory`.
    ///
    /// # Errors
    /// If the platform in `config` cannot be built.
    pub fn new(config: &MachineConfig, memory: GuestMemory, cpu: C) -> Result<Self, MachineError> {
        config.validate().map_err(MachineError::Config)?;
        Ok(Machine {
            memory,
            cpu,
            chipset: Chipset::new(&config.platform)?,
            delivery: config.profile.delivery,
            guest: config.guest,
            clock: VirtualClock::default(),
            at: Position::default(),
            digest: Digest::default(),
            outputs: OutputSeq::default(),
            console: [0; 2],
            private_disks: config.platform.private_disks().collect(),
            halted: false,
            phase: Phase::Settled,
            ended: None,
            effects: Vec::new(),
            emitted: Vec::new(),
            trail: None,
            copies: Copies::default(),
            working_set: WorkingSet::default(),
            paused: false,
            boot: BootCell::default(),
        })
    }

    /// Keeps check bytes and registers of the latest exits from now on.
    pub fn keep_trail(&mut self) {
        self.trail = Some(Trail::default());
    }

    /// The latest exits, if kept.
    pub fn trail(&mut self) -> Option<&mut Trail> {
        self.trail.as_mut()
    }

    /// Where the guest's history stands.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// The running digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The next output's number.
    #[must_use]
    pub fn outputs(&self) -> OutputSeq {
        self.outputs
    }

    /// Numbers of the disks of which each host has a copy of its own.
    #[must_use]
    pub fn private_disks(&self) -> &[u8] {
        &self.private_disks
    }

    /// Last logged virtual time in nanoseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The smallest virtual time an input may carry.
    #[must_use]
    pub fn time_floor(&self) -> u64 {
        self.clock.floor()
    }

    /// The devices, to ask them what they wait for.
    #[must_use]
    pub fn chipset(&self) -> &Chipset {
        &self.chipset
    }

    /// The vCPU, for its kick handle and registers.
    #[must_use]
    pub fn cpu(&self) -> &C {
        &self.cpu
    }

    /// The guest's RAM.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes what has left the guest since the last call, in order.
    pub fn drain_outputs(&mut self) -> std::vec::Drain<'_, Output> {
        self.emitted.drain(..)
    }

    /// Whether something has left the guest since the last drain.
    #[must_use]
    pub fn has_outputs(&self) -> bool {
        !self.emitted.is_empty()
    }

    /// Runs to the guest's next own exit and handles it.
    ///
    /// # Errors
    /// If the hypervisor fails, or the time source finds a divergence.
    pub fn run_to_exit(&mut self, time: &mut dyn TimeSource) -> Result<Step, MachineError> {
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
        let exit = self.cpu.run()?;
        self.handle(exit, time)
    }

    /// Completes the exit the machine stands at, and handles whatever further exits that yields. Inputs may be applied,
    /// and state saved, only afterwards. `Some` if the guest ended on the way.
    ///
    /// # Errors
    /// As [`Machine::run_to_exit`].
    pub fn settle(&mut self, time: &mut dyn TimeSource) -> Result<Option<EndReason>, MachineError> {
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
    fn complete(&mut self) -> Result<Option<Exit>, MachineError> {
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

    fn handle(&mut self, exit: Exit, time: &mut dyn TimeSource) -> Result<Step, MachineError> {
        match exit {
            Exit::Interrupted => return Ok(Step::Interrupted),
            Exit::Terminal(terminal) => return Ok(self.end(terminal_reason(terminal, &self.cpu.registers()))),
            _ => {}
        }
        self.at = Position {
            exit: ExitSeq(self.at.exit.0 + 1),
            k: 0,
        };
        self.phase = Phase::AtExit;
        let registers = self.cpu.registers();
        fold_exit(&mut self.digest, exit, &registers);
        match exit {
            Exit::PortRead { port, size, .. } => {
                self.clock_if_needed(
                    Access::Port {
                        port,
                        dir: Direction::Read,
                    },
                    time,
                )?;
                let mut env = env(&self.memory, self.clock.now(), &mut self.effects);
                for item in self.cpu.data().chunks_exact_mut(usize::from(size)) {
                    self.chipset.port_read(port, item, &mut env);
                }
            }
            Exit::PortWrite {
                port: linux::RDTSC_PORT,
                ..
            } if self.guest == GuestKind::Linux => self.answer_rdtsc()?,
            Exit::PortWrite {
                port: linux::GP_HOOK_PORT,
                ..
            } if self.guest == GuestKind::Linux => self.answer_gp_hook()?,
            Exit::PortWrite { port, size, .. } => {
                self.clock_if_needed(
                    Access::Port {
                        port,
                        dir: Direction::Write,
                    },
                    time,
                )?;
                let mut env = env(&self.memory, self.clock.now(), &mut self.effects);
                let data = self.cpu.data();
                self.digest.fold_bytes(data);
                for item in data.chunks_exact(usize::from(size)) {
                    self.chipset.port_write(port, item, &mut env);
                }
            }
            Exit::MmioRead { addr, .. } => {
                self.clock_if_needed(
                    Access::Mmio {
                        addr,
                        dir: Direction::Read,
                    },
                    time,
                )?;
                let mut env = env(&self.memory, self.clock.now(), &mut self.effects);
                self.chipset.mmio_read(addr, self.cpu.data(), &mut env);
            }
            Exit::MmioWrite { addr, .. } => {
                self.clock_if_needed(
                    Access::Mmio {
                        addr,
                        dir: Direction::Write,
                    },
                    time,
                )?;
                let mut env = env(&self.memory, self.clock.now(), &mut self.effects);
                let data = self.cpu.data();
                self.digest.fold_bytes(data);
                self.chipset.mmio_write(addr, data, &mut env);
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
            Exit::Interrupted | Exit::Terminal(_) => unreachable!("returned above"),
        }
        self.emit();
        if let Some(trail) = &mut self.trail {
            trail.push(
                self.at.exit,
                trail::Step {
                    check: self.digest.check(),
                    registers,
                },
            );
        }
        Ok(match &self.ended {
            Some(reason) => Step::Ended(reason.clone()),
            None => Step::Exit,
        })
    }

    fn end(&mut self, reason: EndReason) -> Step {
        self.ended = Some(reason.clone());
        Step::Ended(reason)
    }

    fn set_clock(&mut self, time: u64) -> Result<(), MachineError> {
        let floor = self.clock.floor();
        if self.clock.set(time) {
            return Ok(());
        }
        Err(MachineError::Divergence(format!(
            "the clock would run backwards: at least {floor} ns expected, {time} found"
        )))
    }

    fn clock_if_needed(&mut self, access: Access, time: &mut dyn TimeSource) -> Result<(), MachineError> {
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
            .map_err(|source| MachineError::Apply { at, source })
    }

    /// Gives what devices want to do outside its number and its place.
    fn emit(&mut self) {
        for effect in self.effects.drain(..) {
            let emission = match effect {
                Effect::Frame { nic, bytes } => Emission::Frame { nic, bytes },
                Effect::Console { port, bytes } => {
                    let written = &mut self.console[port as usize];
                    let position = *written;
                    *written += bytes.len() as u64;
                    Emission::Console { port, position, bytes }
                }
                Effect::Disk(request) if self.private_disks.contains(&request.disk) => Emission::PrivateDisk(request),
                Effect::Disk(request) => Emission::Disk(request),
                Effect::WantEntropy { len } => Emission::WantEntropy { len },
                Effect::PowerOff { status } => {
                    self.ended.get_or_insert(EndReason::PowerOff { status });
                    continue;
                }
                Effect::Reset => {
                    self.ended.get_or_insert(EndReason::Reset);
                    continue;
                }
            };
            emission.fold(&mut self.digest);
            let seq = self.outputs;
            if emission.is_output() {
                self.outputs.0 += 1;
            }
            self.emitted.push(Output {
                at: self.at,
                seq,
                emission,
            });
        }
    }
}

fn env<'a>(memory: &'a GuestMemory, now: u64, effects: &'a mut Vec<Effect>) -> Env<'a> {
    Env { memory, now, effects }
}
