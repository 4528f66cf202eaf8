//! Virtio devices behind the modern PCI transport (virtio 1.2, 4.1): network, block, console, entropy.
//!
//! A device model knows its queues and its configuration ([`Model`](model::Model)); the transport ([`VirtioPci`]) knows
//! registers, feature negotiation, interrupts and resets, and is the same for all. Rings are hostile input: a driver
//! that breaks them finds DEVICE_NEEDS_RESET, and nothing else happens. Guest memory is read and written only within an
//! access or an input, that is at a numbered exit, and a request that takes time holds checked segments, not ring
//! positions.
//!
//! Sectors, lengths, addresses and offsets are the guest's, so no sum or product of them may overflow: in the models
//! and the transport arithmetic that could is a lint's error, and each operation says what happens at the edge.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub(super) mod block;
mod chain;
pub(super) mod console;
mod fault;
mod function;
mod model;
pub(super) mod net;
mod queue;
pub(super) mod rng;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transport;

pub use block::{MAX_OUTSTANDING, MAX_OUTSTANDING_DATA};
pub use fault::QueueFault;
pub(super) use function::{BAR_SIZE, PciFunction, VirtioPci};
pub(super) use model::Model;
