//! The stream between two hosts, in pieces as TCP hands them out: frames with good checksums around arbitrary payloads, and
//! arbitrary bytes between them. What decodes encodes again; after an error the decoder stays failed.
#![no_main]

use ftvm_fuzz::{Tape, sealed};
use libfuzzer_sys::fuzz_target;
use logging_channel::codec::{FrameDecoder, FrameEncoder};

fuzz_target!(|data: &[u8]| {
    let mut tape = Tape::new(data);
    let piece = 1 + usize::from(tape.u8());
    let mut stream = Vec::new();
    while !tape.is_over() {
        let (kind, len) = (tape.u8(), usize::from(tape.u16() % 4096));
        match kind {
            0xFF => stream.extend(tape.bytes(len)),
            kind => stream.extend(sealed(kind, 7, tape.bytes(len))),
        }
    }
    let mut decoder = FrameDecoder::new();
    for bytes in stream.chunks(piece) {
        let mut outcome = decoder.push(bytes);
        while outcome.is_ok() {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let mut encoder = FrameEncoder::new();
                    encoder
                        .message(frame.generation, &frame.message)
                        .expect("what was received can be sent");
                }
                Ok(None) => break,
                Err(error) => outcome = Err(error),
            }
        }
        if let Err(error) = outcome {
            assert_eq!(
                decoder.next_frame(),
                Err(error.clone()),
                "a failed decoder stays failed"
            );
            assert_eq!(decoder.push(b"FT"), Err(error));
            return;
        }
    }
    let _ = decoder.finish();
});
