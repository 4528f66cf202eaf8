//! The 16550A serial port at 0x3F8, IRQ 4 (National PC16550D data sheet).
//!
//! Transmission takes no time: a byte written is a [`Console`](super::Effect::Console) effect and the transmitter is
//! empty again. Reception fills a FIFO of 16 bytes that arrive as inputs; what finds it full is lost and says so by the
//! overrun bit, as on hardware. The interrupt output is not gated by OUT2: small guests never set it, and other machine
//! models do not gate it either.
//!
//! Not vm-superio's model: that one calls its interrupt trigger and its output from within, also while a state is being
//! restored, and knows no overrun; here interrupt level and output are values that the chipset and the log can see.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use ftvm_schema::entry::ConsolePort;
use serde::{Deserialize, Serialize};

use super::env::{DeviceEnv, Effect};
use super::error::BadState;

/// Bytes the receive FIFO holds, as on the 16550A.
pub(super) const FIFO_SIZE: usize = 16;

const IER_WRITABLE: u8 = 0x0F;
const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;

const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_FIFO_ENABLED: u8 = 0xC0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;

const MCR_WRITABLE: u8 = 0x1F;
const MCR_LOOPBACK: u8 = 1 << 4;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
/// Transmit holding register and transmitter empty: always.
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

/// Clear to send, data set ready, carrier: the other end is always there.
const MSR_CONNECTED: u8 = 0xB0;

/// 9600 baud.
const DEFAULT_DIVISOR: [u8; 2] = [12, 0];

/// The serial port. Register offsets are 0 to 7.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Uart {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    received: VecDeque<u8>,
    overrun: bool,
    /// The transmitter has become empty, and the guest has not yet seen the interrupt that says so.
    transmitter_empty_pending: bool,
    /// MSR's lower half: which modem lines changed since it was read.
    modem_changes: u8,
}

impl Uart {
    pub(super) fn new() -> Self {
        Uart {
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            divisor: DEFAULT_DIVISOR,
            received: VecDeque::new(),
            overrun: false,
            transmitter_empty_pending: false,
            modem_changes: 0,
        }
    }

    /// The level of the interrupt output.
    pub(super) fn interrupt(&self) -> bool {
        self.interrupt_identity() != IIR_NONE
    }

    /// Bytes that can be received now without an overrun.
    pub(super) fn room(&self) -> usize {
        if self.modem_control & MCR_LOOPBACK != 0 {
            return 0;
        }
        self.capacity().saturating_sub(self.received.len())
    }

    /// Bytes arrive on the line. In loopback mode the line is disconnected and they are lost.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        if self.modem_control & MCR_LOOPBACK == 0 {
            for &byte in bytes {
                self.receive_byte(byte);
            }
        }
    }

    /// Reads register `offset`, 0 to 7.
    pub(super) fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 if self.divisor_latched() => self.divisor[0],
            0 => self.received.pop_front().unwrap_or(0),
            1 if self.divisor_latched() => self.divisor[1],
            1 => self.interrupt_enable,
            2 => self.identify_interrupt(),
            3 => self.line_control,
            4 => self.modem_control,
            5 => self.read_line_status(),
            6 => self.modem_lines() | std::mem::take(&mut self.modem_changes),
            _ => self.scratch,
        }
    }

    /// A byte about to be written withdraws the transmitter interrupt; it comes back when the byte has left, and the
    /// interrupt controller must see that edge.
    pub(super) fn withdraw_before_write(&mut self, offset: u16) {
        if offset == 0 && !self.divisor_latched() {
            self.transmitter_empty_pending = false;
        }
    }

    /// Writes register `offset`, 0 to 7, after [`Self::withdraw_before_write`].
    pub(super) fn write(&mut self, offset: u16, value: u8, env: &mut DeviceEnv<'_>) {
        match offset {
            0 if self.divisor_latched() => self.divisor[0] = value,
            0 => self.transmit(value, env),
            1 if self.divisor_latched() => self.divisor[1] = value,
            1 => self.enable_interrupts(value & IER_WRITABLE),
            2 => self.control_fifo(value),
            3 => self.line_control = value,
            4 => self.control_modem(value & MCR_WRITABLE),
            7 => self.scratch = value,
            // Line and modem status are read-only.
            _ => {}
        }
    }

    /// Refuses a state with more than a FIFO of bytes.
    pub(super) fn check(&self) -> Result<(), BadState> {
        if self.received.len() <= FIFO_SIZE {
            Ok(())
        } else {
            Err(BadState::new(
                "UART receive FIFO",
                "at most 16 bytes",
                self.received.len(),
            ))
        }
    }

    fn divisor_latched(&self) -> bool {
        self.line_control & LCR_DIVISOR_LATCH != 0
    }

    fn fifo_enabled(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled() { FIFO_SIZE } else { 1 }
    }

    fn trigger_level(&self) -> usize {
        if !self.fifo_enabled() {
            return 1;
        }
        match self.fifo_control >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn receive_byte(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
        } else {
            self.overrun = true;
        }
    }

    fn transmit(&mut self, byte: u8, env: &mut DeviceEnv<'_>) {
        if self.modem_control & MCR_LOOPBACK != 0 {
            self.receive_byte(byte);
        } else {
            env.effects.push(Effect::Console {
                port: ConsolePort::Serial,
                bytes: vec![byte],
            });
        }
        self.transmitter_empty_pending = true;
    }

    /// Enabling the transmitter interrupt while the transmitter is empty raises it at once.
    fn enable_interrupts(&mut self, value: u8) {
        if value & !self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 {
            self.transmitter_empty_pending = true;
        }
        self.interrupt_enable = value;
    }

    /// Turning the FIFOs on or off clears them.
    fn control_fifo(&mut self, value: u8) {
        let toggled = (value ^ self.fifo_control) & FCR_ENABLE != 0;
        if toggled || value & FCR_CLEAR_RECEIVER != 0 {
            self.received.clear();
        }
        self.fifo_control = value & (FCR_ENABLE | 0xC0);
    }

    fn control_modem(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value;
        let after = self.modem_lines();
        let changed = (before ^ after) >> 4;
        // The ring indicator (bit 2) counts only when it falls.
        let ring_fell = (before & !after) >> 4 & 0x04;
        self.modem_changes |= (changed & 0x0B) | ring_fell;
    }

    /// MSR's upper half; in loopback mode the four outputs are its inputs.
    fn modem_lines(&self) -> u8 {
        if self.modem_control & MCR_LOOPBACK == 0 {
            return MSR_CONNECTED;
        }
        let control = self.modem_control;
        (control & 0x02) << 3 | (control & 0x01) << 5 | (control & 0x0C) << 4
    }

    fn read_line_status(&mut self) -> u8 {
        let mut status = LSR_TRANSMITTER_EMPTY;
        if !self.received.is_empty() {
            status |= LSR_DATA_READY;
        }
        if std::mem::take(&mut self.overrun) {
            status |= LSR_OVERRUN;
        }
        status
    }

    /// The pending interrupt of highest priority, as IIR names it.
    fn interrupt_identity(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if enabled(IER_LINE_STATUS) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && !self.received.is_empty() {
            // Below the trigger level the sender has paused: that is the character timeout.
            if self.received.len() >= self.trigger_level() {
                IIR_RECEIVED
            } else {
                IIR_TIMEOUT
            }
        } else if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_empty_pending {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn identify_interrupt(&mut self) -> u8 {
        let identity = self.interrupt_identity();
        if identity == IIR_TRANSMITTER_EMPTY {
            self.transmitter_empty_pending = false;
        }
        if self.fifo_enabled() {
            identity | IIR_FIFO_ENABLED
        } else {
            identity
        }
    }
}
