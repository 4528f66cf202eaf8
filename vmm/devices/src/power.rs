//! The ports by which a guest ends its own life: power-off and reset.
//!
//! Ports 0x604 (ACPI PM1a control, as QEMU's machines place it), 0xF4 (power-off with a status, for tests), 0xCF9
//! (reset control, Intel chipsets). The keyboard controller's reset is in [`i8042`](super::i8042). They have no state:
//! each write is an effect or nothing, and what ends is decided above (PROTOCOL 18).

use super::env::{DeviceEnv, Effect};

const ACPI_CONTROL: u16 = 0x604;
/// SLP_EN: enter the sleep state; every state is "off" here.
const ACPI_SLEEP_ENABLE: u16 = 1 << 13;
const EXIT: u16 = 0xF4;
const RESET_CONTROL: u16 = 0xCF9;
const RESET_CPU: u8 = 1 << 2;

/// Whether a write to this port can end the guest.
pub(super) fn claims(port: u16) -> bool {
    matches!(port, ACPI_CONTROL | EXIT | RESET_CONTROL)
}

/// A write of 1, 2 or 4 bytes to a port claimed here. 0x604 answers to words only.
pub(super) fn write(port: u16, data: &[u8], env: &mut DeviceEnv<'_>) {
    let effect = match (port, data) {
        (ACPI_CONTROL, &[low, high, ..]) if u16::from_le_bytes([low, high]) & ACPI_SLEEP_ENABLE != 0 => {
            Effect::PowerOff { status: 0 }
        }
        (EXIT, &[status, ..]) => Effect::PowerOff { status },
        (RESET_CONTROL, &[value, ..]) if value & RESET_CPU != 0 => Effect::Reset,
        _ => return,
    };
    env.effects.push(effect);
}
