//! A guest's drivers with arbitrary rings, descriptors and requests, and arbitrary answers from outside: a broken ring stops
//! its device and nothing else, no call has more than a bounded number of effects, every state can be saved and taken back.
#![no_main]

use ftvm_fuzz::{Board, Tape};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut tape = Tape::new(data);
    let mut board = Board::running();
    while !tape.is_over() {
        match tape.u8() % 16 {
            0..=9 => board.drive(&mut tape),
            10..=12 => board.receive(&mut tape),
            13 => board.go_through_a_save(),
            14 => board.bring_up(),
            _ => board.look(),
        }
    }
    board.go_through_a_save();
});
