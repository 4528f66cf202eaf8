//! A guest that writes and reads PCI configuration space and the windows it opens, at any width and alignment.
#![no_main]

use ftvm_devices::AccessDirection;
use ftvm_fuzz::{Board, Tape};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut tape = Tape::new(data);
    let mut board = Board::default();
    while !tape.is_over() {
        let direction = tape.pick(&[AccessDirection::Read, AccessDirection::Write]);
        let (kind, width) = (tape.u8() % 4, tape.pick(&[1, 2, 4, 8]));
        let mut value = tape.u64().to_le_bytes();
        match kind {
            0 | 1 => {
                let (slot, register) = (tape.u8() % 8, tape.u8());
                board.configure(slot, register, direction, &mut value[..width.min(4)]);
            }
            2 => {
                let address = 0xE000_0000 + u64::from(tape.u16()) % 0x2_0000;
                board.mmio(address, direction, &mut value[..width]);
            }
            _ => board.mmio(tape.u64(), direction, &mut value[..width]),
        }
        board.look();
    }
    board.go_through_a_save();
});
