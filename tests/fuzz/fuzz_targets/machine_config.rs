//! A machine's configuration from a log's header or a peer: refused with the reason, or a platform that can be built, and
//! whose state is its own.
#![no_main]

use ftvm_fuzz::Board;
use ftvm_machine::config::MachineConfig;
use ftvm_schema::record;
use libfuzzer_sys::fuzz_target;

/// Longer ones are refused before they are decoded, by the frame that they come in.
const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = record::from_bytes::<MachineConfig>(data, LIMIT) else {
        return;
    };
    if config.validate().is_err() {
        return;
    }
    if let Some(mut board) = Board::new(&config.platform) {
        board.bring_up();
        board.pass(1_000_000_000);
        board.go_through_a_save();
        board.look();
    }
    let bytes = record::to_bytes(&config).expect("what was read can be written");
    assert_eq!(record::from_bytes::<MachineConfig>(&bytes, LIMIT), Ok(config));
});
