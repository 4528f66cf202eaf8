//! What a machine can be doing: recording, replaying, leading a pair, following one.
//!
//! The protocol decisions ([`primary`], [`backup`]) are pure functions of time, messages and answers; the [`link`]s carry
//! them out over a world that is production's or the simulator's; the loops around a machine ([`live`], [`replay`]) run on
//! the thread that owns it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
#![forbid(unsafe_code)]

pub mod backup;
pub mod clock;
pub mod clone;
pub mod copies;
pub mod disks;
pub mod event;
pub mod exit_code;
pub mod following;
pub mod host_event;
pub mod link;
pub mod live;
#[cfg(test)]
mod mirror_tests;
pub mod operation;
pub mod patience;
pub mod primary;
pub mod replay;
pub mod terms;
