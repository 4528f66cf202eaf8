//! A state record in pieces from a peer: handed out only whole and with the checksum that every piece names, never longer
//! than allowed, and nothing is held that has not arrived.
#![no_main]

use ftvm_fuzz::Tape;
use ftvm_schema::entry::Chunk;
use libfuzzer_sys::fuzz_target;
use logging_channel::chunk::Assembler;

/// Most bytes of a record here.
const CAP: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut tape = Tape::new(data);
    let mut assembler = Assembler::new(CAP);
    let (mut arrived, mut offset) = (0, 0);
    while !tape.is_over() {
        let kind = tape.u8();
        let len = usize::from(tape.u8());
        let bytes = tape.bytes(len).to_vec();
        let total = if kind & 1 == 0 {
            u64::from(kind >> 3)
        } else {
            tape.u64()
        };
        let claimed = if kind & 2 == 0 { offset } else { tape.u64() };
        let crc = if kind & 4 == 0 {
            crc32c::crc32c(&bytes)
        } else {
            tape.u32()
        };
        arrived += bytes.len() as u64;
        let len = bytes.len() as u64;
        offset = match assembler.add(Chunk {
            total,
            offset: claimed,
            crc,
            bytes,
        }) {
            Ok(Some(record)) => {
                assert!(record.len() as u64 <= CAP.min(total) && crc32c::crc32c(&record) == crc);
                0
            }
            Ok(None) => offset + len,
            Err(_) => 0,
        };
        assert!(assembler.held().unwrap_or(0) <= arrived.min(CAP));
    }
});
