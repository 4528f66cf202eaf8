//! What travels between a primary and its backup.
//!
//! - [`entry`]: the log's schema (inputs, positions, marks).
//! - [`message`]: what the two sides say to each other.

pub mod entry;
pub mod message;
