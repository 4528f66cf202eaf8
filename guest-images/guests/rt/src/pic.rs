//! The two 8259 interrupt controllers.
//!
//! Everything is masked until [`unmask`]. With [`EndOfInterrupt::Automatic`] a handler needs no port access: the
//! controller ends the interrupt as it is acknowledged, and IF = 0 keeps handlers from nesting.

use crate::cpu::{inb, outb};

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
/// The master's input that the slave is on.
const CASCADE: u8 = 2;

/// Vector of IRQ 0; the other fifteen follow.
pub const FIRST_VECTOR: u8 = 0x20;

/// Who ends an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOfInterrupt {
    /// The handler, by a port write.
    Explicit,
    /// The controller (AEOI, bit 1 of ICW4).
    Automatic,
}

/// Initialises both controllers, with all inputs masked. ELCR stays as the VMM's firmware part has set it.
pub fn init(mode: EndOfInterrupt) {
    let icw4 = match mode {
        EndOfInterrupt::Explicit => 0x01,
        EndOfInterrupt::Automatic => 0x03,
    };
    for (port, vector, icw3) in [(MASTER, FIRST_VECTOR, 1 << CASCADE), (SLAVE, FIRST_VECTOR + 8, CASCADE)] {
        outb(port, 0x11);
        outb(port + 1, vector);
        outb(port + 1, icw3);
        outb(port + 1, icw4);
        outb(port + 1, 0xff);
    }
    crate::interrupts::set_end_of_interrupt(mode);
}

/// Lets an IRQ (0 to 15) through.
pub fn unmask(irq: u8) {
    change_mask(irq, |mask, bit| mask & !bit);
    if irq >= 8 {
        change_mask(CASCADE, |mask, bit| mask & !bit);
    }
}

/// Keeps an IRQ (0 to 15) out.
pub fn mask(irq: u8) {
    change_mask(irq, |mask, bit| mask | bit);
}

fn change_mask(irq: u8, change: impl Fn(u8, u8) -> u8) {
    let port = if irq < 8 { MASTER } else { SLAVE } + 1;
    outb(port, change(inb(port), 1 << (irq & 7)));
}

/// Non-specific end of interrupt, to the slave too where it took part.
pub(crate) fn end_of_interrupt(irq: u8) {
    if irq >= 8 {
        outb(SLAVE, 0x20);
    }
    outb(MASTER, 0x20);
}
