//! A Linux kernel, as bzImage or vmlinux: refused with the reason, or expanded, rewritten and loaded into RAM.
#![no_main]

use ftvm_machine::boot::linux::{Linux, is_linux};
use ftvm_machine::config::GuestKind;
use ftvm_machine::machine::allocate_memory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = is_linux(data);
    let Ok(linux) = Linux::parse(data) else {
        return;
    };
    let _ = linux.banner();
    let config = ftvm_machine::testing::config(GuestKind::Linux);
    let memory = allocate_memory(config.memory).expect("RAM for a test");
    let _ = linux.load(Some(b"070701"), &config, &memory);
});
