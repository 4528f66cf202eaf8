//! A log file from anywhere: header, state, log, trailer. It is read to its end or to an error that stays.
#![no_main]

use std::path::Path;

use ftvm_fuzz::{Tape, sealed};
use libfuzzer_sys::fuzz_target;
use logging_channel::file::LogReader;

fn read(bytes: &[u8]) {
    let Ok(mut reader) = LogReader::new(bytes, Path::new("fuzz.ftlog")) else {
        return;
    };
    reader.take_state();
    loop {
        match reader.next_entry() {
            Ok(Some(_)) => {}
            Ok(None) => {
                reader.trailer().expect("a log that ends has a trailer");
                return;
            }
            Err(error) => {
                let again = reader.next_entry().expect_err("an error stays");
                assert_eq!(error.to_string(), again.to_string());
                return;
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut tape = Tape::new(data);
    let mut file = Vec::new();
    while !tape.is_over() {
        let kind = tape.pick(&[0x21, 0x05, 0x07, 0x07, 0x22, 0x08]);
        let len = usize::from(tape.u16() % 4096);
        file.extend(sealed(kind, 0, tape.bytes(len)));
    }
    read(&file);
});
