//! The stream between two hosts, in pieces as TCP hands them out: frames with good checksums around arbitrary payloads, and
//! arbitrary bytes between them. What decodes encodes again; after an error the decoder stays failed.
#![no_main]

use ftvm_fuzz::{Script, sealed};
use libfuzzer_sys::fuzz_target;
use logging_channel::codec::{FrameDecoder, FrameEncoder};

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let piece = 1 + usize::from(script.u8());
    let mut stream = Vec::new();
    while !script.is_over() {
        let (kind, len) = (script.u8(), usize::from(script.u16() % 4096));
        match kind {
            0xFF => stream.extend(script.bytes(len)),
            kind => stream.extend(sealed(kind, 7, script.bytes(len))),
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
