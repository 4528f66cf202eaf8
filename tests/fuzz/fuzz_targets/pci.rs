//! A guest that writes and reads PCI configuration space and the windows it opens, at any width and alignment.
#![no_main]

use ftvm_devices::Direction;
use ftvm_fuzz::{Board, Script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let mut board = Board::default();
    while !script.is_over() {
        let direction = script.pick(&[Direction::Read, Direction::Write]);
        let (kind, width) = (script.u8() % 4, script.pick(&[1, 2, 4, 8]));
        let mut value = script.u64().to_le_bytes();
        match kind {
            0 | 1 => {
                let (slot, register) = (script.u8() % 8, script.u8());
                board.configure(slot, register, direction, &mut value[..width.min(4)]);
            }
            2 => {
                let address = 0xE000_0000 + u64::from(script.u16()) % 0x2_0000;
                board.mmio(address, direction, &mut value[..width]);
            }
            _ => board.mmio(script.u64(), direction, &mut value[..width]),
        }
        board.look();
    }
    board.go_through_a_save();
});
