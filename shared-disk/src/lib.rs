//! Disks that both hosts can reach, and who may use them.
//!
//! [`ftvm_schema::request`] says what a guest asks of a disk. [`plan`] decides in which order requests may touch it,
//! [`image`] does the I/O, and [`arbiter`] is the atomic test-and-set that lets at most one side go on alone (PROTOCOL
//! 8, 10, 11). [`scsi`] sends the commands that only a SCSI device can carry out: its compare-and-write, and the
//! reservations that keep a dead host's writes out (PROTOCOL 14). Of *private* disks, where each host has an image of
//! its own, [`mirror`] knows what a joining backup lacks, and [`mark`] which host's copy is the newest.
//!
//! Apart from disk requests the crate knows nothing of the guest or of the log: generations and incarnations are plain
//! numbers here.
#![deny(unsafe_code)]

mod aligned;
pub mod arbiter;
pub mod image;
pub mod mark;
pub mod mirror;
pub mod plan;
pub mod scsi;
mod syscall;
mod textfile;

/// What parses bytes from outside and is private otherwise, with what must hold for any bytes.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::arbiter::{fuzz_etcd_answer, fuzz_generation_record, fuzz_lun_cell};
    pub use crate::mark::fuzz as fuzz_disk_mark;
    pub use crate::scsi::{fuzz_answer, fuzz_reply};
}

/// Every offset and length of a disk is a multiple of it, and the kernel counts block devices in it
/// (`/sys/dev/block/…/size`).
pub(crate) use ftvm_schema::request::SECTOR;

/// [`SECTOR`], for lengths in memory.
#[allow(clippy::cast_possible_truncation, reason = "512")]
pub(crate) const SECTOR_LEN: usize = SECTOR as usize;
