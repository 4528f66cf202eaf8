//! The mark beside a private disk's image: what is read is written again in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    shared_disk::fuzzing::fuzz_disk_mark(data);
});
