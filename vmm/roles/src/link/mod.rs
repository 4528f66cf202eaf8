//! Both sides of a pair as step functions over one [`World`](world::World): what is done, and in which order, when
//! something happens to the link, the guest, the disks, the storage or the clock.
//!
//! The cores ([`super::primary`], [`super::backup`]) decide; the links carry out what they decide. Neither has a clock, a
//! socket or a thread: a shell brings what happens, one event at a time, and lends its world for as long as a step takes.
//! There are two shells: tokio and the host's devices in production, and the simulator, so what the simulator has tried is
//! the order that runs.

mod acting;
pub mod backup;
pub mod begin;
pub mod ending;
pub mod guest;
pub mod primary;
mod releasing;
#[cfg(test)]
mod tests;
pub mod world;

/// Events of a link that one turn takes at most: what they have in common is done once, such as an ack.
pub const AT_ONCE: usize = 64;
