//! The words of the log, which every other crate speaks: what an entry is, what a disk request is, who is who, and how
//! a record becomes bytes.
//!
//! Pure and without a runtime: devices and machine need these words and nothing of what carries them.

#![forbid(unsafe_code)]

pub mod entry;
pub mod record;
pub mod request;
