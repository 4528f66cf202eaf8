//! A block of the SCSI device that holds a guest's generation: empty, a cell, or an error; also behind a good checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    shared_disk::fuzzing::fuzz_lun_cell(data);
    let mut block = data.to_vec();
    block.resize(512, 0);
    let crc = crc32c::crc32c(&block[..508]);
    block[508..].copy_from_slice(&crc.to_le_bytes());
    shared_disk::fuzzing::fuzz_lun_cell(&block);
});
