//! Disks that both hosts can reach, and who may use them.
//!
//! [`request`] says what a guest asks of a disk, [`plan`] in which order requests may touch it, [`image`] does the I/O,
//! and [`arbiter`] is the atomic test-and-set that lets at most one side go on alone (PROTOCOL 8, 10, 11). The crate
//! knows nothing of the guest or the logging channel: generations and ids are plain numbers here.

pub mod arbiter;
pub mod image;
pub mod plan;
pub mod request;
