//! The keyboard controller at ports 0x60 and 0x64, without keyboard and mouse (IBM PS/2 Technical Reference).
//!
//! Guests reset the machine through it (command 0xFE), and Linux probes it at boot: commands that ask for a byte are
//! answered, because each one left unanswered costs the probe ten thousand polls. No interrupt is ever raised.

use serde::{Deserialize, Serialize};

use super::env::{DeviceEnv, Effect};

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
/// The answer to a test of the mouse port: its data line is stuck low, which says that there is none.
const TEST_FAILED: u8 = 0x03;

/// Both ports disabled, interrupts off, as after power-on.
const CONFIGURATION: u8 = 0x30;

/// What the next byte written to the data port is.
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
    pub(super) fn write(&mut self, port: u16, value: u8, env: &mut DeviceEnv<'_>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::contract::{self, Subject, own_state};
    use crate::testing::{Seeded, Surroundings, forgetting};

    /// Sends a command with its parameters and returns what the controller answers.
    fn command(controller: &mut I8042, command: u8, parameters: &[u8]) -> Option<u8> {
        let mut around = Surroundings::new();
        controller.write(COMMAND, command, &mut around.env());
        for &parameter in parameters {
            controller.write(DATA, parameter, &mut around.env());
        }
        assert_eq!(around.effects, []);
        (controller.read(COMMAND) & STATUS_OUTPUT_FULL != 0).then(|| controller.read(DATA))
    }

    #[test]
    fn a_probe_gets_its_answers() {
        let mut controller = I8042::new();
        assert_eq!(controller.read(COMMAND), 0, "idle");
        assert_eq!(controller.read(DATA), 0);
        assert_eq!(command(&mut controller, SELF_TEST, &[]), Some(SELF_TEST_PASSED));
        assert_eq!(command(&mut controller, READ_CONFIGURATION, &[]), Some(CONFIGURATION));
        assert_eq!(command(&mut controller, WRITE_CONFIGURATION, &[0x65]), None);
        assert_eq!(command(&mut controller, READ_CONFIGURATION, &[]), Some(0x65));
        assert_eq!(command(&mut controller, TEST_KEYBOARD_PORT, &[]), Some(TEST_PASSED));
        assert_eq!(
            command(&mut controller, TEST_MOUSE_PORT, &[]),
            Some(TEST_FAILED),
            "there is no mouse"
        );
        assert_eq!(command(&mut controller, MOUSE_LOOPBACK, &[0x5A]), Some(0x5A));
        assert_eq!(
            command(&mut controller, 0xAE, &[0xF2]),
            None,
            "nor a keyboard that would answer"
        );
        assert_eq!(controller.read(COMMAND), 0);
    }

    #[test]
    fn the_reset_pulse_is_an_effect() {
        let mut around = Surroundings::new();
        I8042::new().write(COMMAND, PULSE_RESET, &mut around.env());
        assert_eq!(around.effects, [Effect::Reset]);
        I8042::new().write(DATA, PULSE_RESET, &mut around.env());
        assert_eq!(around.effects.len(), 1, "as data it is nothing");
    }

    struct I8042Subject;

    impl Subject for I8042Subject {
        type Device = I8042;
        type Guest = ();

        own_state!(I8042::new());

        fn step(controller: &mut I8042, (): &mut (), around: &mut Surroundings, random: &mut Seeded) -> Vec<u8> {
            let port = random.pick(&[DATA, COMMAND]);
            if random.once_in(2) {
                return vec![controller.read(port)];
            }
            let commands = [
                READ_CONFIGURATION,
                WRITE_CONFIGURATION,
                SELF_TEST,
                MOUSE_LOOPBACK,
                PULSE_RESET,
                0x77,
            ];
            controller.write(port, random.pick(&commands), &mut around.env());
            Vec::new()
        }

        fn observe(_: &I8042) -> String {
            String::new()
        }
    }

    #[test]
    fn keeps_the_contract() {
        contract::check::<I8042Subject>();
    }

    #[test]
    fn every_field_matters() {
        forgetting::check::<I8042Subject>(&[]);
    }
}
