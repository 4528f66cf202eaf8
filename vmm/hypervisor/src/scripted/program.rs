//! What a scripted CPU does: a list of steps, and one for its interrupt handler.

use crate::sequence::Sequence;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// This number.
    Const(u64),
    /// Whatever the accumulator holds: everything that ever reached the CPU, and when.
    Accumulator,
}

/// RFLAGS.IF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    Off,
    On,
}

/// One thing that a scripted CPU does. Sizes are 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `in`: the answer goes into the accumulator.
    PortRead { port: u16, size: u8 },
    /// `out`.
    PortWrite { port: u16, size: u8, value: Value },
    /// A load from an address without RAM.
    MmioRead { addr: u64, len: u8 },
    /// A store to an address without RAM.
    MmioWrite { addr: u64, len: u8, value: Value },
    /// `or [addr], 1`: a read, and then a write that finishing the read produces.
    MmioUpdate { addr: u64, len: u8 },
    /// RDMSR.
    ReadMsr { index: u32 },
    /// HLT.
    Halt,
    /// Loads RAM into the accumulator: no exit.
    Load { addr: u64, len: u8 },
    /// Stores to RAM: no exit.
    Store { addr: u64, len: u8, value: Value },
    /// Computes for so many units, each of which changes the accumulator and a page of RAM: no exit.
    Spin { units: u64 },
    /// `sti` or `cli`.
    SetInterrupts(Interrupts),
    /// A triple fault.
    Fail,
}

/// A program: the steps, after the last of which it goes on at `repeat_from`; and the steps of its interrupt handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub steps: Vec<Step>,
    pub repeat_from: usize,
    pub handler: Vec<Step>,
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

/// What a unit of computing changes of its page.
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
const END_OF_INTERRUPT: Value = Value::Const(0x20);
/// An address where no machine has RAM or a device.
const NOWHERE: u64 = 0xe000_0000;

impl Program {
    /// `steps` for ever, with a handler that stores the accumulator and ends the interrupt.
    #[must_use]
    pub fn repeat(steps: Vec<Step>) -> Self {
        let handler = vec![
            Step::Store {
                addr: 0x7000,
                len: 8,
                value: Value::Accumulator,
            },
            Step::PortWrite {
                port: PIC_COMMAND,
                size: 1,
                value: END_OF_INTERRUPT,
            },
        ];
        Program {
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

    /// A program that sets up interrupt controller and timer as a PC's and then does `length` random steps, for ever. It speaks
    /// on the serial port, reads clocks, halts, computes without exits, and switches interrupts off and on.
    #[must_use]
    pub fn random(seed: u64, length: usize) -> Self {
        let mut choices = Sequence::new(seed);
        let mut steps = Self::prologue();
        let repeat_from = steps.len();
        steps.extend((0..length).map(|_| Self::random_step(&mut choices)));
        // Otherwise a program might have no exit at all, or never take an interrupt.
        steps.push(Step::SetInterrupts(Interrupts::On));
        steps.push(Step::Halt);
        Program {
            repeat_from,
            ..Program::repeat(steps)
        }
    }

    /// Interrupt controller: edge-triggered, vectors from 0x20, cascade, only the timer let through. Timer: mode 2, 100 Hz.
    fn prologue() -> Vec<Step> {
        let out = |port, value| Step::PortWrite {
            port,
            size: 1,
            value: Value::Const(value),
        };
        let mut steps: Vec<Step> = [
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
        steps.push(Step::SetInterrupts(Interrupts::On));
        steps
    }

    fn random_step(choices: &mut Sequence) -> Step {
        let addr = 0x8000 + 8 * choices.below(512);
        match choices.below(16) {
            0..=3 => Step::PortWrite {
                port: UART_DATA,
                size: 1,
                value: Value::Accumulator,
            },
            4 => Step::PortRead {
                port: UART_LINE_STATUS,
                size: 1,
            },
            5 => Step::PortRead {
                port: PM_TIMER,
                size: 4,
            },
            6 => Step::MmioRead { addr: NOWHERE, len: 4 },
            7 => Step::MmioWrite {
                addr: NOWHERE,
                len: 8,
                value: Value::Accumulator,
            },
            8 => Step::MmioUpdate { addr: NOWHERE, len: 4 },
            9 => Step::Load { addr, len: 8 },
            10 => Step::Store {
                addr,
                len: 8,
                value: Value::Accumulator,
            },
            11 => Step::Spin {
                units: 1 + choices.below(500),
            },
            12 => Step::SetInterrupts(Interrupts::Off),
            13 => Step::SetInterrupts(Interrupts::On),
            _ => Step::Halt,
        }
    }
}
