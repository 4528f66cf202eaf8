//! The symbol table in a kernel's read-only data, which has no header and is found by what it looks like; and the rewriting
//! that believes it.
#![no_main]

use ftvm_fuzz::Tape;
use ftvm_machine::boot::linux::rewrite::{kallsyms::Symbols, rewrite};
use ftvm_machine::boot::linux::vmlinux::{Layout, Section, Segment};
use libfuzzer_sys::fuzz_target;

/// Where kernels are linked to.
const BASE: u64 = 0xffff_ffff_8100_0000;

fuzz_target!(|data: &[u8]| {
    let mut tape = Tape::new(data);
    let code = usize::from(tape.u16()).min(data.len());
    let section = |name: &str, file: std::ops::Range<usize>, executable| Section {
        name: name.to_owned(),
        virt: BASE + file.start as u64,
        file,
        executable,
    };
    let layout = Layout {
        entry: 0x100_0000,
        segments: vec![Segment {
            file: 0..data.len(),
            virt: BASE,
            phys: 0x100_0000,
            memory: data.len() as u64,
        }],
        sections: vec![
            section(".text", 0..code, true),
            section(".rodata", code..data.len(), false),
        ],
    };
    let mut image = data.to_vec();
    if let Some(symbols) = Symbols::find(&image, &layout) {
        let _ = (
            symbols.at(BASE),
            symbols.describe(u64::MAX),
            symbols.next_above(0),
            symbols.address("_text"),
        );
    }
    if rewrite(&mut image, &layout).is_err() {
        assert!(image.len() == data.len(), "an image keeps its length");
    }
});
