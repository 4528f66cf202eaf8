//! A guest that accesses any port in any width, while time passes and input arrives: interrupt controllers, timers, serial
//! port, real-time clock, keyboard controller, PCI.
#![no_main]

use ftvm_devices::AccessDirection;
use ftvm_fuzz::{Board, Tape};
use libfuzzer_sys::fuzz_target;

/// Ports with something behind them; others are tried too.
const PORTS: [u16; 40] = [
    0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xA0, 0xA1, 0xF4, 0x3F8, 0x3F9, 0x3FA,
    0x3FB, 0x3FC, 0x3FD, 0x3FE, 0x3FF, 0x4D0, 0x4D1, 0x604, 0x608, 0x60A, 0x60B, 0xCF8, 0xCF9, 0xCFA, 0xCFB, 0xCFC,
    0xCFD, 0xCFE, 0xCFF, 0xFFFE, 0xFFFF, 0x3F7,
];

fuzz_target!(|data: &[u8]| {
    let mut tape = Tape::new(data);
    let mut board = Board::default();
    while !tape.is_over() {
        match tape.u8() % 16 {
            0..=9 => {
                let port = tape.pick(&PORTS);
                let direction = tape.pick(&[AccessDirection::Read, AccessDirection::Write]);
                let width = tape.pick(&[1, 1, 1, 2, 4]);
                let mut value = if width == 1 { u32::from(tape.u8()) } else { tape.u32() }.to_le_bytes();
                board.port(port, direction, &mut value[..width]);
            }
            10 => board.port(tape.u16(), AccessDirection::Write, &mut tape.u8().to_le_bytes()),
            11 => board.pass(u64::from(tape.u32())),
            12 => board.pass(tape.u64()),
            13 => board.receive(&mut tape),
            14 => board.go_through_a_save(),
            _ => board.reset(),
        }
        board.look();
    }
    board.go_through_a_save();
});
