//! A datagram that anybody may send: a heartbeat or an error, and a heartbeat has one encoding.
#![no_main]

use ftvm_fuzz::{Tape, sealed};
use libfuzzer_sys::fuzz_target;
use logging_channel::codec::{FrameEncoder, decode_heartbeat};

fuzz_target!(|data: &[u8]| {
    let _ = decode_heartbeat(data);
    let mut tape = Tape::new(data);
    let (kind, generation) = (tape.pick(&[0x31, 0x31, 0x31, 0x07]), tape.u64());
    if let Ok(heartbeat) = decode_heartbeat(&sealed(kind, generation, tape.rest())) {
        let again = FrameEncoder::new().heartbeat(&heartbeat).map(decode_heartbeat);
        assert_eq!(again.expect("what was received can be sent"), Ok(heartbeat));
    }
});
