//! The keyboard controller at ports 0x60 and 0x64, without keyboard and mouse (IBM PS/2 Technical Reference).
//!
//! Guests reset the machine through it (command 0xFE), and Linux probes it at boot: commands that ask for a byte are
//! answered, because each one left unanswered costs the probe ten thousand polls. No interrupt is ever raised.

use serde::{Deserialize, Serialize};

use super::{Effect, Env};

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;

const READ_CONFIGURATION: u8 = 0x20;
const WRITE_CONFIGURATION: u8 = 0x60;
const TEST_MOUSE_PORT: u8 = 0xA9;
const SELF_TEST: u8 = 0xAA;
const TEST_KEYBOARD_PORT: u8 = 0xAB;
const MOUSE_LOOPBACK: u8 = 0xD3;
const PULSE_RESET: u8 = 0xFE;

const SELF_TEST_PASSED: u8 = 0x55;
const TEST_PASSED: u8 = 0x00;
/// Data line stuck low: there is no mouse port.
const TEST_FAILED: u8 = 0x03;

/// Both ports disabled, interrupts off, as after power-on.
const CONFIGURATION: u8 = 0x30;

/// Whose parameter the next byte at the data port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Parameter {
    Configuration,
    Loopback,
    /// For the keyboard, and there is none.
    None,
}

/// The controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct I8042 {
    configuration: u8,
    output: Option<u8>,
    parameter: Parameter,
}

impl I8042 {
    pub(super) fn new() -> Self {
        I8042 {
            configuration: CONFIGURATION,
            output: None,
            parameter: Parameter::None,
        }
    }

    /// Whether the controller answers at this port.
    pub(super) fn claims(port: u16) -> bool {
        matches!(port, DATA | COMMAND)
    }

    /// Reads one byte: the answer to the last command (0 without one), or the status.
    pub(super) fn read(&mut self, port: u16) -> u8 {
        match port {
            DATA => self.output.take().unwrap_or(0),
            _ if self.output.is_some() => STATUS_OUTPUT_FULL,
            _ => 0,
        }
    }

    /// Writes one byte: a command or its parameter.
    pub(super) fn write(&mut self, port: u16, value: u8, env: &mut Env<'_>) {
        if port == DATA {
            match std::mem::replace(&mut self.parameter, Parameter::None) {
                Parameter::Configuration => self.configuration = value,
                Parameter::Loopback => self.output = Some(value),
                Parameter::None => {}
            }
            return;
        }
        self.parameter = match value {
            WRITE_CONFIGURATION => Parameter::Configuration,
            MOUSE_LOOPBACK => Parameter::Loopback,
            _ => Parameter::None,
        };
        match value {
            READ_CONFIGURATION => self.output = Some(self.configuration),
            SELF_TEST => self.output = Some(SELF_TEST_PASSED),
            TEST_KEYBOARD_PORT => self.output = Some(TEST_PASSED),
            TEST_MOUSE_PORT => self.output = Some(TEST_FAILED),
            PULSE_RESET => env.effects.push(Effect::Reset),
            _ => {}
        }
    }
}
