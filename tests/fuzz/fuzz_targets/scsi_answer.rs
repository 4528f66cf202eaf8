//! A SCSI device's answers, and its status with sense data: understood, or an error that can be said.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    shared_disk::fuzzing::fuzz_answer(data);
    if let [status, low, high, sense @ ..] = data {
        shared_disk::fuzzing::fuzz_reply(*status, u16::from_le_bytes([*low, *high]), sense);
    }
});
