//! Compressed streams of every kind that kernels and initrds come in: an error, or at most as many bytes as are allowed.
#![no_main]

use ftvm_machine::boot::linux::decompress::Compression;
use libfuzzer_sys::fuzz_target;

/// Most bytes of an expansion here.
const LIMIT: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    if let Some(format) = Compression::detect(data)
        && let Ok(expanded) = format.expand(data, LIMIT)
    {
        assert!(expanded.len() as u64 <= LIMIT, "{} bytes", expanded.len());
    }
});
