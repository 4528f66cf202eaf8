//! Instructions that Rust has no words for: ports, HLT, the interrupt flag, MMIO.

use core::arch::asm;

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port. At CPL3 this needs the IOPL and I/O bitmap that [`crate::user`] sets up.
        #[must_use]
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: reading a port of this machine's devices has no effect on memory that Rust knows of.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        /// Writes a port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: no device of this machine reaches memory because of a port write alone.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nomem, nostack, preserves_flags)) };
        }
    };
}

port_access!(inb, outb, u8, "al");
port_access!(inw, outw, u16, "ax");
port_access!(inl, outl, u32, "eax");

/// Enables interrupts. CPL0 only: at CPL3 IF is always set and stays so.
pub fn enable_interrupts() {
    // SAFETY: the runtime's IDT has a handler for every vector.
    unsafe { asm!("sti", options(nostack)) };
}

/// Disables interrupts. CPL0 only.
pub fn disable_interrupts() {
    // SAFETY: this only delays handlers.
    unsafe { asm!("cli", options(nostack)) };
}

/// Enables interrupts and halts until one has been handled, with interrupts disabled again after that. An interrupt
/// that was pending before does not get lost: `sti` takes effect behind `hlt`. CPL0 only.
pub fn halt() {
    // SAFETY: as `enable_interrupts`.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Halts until `ready` says so; it is asked before each halt, with interrupts disabled. CPL0 only.
pub fn halt_until(mut ready: impl FnMut() -> bool) {
    disable_interrupts();
    while !ready() {
        halt();
    }
    enable_interrupts();
}

/// The address that the last page fault was about. CPL0 only.
#[must_use]
pub fn page_fault_address() -> u64 {
    let value: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
