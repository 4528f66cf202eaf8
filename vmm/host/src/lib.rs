//! The outside world: network, consoles, disks, host entropy, and the timer that ends this process with its lease.
//!
//! Thin shells around file descriptors and threads. Nothing here decides anything about the protocol: what the guest
//! says arrives through the output queue, already released; what the world says leaves as a [`HostEvent`] through one
//! bounded [`queue`], which the vCPU thread reads only at numbered exits (DESIGN, "Rules that keep it correct").
//! Whatever cannot be delivered here is dropped the way a cable or a disconnected terminal would drop it, and counted.

// The two places that need it, a TAP's ioctls and a timer that may move between threads, allow it for themselves.
#![deny(unsafe_code)]

use std::time::Duration;

use nix::poll::PollTimeout;

pub mod console;
pub mod disk;
pub mod disk_marks;
pub mod entropy;
pub mod health;
pub mod lease_guard;
pub mod net;
pub mod option;
pub mod queue;
pub mod reads;
pub mod reservations;
pub mod stdio;
pub mod unix_path;
pub mod vcpu;

/// What became of something that was to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The system call took all of it.
    Done,
    /// It (or a part of it) was lost as on an unplugged cable; nobody was there, or nobody listened in time.
    Dropped,
}

/// A timeout for poll(2) that does not end before `left` has: whole milliseconds, rounded up.
#[must_use]
pub fn poll_timeout(left: Duration) -> PollTimeout {
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds)
        .ok()
        .and_then(|ms| PollTimeout::try_from(ms).ok())
        .unwrap_or(PollTimeout::MAX)
}
