//! What users and tapes write behind options: a value or a sentence, for any text.
#![no_main]

use std::collections::BTreeSet;

use ftvm_host::console::ConsoleTarget;
use ftvm_host::option::{DiskOption, MemorySize, NetOption};
use ftvm_machine::boot::linux::cmdline;
use libfuzzer_sys::fuzz_target;
use shared_disk::arbiter::{Endpoint, SharedStorage};

fuzz_target!(|text: &str| {
    let _ = text.parse::<ConsoleTarget>();
    let _ = text.parse::<Endpoint>();
    let _ = (
        text.parse::<MemorySize>(),
        text.parse::<NetOption>(),
        text.parse::<DiskOption>(),
    );
    if let Ok(storage) = text.parse::<SharedStorage>() {
        assert_eq!(storage.to_string().parse(), Ok(storage), "a storage's name names it");
    }
    let _ = cmdline::complete(text, &BTreeSet::from(["module".to_owned()]));
});
