//! An initrd: cpio archives one behind the other, plain or compressed, with kernel modules in them. Searched to its end, or
//! what could not be searched is said.
#![no_main]

use ftvm_machine::audit::modules::uncaught;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = uncaught(data);
});
