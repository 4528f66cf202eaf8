//! A line that somebody writes to the control socket: a request that is written again in the same way, or an error.
#![no_main]

use ftvm_roles::operation::ControlRequest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<ControlRequest>(data) {
        let line = serde_json::to_vec(&request).expect("a request has a text");
        assert_eq!(serde_json::from_slice::<ControlRequest>(&line).ok(), Some(request));
    }
});
