//! A program or module that `ftvm audit` decodes: any file at all.
#![no_main]

use ftvm_machine::audit::scan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = scan::elf("fuzz", data, None);
});
