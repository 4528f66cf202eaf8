//! The end of a guest.

use guest_abi::{EXIT_PORT, POWER_OFF_PORT, POWER_OFF_VALUE};

use crate::cpu::{outb, outw};

/// Ends the guest with a status, by the exit port, or on machines without one by a plain power-off. Works at CPL0 and at
/// CPL3, where HLT does not exist: what follows a power-off that did not happen is a pause loop.
pub fn exit(status: u8) -> ! {
    outb(EXIT_PORT, status);
    outw(POWER_OFF_PORT, POWER_OFF_VALUE);
    loop {
        core::hint::spin_loop();
    }
}
