//! The two 8259A interrupt controllers of a PC (Intel 8259A data sheet; ELCR as in the PIIX data sheets).
//!
//! Without an in-kernel irqchip these are the guest's only interrupt controllers: which vector enters the guest, and
//! when it may, is decided here, from the lines that devices drive and from what the guest programmed. Edge and level
//! inputs, automatic and rotating end of interrupt, special mask, special fully nested and poll mode are there, and a
//! request that vanishes between INT and INTA yields the spurious vector (7 of either chip), as on hardware.

mod chip;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use chip::{CASCADE, Chip, ChipRole};

/// Interrupt inputs of the pair.
pub(super) const IRQS: u8 = 16;

/// Master and slave 8259A, the slave's INT on the master's input 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pic {
    master: Chip,
    slave: Chip,
}

/// A register of the pair, by its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Command(ChipRole),
    Data(ChipRole),
    EdgeLevel(ChipRole),
}

impl Register {
    fn at(port: u16) -> Option<Self> {
        Some(match port {
            0x20 => Register::Command(ChipRole::Master),
            0x21 => Register::Data(ChipRole::Master),
            0xA0 => Register::Command(ChipRole::Slave),
            0xA1 => Register::Data(ChipRole::Slave),
            0x4D0 => Register::EdgeLevel(ChipRole::Master),
            0x4D1 => Register::EdgeLevel(ChipRole::Slave),
            _ => return None,
        })
    }
}

impl Pic {
    /// Both chips as firmware leaves them: everything masked. `level` has bit n set where input n is level-triggered.
    pub(super) fn new(level: u16) -> Self {
        let [low, high] = level.to_le_bytes();
        let mut pic = Pic {
            master: Chip::new(ChipRole::Master),
            slave: Chip::new(ChipRole::Slave),
        };
        pic.master.set_edge_level(low);
        pic.slave.set_edge_level(high);
        pic
    }

    /// Whether the pair answers at this port: 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1.
    pub(super) fn claims(port: u16) -> bool {
        Register::at(port).is_some()
    }

    /// Drives input `irq` (0 to 15, not 2: that is the slave).
    pub(super) fn set_line(&mut self, irq: u8, asserted: bool) {
        debug_assert!(irq < IRQS && irq != CASCADE, "no device drives input {irq}");
        if irq < 8 {
            self.master.set_line(irq, asserted);
        } else {
            self.slave.set_line(irq & 7, asserted);
            self.drive_cascade();
        }
    }

    /// A low-to-high transition on input `irq`, whatever its level was.
    pub(super) fn pulse(&mut self, irq: u8) {
        self.set_line(irq, false);
        self.set_line(irq, true);
    }

    /// The INT output towards the CPU.
    pub(super) fn interrupt_pending(&self) -> bool {
        self.master.pending().is_some()
    }

    /// INTA: takes the highest request into service and says its vector; the spurious vector if there is none.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let Some(irq) = self.master.pending() else {
            return self.master.spurious_vector();
        };
        self.master.take(irq);
        if irq != CASCADE {
            return self.master.vector(irq);
        }
        let vector = match self.slave.pending() {
            Some(irq) => {
                self.slave.take(irq);
                self.slave.vector(irq)
            }
            None => self.slave.spurious_vector(),
        };
        self.reassert_cascade();
        vector
    }

    /// Reads one byte from a port it claims (0xFF elsewhere). In poll mode reading is an acknowledgement.
    pub(super) fn read(&mut self, port: u16) -> u8 {
        match Register::at(port) {
            Some(Register::Command(role)) => self.poll(role).unwrap_or_else(|| self.chip(role).read_status()),
            Some(Register::Data(role)) => self.poll(role).unwrap_or_else(|| self.chip(role).read_mask()),
            Some(Register::EdgeLevel(role)) => self.chip(role).edge_level(),
            None => 0xFF,
        }
    }

    /// Writes one byte to a port it claims (ignored elsewhere).
    pub(super) fn write(&mut self, port: u16, value: u8) {
        match Register::at(port) {
            Some(Register::Command(role)) => self.chip(role).write_command(value),
            Some(Register::Data(role)) => self.chip(role).write_data(value),
            Some(Register::EdgeLevel(role)) => self.chip(role).set_edge_level(value),
            None => return,
        }
        self.drive_cascade();
    }

    fn chip(&mut self, role: ChipRole) -> &mut Chip {
        match role {
            ChipRole::Master => &mut self.master,
            ChipRole::Slave => &mut self.slave,
        }
    }

    fn poll(&mut self, role: ChipRole) -> Option<u8> {
        let answer = self.chip(role).poll()?;
        match role {
            ChipRole::Master => self.drive_cascade(),
            ChipRole::Slave => self.reassert_cascade(),
        }
        Some(answer)
    }

    fn drive_cascade(&mut self) {
        let asserted = self.slave.pending().is_some();
        self.master.set_line(CASCADE, asserted);
    }

    /// The slave's INT falls at every INTA; if more is pending it rises again, and the master must see that edge.
    fn reassert_cascade(&mut self) {
        self.master.set_line(CASCADE, false);
        self.drive_cascade();
    }
}
