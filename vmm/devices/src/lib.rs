//! The guest's devices: pure state machines, `(&mut state, access or input) -> effects`.
//!
//! No clock, file descriptor, thread or randomness in here; time is [`DeviceEnv::now`], which the machine took from the
//! log or has just logged. What a device wants from outside leaves as an [`Effect`]; what comes back arrives as an
//! [`Input`](ftvm_schema::entry::Input) at a numbered exit.
//!
//! [`Chipset`] is the whole platform and the only thing the machine talks to. A device's struct is its state, so saving
//! is cloning; all of them keep one contract, which `testing::contract` states and checks. Guest memory and what comes
//! from outside are hostile: bounds are named constants, and a broken ring stops its device ([`QueueFault`]), nothing
//! else.

#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod chipset;
mod config;
mod env;
mod error;
#[cfg(test)]
mod golden_errors;
mod i8042;
mod pci;
mod pic;
mod pit;
mod pm_timer;
mod power;
mod rtc;
#[cfg(test)]
pub(crate) mod testing;
mod timebase;
mod uart;
mod virtio;

pub use chipset::{Access, AccessDirection, Chipset, ChipsetState, RestoreError};
pub use config::{ConfigError, DiskAccess, DiskConfig, DiskSharing, NicConfig, PlatformConfig};
pub use env::{DeviceEnv, Effect};
pub use error::{ApplyError, BadState};
pub use virtio::{MAX_OUTSTANDING, MAX_OUTSTANDING_DATA, QueueFault};
