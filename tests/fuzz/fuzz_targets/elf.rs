//! A bare-metal guest's image: refused with the reason, or loaded into RAM and nowhere else.
#![no_main]

use std::io::Write as _;

use ftvm_machine::boot::Kernel;
use ftvm_machine::config::GuestKind;
use ftvm_machine::machine::allocate_memory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // Images come by path; /dev/shm is memory.
    let path = format!("/dev/shm/ftvm-fuzz-elf-{}", std::process::id());
    let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(data));
    written.expect("a small file in memory");
    if let Ok(kernel) = Kernel::open(&path, None, &[]) {
        let config = ftvm_machine::testing::config(GuestKind::BareMetal);
        let memory = allocate_memory(config.memory).expect("RAM for a test");
        let _ = kernel.load(&config, &memory);
    }
    let _ = std::fs::remove_file(path);
});
