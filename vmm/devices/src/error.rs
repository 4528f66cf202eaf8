//! What devices refuse: inputs that do not fit their state, and states that no history leads to.

use std::fmt::Display;

/// Why an input cannot be applied: the log, or who feeds it, is wrong. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The environment's time is not the input's.
    #[error("clock input says {input} ns but the environment says {now} ns; they must be the same")]
    ClockDiffers { input: u64, now: u64 },
    /// Time runs forward only (PROTOCOL 20).
    #[error("clock input says {input} ns, earlier than {last} ns handed out before; the log is damaged or misplaced")]
    ClockWentBack { input: u64, last: u64 },
    /// The platform has no such device.
    #[error("the input is for {device} {index}, which this machine does not have; was it started with other devices?")]
    NoSuchDevice { device: &'static str, index: u8 },
    /// The disk has made no such request, or it was completed before.
    #[error("request {id} of disk {disk} is not outstanding, so it cannot complete")]
    NoSuchRequest { disk: u8, id: u64 },
    /// The log leaves the data to whoever has the disk.
    #[error("what request {id} read from disk {disk} is not in the log")]
    WithoutData { disk: u8, id: u64 },
    /// A completion brings other data than the request asked for.
    #[error("request {id} of disk {disk} must bring {expected} bytes, not {found}")]
    DataLength {
        disk: u8,
        id: u64,
        expected: usize,
        found: usize,
    },
}

/// A value that no history of the devices leads to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {expected}, found {found}")]
pub struct BadState {
    what: &'static str,
    expected: &'static str,
    found: String,
}

impl BadState {
    pub(crate) fn new(what: &'static str, expected: &'static str, found: impl Display) -> Self {
        BadState {
            what,
            expected,
            found: found.to_string(),
        }
    }
}
