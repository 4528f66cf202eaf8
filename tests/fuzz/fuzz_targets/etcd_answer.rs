//! An answer from whoever listens where etcd should: understood, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    shared_disk::fuzzing::fuzz_etcd_answer(data);
});
