//! One 8259A: request, mask and in-service registers, priorities, and the command words that program them.

use serde::{Deserialize, Serialize};

/// The master's input that the slave drives.
pub(super) const CASCADE: u8 = 2;

/// The input whose vector a vanished request is answered with.
const SPURIOUS: u8 = 7;

/// Which of the two chips this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ChipRole {
    Master,
    Slave,
}

impl ChipRole {
    /// Inputs that may be level-triggered: not the timer, keyboard and cascade, not the RTC and the FPU.
    fn level_capable(self) -> u8 {
        match self {
            ChipRole::Master => 0xF8,
            ChipRole::Slave => 0xDE,
        }
    }
}

/// The initialisation command word that the data port expects next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    /// None: the chip is initialised, and a byte at the data port is OCW1, the mask.
    Mask,
    Icw2 {
        single: bool,
        icw4: bool,
    },
    Icw3 {
        icw4: bool,
    },
    Icw4,
}

impl Expects {
    fn icw4_or_mask(icw4: bool) -> Self {
        if icw4 { Expects::Icw4 } else { Expects::Mask }
    }
}

/// What reading the command port shows (OCW3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Shows {
    Requests,
    InService,
}

/// Whether the guest ends an interrupt, or the chip does (ICW4, OCW2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum EndOfInterrupt {
    Command,
    Automatic,
}

/// One 8259A. Bit n of a byte is input n.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chip {
    role: ChipRole,
    /// Levels at the inputs.
    lines: u8,
    /// Rising edges not yet acknowledged.
    edges: u8,
    /// ELCR: inputs that are level-triggered.
    level: u8,
    mask: u8,
    in_service: u8,
    vector_base: u8,
    /// The input of lowest priority; the one after it has the highest.
    lowest: u8,
    expects: Expects,
    shows: Shows,
    end_of_interrupt: EndOfInterrupt,
    rotate_on_automatic: bool,
    special_mask: bool,
    special_fully_nested: bool,
    poll: bool,
}

impl Chip {
    pub(super) fn new(role: ChipRole) -> Self {
        Chip {
            role,
            lines: 0,
            edges: 0,
            level: 0,
            mask: 0xFF,
            in_service: 0,
            vector_base: 0,
            lowest: 7,
            expects: Expects::Mask,
            shows: Shows::Requests,
            end_of_interrupt: EndOfInterrupt::Command,
            rotate_on_automatic: false,
            special_mask: false,
            special_fully_nested: false,
            poll: false,
        }
    }

    pub(super) fn set_line(&mut self, irq: u8, asserted: bool) {
        let bit = 1 << irq;
        if asserted {
            self.edges |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    pub(super) fn edge_level(&self) -> u8 {
        self.level
    }

    pub(super) fn set_edge_level(&mut self, value: u8) {
        self.level = value & self.role.level_capable();
    }

    /// The request that INT stands for, if any: unmasked, and of higher priority than everything in service.
    pub(super) fn pending(&self) -> Option<u8> {
        if self.expects != Expects::Mask {
            return None;
        }
        let request = self.first(self.requests() & !self.mask)?;
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.special_fully_nested && self.role == ChipRole::Master {
            blocking &= !(1 << CASCADE);
        }
        match self.first(blocking) {
            Some(serving) if self.rank(serving) <= self.rank(request) => None,
            _ => Some(request),
        }
    }

    /// INTA for `irq`.
    pub(super) fn take(&mut self, irq: u8) {
        let bit = 1 << irq;
        self.edges &= !bit;
        match self.end_of_interrupt {
            EndOfInterrupt::Command => self.in_service |= bit,
            EndOfInterrupt::Automatic if self.rotate_on_automatic => self.lowest = irq,
            EndOfInterrupt::Automatic => {}
        }
    }

    pub(super) fn vector(&self, irq: u8) -> u8 {
        self.vector_base | irq
    }

    pub(super) fn spurious_vector(&self) -> u8 {
        self.vector(SPURIOUS)
    }

    /// The poll word if OCW3 asked for one: bit 7 and the input taken into service, or 0.
    pub(super) fn poll(&mut self) -> Option<u8> {
        if !std::mem::take(&mut self.poll) {
            return None;
        }
        Some(match self.pending() {
            Some(irq) => {
                self.take(irq);
                0x80 | irq
            }
            None => 0,
        })
    }

    pub(super) fn read_status(&self) -> u8 {
        match self.shows {
            Shows::Requests => self.requests(),
            Shows::InService => self.in_service,
        }
    }

    pub(super) fn read_mask(&self) -> u8 {
        self.mask
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    pub(super) fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Icw2 { single, icw4 } => {
                self.vector_base = value & 0xF8;
                if single {
                    Expects::icw4_or_mask(icw4)
                } else {
                    Expects::Icw3 { icw4 }
                }
            }
            // The cascade is wired; what ICW3 says of it changes nothing.
            Expects::Icw3 { icw4 } => Expects::icw4_or_mask(icw4),
            Expects::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                if value & 0x02 != 0 {
                    self.end_of_interrupt = EndOfInterrupt::Automatic;
                }
                Expects::Mask
            }
        };
    }

    /// ICW1. Levels at the inputs and ELCR stay; the edge sense circuit is reset. Its level bit (LTIM) is ELCR's
    /// business.
    fn initialise(&mut self, icw1: u8) {
        *self = Chip {
            lines: self.lines,
            level: self.level,
            mask: 0,
            vector_base: self.vector_base,
            expects: Expects::Icw2 {
                single: icw1 & 0x02 != 0,
                icw4: icw1 & 0x01 != 0,
            },
            ..Chip::new(self.role)
        };
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & 0x04 != 0 {
            self.poll = true;
        }
        match value & 0x03 {
            2 => self.shows = Shows::Requests,
            3 => self.shows = Shows::InService,
            _ => {}
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    /// OCW2: bits 7 to 5 are rotate, specific, end of interrupt.
    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_automatic = false,
            0b100 => self.rotate_on_automatic = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(irq) = self.end_highest() {
                    self.lowest = irq;
                }
            }
            0b011 => self.in_service &= !(1 << named),
            0b111 => {
                self.in_service &= !(1 << named);
                self.lowest = named;
            }
            0b110 => self.lowest = named,
            _ => {}
        }
    }

    /// Non-specific end of interrupt; in special mask mode it does not touch masked inputs.
    fn end_highest(&mut self) -> Option<u8> {
        let serving = if self.special_mask {
            self.in_service & !self.mask
        } else {
            self.in_service
        };
        let irq = self.first(serving)?;
        self.in_service &= !(1 << irq);
        Some(irq)
    }

    /// IRR: a level input requests while it is high, an edge input from its edge to its acknowledgement.
    fn requests(&self) -> u8 {
        (self.edges & !self.level) | (self.lines & self.level)
    }

    /// Place in the order of priorities, 0 the highest.
    fn rank(&self, irq: u8) -> u8 {
        irq.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The input of highest priority in `set`.
    fn first(&self, set: u8) -> Option<u8> {
        if set == 0 {
            return None;
        }
        let highest = self.lowest.wrapping_add(1) & 7;
        let [rank, ..] = set.rotate_right(u32::from(highest)).trailing_zeros().to_le_bytes();
        Some((highest + rank) & 7)
    }
}
