//! Virtio devices behind the modern PCI transport (virtio 1.2, 4.1): network, block, console, entropy.
//!
//! A device model knows its queues and its configuration ([`Model`]); the transport ([`VirtioPci`]) knows registers,
//! feature negotiation, interrupts and resets, and is the same for all. Rings are hostile input: a driver that breaks
//! them finds DEVICE_NEEDS_RESET, and nothing else happens. Guest memory is read and written only within an access or
//! an input, that is at a numbered exit, and a request that takes time holds checked segments, not ring positions.
//!
//! Sectors, lengths, addresses and offsets are the guest's, so no sum or product of them may overflow: in the models and
//! the transport arithmetic that could is a lint's error, and each operation says what happens at the edge.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub(super) mod block;
mod chain;
pub(super) mod console;
mod fault;
mod function;
pub(super) mod net;
mod queue;
pub(super) mod rng;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transport;

pub use block::{MAX_OUTSTANDING, MAX_OUTSTANDING_DATA};
pub(super) use chain::{Buffer, Chain};
pub use fault::Fault;
pub(super) use function::{BAR_SIZE, PciFunction, VirtioPci};
pub(super) use queue::VirtQueue;

use super::Env;
use super::chipset::BadState;

/// Bytes of device configuration that any model has.
pub(super) const CONFIG_SIZE: usize = 64;

/// What a call to a model left behind: the queue whose used ring grew, if any. At most one grows per call.
pub(super) type Served = Result<Option<usize>, Fault>;

/// One kind of virtio device, without its transport.
pub(super) trait Model {
    /// Virtio device type (virtio 1.2, 5).
    const TYPE: u16;
    /// PCI class code, 24 bits.
    const CLASS: u32;
    /// Sizes of its queues, powers of two.
    const QUEUE_SIZES: &'static [u16];

    /// Feature bits it offers besides VIRTIO_F_VERSION_1.
    fn features(&self) -> u64;

    /// Its configuration space.
    fn config(&self) -> [u8; CONFIG_SIZE];

    /// The driver says there is something in queue `index`, which is enabled.
    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], env: &mut Env<'_>) -> Served;

    /// The driver resets the device. What is under way outside goes on, but reaches guest memory no more.
    fn reset(&mut self);

    /// Refuses a state of another device than the one `built` from the configuration, or one that no history leads to.
    fn check(&self, built: &Self) -> Result<(), BadState>;
}
