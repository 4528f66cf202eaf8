//! A guest's drivers with arbitrary rings, descriptors and requests, and arbitrary answers from outside: a broken ring stops
//! its device and nothing else, no call has more than a bounded number of effects, every state can be saved and taken back.
#![no_main]

use ftvm_fuzz::{Board, Script};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let mut board = Board::default();
    board.bring_up();
    while !script.is_over() {
        match script.u8() % 16 {
            0..=9 => board.drive(&mut script),
            10..=12 => board.receive(&mut script),
            13 => board.go_through_a_save(),
            14 => board.bring_up(),
            _ => board.look(),
        }
    }
    board.go_through_a_save();
});
