//! Bytes: what a message, a log entry or a record looks like on the wire and on disk.
//!
//! Small messages are records (`ftvm_schema::record`). Bulk and the hot path, that is log entries and chunks, are
//! written by hand in `entries`, because there a byte counts: positions, clocks and send times are differences to the
//! one before, within a frame. Everything travels in frames with a fixed header and CRC-32C, and every byte read here
//! is hostile until it has been decoded: lengths are checked before anything is allocated for them. `golden.txt` pins
//! the bytes, so that a change of the format fails a test rather than a customer's log.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod bytes;
mod decoder;
mod encoder;
mod entries;
mod frame;
#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) mod samples;

pub use bytes::Malformed;
pub use decoder::{DecodedFrame, FrameDecoder, READ_CHUNK, RawFrame, decode_heartbeat};
pub use encoder::{EncodeError, FrameEncoder, LogBatch};
pub use entries::data_bytes;
pub use entries::{MAX_DATA_BYTES, MAX_ENTRIES};
pub use frame::{FRAME_VERSION, FrameError, FrameFault, FrameKind, HEADER_BYTES, MAX_PAYLOAD};
