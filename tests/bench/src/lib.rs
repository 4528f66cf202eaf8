//! Benchmarks: what an exit costs more when it is recorded, what a tick costs in log, what the output rule costs in time,
//! what protection costs Linux under several loads, and how long a busy guest stands still to get a backup.
//!
//! What is compared is run in turns, in one process and on one host, so that a host that gets slower does so for all;
//! medians are given, and the 99th percentile where single events are timed. Nothing here is a test: figures of a loaded
//! or emulated host say little about another one.

#![forbid(unsafe_code)]

pub mod clone;
pub mod commit;
pub mod exits;
pub mod life;
pub mod loads;
pub mod log;
pub mod stats;

/// One line of a result: what, how much, and in which unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Name in JSON.
    pub name: String,
    /// The value.
    pub value: f64,
    /// Its unit, for people.
    pub unit: &'static str,
    /// What it is, for people.
    pub about: String,
}

impl Figure {
    /// A figure.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, about: impl Into<String>) -> Self {
        Figure {
            name: name.into(),
            value,
            unit,
            about: about.into(),
        }
    }
}
