//! The serial console: a 16550 UART, written without interrupts.

use core::fmt::{self, Write};

use guest_abi::UART_PORT;

use crate::cpu::{inb, outb};

/// Bytes that the UART takes once it says that its transmitter is empty (its FIFO).
const FIFO: usize = 16;
/// Line status: transmitter holding register (with FIFO: the whole FIFO) empty.
const THR_EMPTY: u8 = 0x20;
/// How often the line status is read before bytes are sent anyway: a UART that is stuck must not hang the guest.
const PATIENCE: u32 = 100_000;

/// Sets the UART to 115200 8N1 with FIFO, interrupts off.
pub(crate) fn init() {
    for (register, value) in [(1, 0x00), (3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0x07), (4, 0x03)] {
        outb(UART_PORT + register, value);
    }
}

/// Sends bytes, in bursts that fit into the FIFO: one status read each keeps the number of exits low.
pub fn write(bytes: &[u8]) {
    for burst in bytes.chunks(FIFO) {
        let _ = (0..PATIENCE).find(|_| inb(UART_PORT + 5) & THR_EMPTY != 0);
        for &byte in burst {
            outb(UART_PORT, byte);
        }
    }
}

/// Collects formatted text, so that pieces of it do not cost a burst each.
struct Buffer {
    bytes: [u8; 128],
    len: usize,
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() {
                write(&self.bytes);
                self.len = 0;
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// Prints formatted text.
pub fn print(text: fmt::Arguments<'_>) {
    let mut buffer = Buffer {
        bytes: [0; 128],
        len: 0,
    };
    let _ = buffer.write_fmt(text);
    write(&buffer.bytes[..buffer.len]);
}

/// Prints a line on the serial console.
#[macro_export]
macro_rules! println {
    ($($part:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($part)*))) };
}
