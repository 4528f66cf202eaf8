//! Disks that both hosts can reach, and who may use them.
//!
//! [`request`] says what a guest asks of a disk, [`plan`] in which order requests may touch it, [`image`] does the I/O,
//! and [`arbiter`] is the atomic test-and-set that lets at most one side go on alone (PROTOCOL 8, 10, 11). [`scsi`] brings
//! what only a device can decide: its compare-and-write, and reservations that keep a dead host's writes out (PROTOCOL 14).
//! Of disks that each host has for itself, [`mirror`] knows what a joining backup lacks, and [`mark`] whose copy is the
//! newest. The crate knows nothing of the guest or the logging channel: generations and ids are plain numbers here.
#![deny(unsafe_code)]

pub mod arbiter;
pub mod image;
pub mod mark;
pub mod mirror;
pub mod plan;
pub mod scsi;
