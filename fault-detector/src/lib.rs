//! Decides from evidence whether the other side is alive.
//!
//! [`detector`] is a pure function of what was seen and when. The crate knows nothing of the log: marks are numbers,
//! positions are pairs. The datagrams themselves are sent and heard in vmm (`run::heartbeat`), where their codec is.

#![forbid(unsafe_code)]

pub mod detector;
