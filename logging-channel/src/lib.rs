//! What travels between a primary and its backup.
//!
//! - [`entry`]: the log's schema (inputs, positions, marks).
//! - [`message`]: what the two sides say to each other.
//! - [`codec`]: frames and bytes.

pub mod chunk;
pub mod codec;
pub mod entry;
pub mod file;
pub mod flow;
pub mod message;
