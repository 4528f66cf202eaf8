//! A generation's file on a shared directory that others can write to: what is read is written again in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    shared_disk::fuzzing::fuzz_generation_record(data);
});
