//! Decides from evidence whether the other side is alive.
//!
//! [`detector`] is a pure function of what was seen and when; [`heartbeat`] is the UDP shell beside the logging
//! channel. The crate knows nothing of the log: marks are numbers, positions are pairs, generations and ids are plain
//! integers.

pub mod detector;
pub mod heartbeat;
