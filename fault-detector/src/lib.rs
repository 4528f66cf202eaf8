//! Decides from evidence whether the other side of a pair is alive (PROTOCOL 15 and 16; paper section 2.3).
//!
//! [`detector`] is a pure function of what was seen and when. It does no I/O, reads no clock and knows nothing of the
//! log's content: a mark is a number here, and a position a pair of numbers. Heartbeat datagrams are encoded, sent and
//! received by vmm, which only tells the detector that one has arrived.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
#![forbid(unsafe_code)]

pub mod detector;
