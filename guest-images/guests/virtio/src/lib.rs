//! Drivers for virtio network and block devices behind PCI (virtio 1.2), for bare-metal guests.
//!
//! Modern devices with split rings, interrupts by INTx, no event index: the least that performs well on a machine where
//! each access to a device is an exit. A driver makes one such access for a batch of buffers (the notification), one for
//! an interrupt (the ISR, which lowers the line), and none where the device's flags say that it needs none.

#![no_std]

extern crate alloc;

pub mod block;
mod device;
mod dma;
pub mod net;
pub mod offence;
pub mod pci;
mod queue;

pub use device::DeviceError;
