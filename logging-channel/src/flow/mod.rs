//! The flow of the log, as pure functions of what arrives and what time it is.
//!
//! - [`Horizon`]: how far a log reaches, on either side and in files.
//! - [`Inbox`]: the backup's side; what it holds and what it may ack.
//! - [`AckTracker`]: the primary's side; what is acked, how long it took, how far behind the backup executes.
//! - [`Pace`]: how much the primary slows down for a backup that executes too slowly.
//! - [`Lease`], [`LeaseWait`]: until when the primary may release, and from when the backup may go live.
//!
//! Times are nanoseconds of the caller's own CLOCK_BOOTTIME, never compared across hosts: an echo brings a time back to
//! the clock it came from.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

mod acks;
mod horizon;
mod inbox;
mod lease;
mod pace;
#[cfg(test)]
mod tests;

pub use acks::{AckError, AckTracker};
pub use horizon::{Horizon, OrderError};
pub use inbox::{Discarded, Inbox, InboxError};
pub use lease::{Lease, LeaseError, LeaseWait};
pub use pace::Pace;
