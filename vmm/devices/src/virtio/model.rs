//! What a device model is to the transport.

use super::fault::QueueFault;
use super::queue::VirtQueue;
use crate::env::DeviceEnv;
use crate::error::BadState;

/// Bytes of device configuration that any model has.
pub(crate) const CONFIG_SIZE: usize = 64;

/// What a call to a model left behind: the queue whose used ring grew, if any. At most one grows per call.
pub(crate) type Served = Result<Option<usize>, QueueFault>;

/// One kind of virtio device, without its transport.
pub(crate) trait Model {
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
    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served;

    /// The driver resets the device. What is under way outside goes on, but reaches guest memory no more.
    fn reset(&mut self);

    /// Refuses a state of another device than the one `built` from the configuration, or one that no history leads to.
    fn check(&self, built: &Self) -> Result<(), BadState>;
}
