//! What a scripted CPU executes: a list of steps, and a second list for its interrupt handler.

use crate::Interrupts;
use crate::sequence::Sequence;

/// What a step writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// This number.
    Const(u64),
    /// Whatever the accumulator holds: a digest of everything that ever reached the CPU, and of when it did.
    Accumulator,
}

/// One thing that a scripted CPU does. Sizes are 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptStep {
    /// `in`: the answer goes into the accumulator.
    PortRead { port: u16, size: u8 },
    /// `out`.
    PortWrite { port: u16, size: u8, value: Operand },
    /// A load from an address without RAM.
    MmioRead { addr: u64, len: u8 },
    /// A store to an address without RAM.
    MmioWrite { addr: u64, len: u8, value: Operand },
    /// `or [addr], 1`: a read exit, and a write exit that comes out of `Cpu::complete` when the read is finished.
    MmioUpdate { addr: u64, len: u8 },
    /// RDMSR.
    ReadMsr { index: u32 },
    /// HLT.
    Halt,
    /// Loads RAM into the accumulator: no exit.
    Load { addr: u64, len: u8 },
    /// Stores to RAM: no exit.
    Store { addr: u64, len: u8, value: Operand },
    /// Computes for `units` units of time, each of which changes the accumulator and a page of RAM: no exit.
    Spin { units: u64 },
    /// `sti` or `cli`.
    SetInterrupts(Interrupts),
    /// A triple fault.
    Fail,
}

/// A program. After the last of `steps` it goes on at `repeat_from`, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub steps: Vec<ScriptStep>,
    pub repeat_from: usize,
    /// What an interrupt runs; it returns behind its last step, with interrupts on.
    pub handler: Vec<ScriptStep>,
    pub scratch: Scratch,
}

/// Pages of RAM that `Spin` writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Guest address of the first.
    pub first: u64,
    pub pages: u64,
    pub fill: Fill,
}

/// How much of its page a unit of computing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// 8 bytes: a difference that compresses to almost nothing.
    Word,
    /// All of it, with what does not compress.
    Page,
}

const PIC_COMMAND: u16 = 0x20;
const PIC_DATA: u16 = 0x21;
const PIT_CHANNEL_0: u16 = 0x40;
const PIT_COMMAND: u16 = 0x43;
const UART_DATA: u16 = 0x3f8;
const UART_LINE_STATUS: u16 = 0x3fd;
const PM_TIMER: u16 = 0x608;
/// End of interrupt, to the interrupt controller that raised it.
const END_OF_INTERRUPT: Operand = Operand::Const(0x20);
/// An address where no machine has RAM or a device.
const NOWHERE: u64 = 0xe000_0000;

impl Script {
    /// `steps` for ever, with a handler that stores the accumulator and ends the interrupt.
    #[must_use]
    pub fn repeat(steps: Vec<ScriptStep>) -> Self {
        let handler = vec![
            ScriptStep::Store {
                addr: 0x7000,
                len: 8,
                value: Operand::Accumulator,
            },
            ScriptStep::PortWrite {
                port: PIC_COMMAND,
                size: 1,
                value: END_OF_INTERRUPT,
            },
        ];
        Script {
            steps,
            repeat_from: 0,
            handler,
            scratch: Scratch {
                first: 0x1_0000,
                pages: 16,
                fill: Fill::Word,
            },
        }
    }

    /// A program that sets up interrupt controller and timer as a PC's and then does `length` random steps, for ever.
    /// It speaks on the serial port, reads clocks, halts, computes without exits, and switches interrupts off and on.
    #[must_use]
    pub fn random(seed: u64, length: usize) -> Self {
        let mut choices = Sequence::new(seed);
        let mut steps = Self::prologue();
        let repeat_from = steps.len();
        steps.extend((0..length).map(|_| Self::random_step(&mut choices)));
        // Otherwise a program might have no exit at all, or never take an interrupt.
        steps.push(ScriptStep::SetInterrupts(Interrupts::On));
        steps.push(ScriptStep::Halt);
        Script {
            repeat_from,
            ..Script::repeat(steps)
        }
    }

    /// Interrupt controller: edge-triggered, vectors from 0x20, cascade, only the timer let through. Timer: mode 2, 100
    /// Hz.
    fn prologue() -> Vec<ScriptStep> {
        let out = |port, value| ScriptStep::PortWrite {
            port,
            size: 1,
            value: Operand::Const(value),
        };
        let mut steps: Vec<ScriptStep> = [
            (PIC_COMMAND, 0x11),
            (PIC_DATA, 0x20),
            (PIC_DATA, 0x04),
            (PIC_DATA, 0x01),
            (PIC_DATA, 0xfe),
        ]
        .into_iter()
        .chain([(PIT_COMMAND, 0x34), (PIT_CHANNEL_0, 0x9c), (PIT_CHANNEL_0, 0x2e)])
        .map(|(port, value)| out(port, value))
        .collect();
        steps.push(ScriptStep::SetInterrupts(Interrupts::On));
        steps
    }

    fn random_step(choices: &mut Sequence) -> ScriptStep {
        let addr = 0x8000 + 8 * choices.below(512);
        match choices.below(16) {
            0..=3 => ScriptStep::PortWrite {
                port: UART_DATA,
                size: 1,
                value: Operand::Accumulator,
            },
            4 => ScriptStep::PortRead {
                port: UART_LINE_STATUS,
                size: 1,
            },
            5 => ScriptStep::PortRead {
                port: PM_TIMER,
                size: 4,
            },
            6 => ScriptStep::MmioRead { addr: NOWHERE, len: 4 },
            7 => ScriptStep::MmioWrite {
                addr: NOWHERE,
                len: 8,
                value: Operand::Accumulator,
            },
            8 => ScriptStep::MmioUpdate { addr: NOWHERE, len: 4 },
            9 => ScriptStep::Load { addr, len: 8 },
            10 => ScriptStep::Store {
                addr,
                len: 8,
                value: Operand::Accumulator,
            },
            11 => ScriptStep::Spin {
                units: 1 + choices.below(500),
            },
            12 => ScriptStep::SetInterrupts(Interrupts::Off),
            13 => ScriptStep::SetInterrupts(Interrupts::On),
            _ => ScriptStep::Halt,
        }
    }
}
