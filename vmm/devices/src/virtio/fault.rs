//! What a driver can do wrong with its rings. The device then stops and says DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2).

use serde::{Deserialize, Serialize};

/// The first thing found wrong; the same on every replay, because it depends on guest memory and accesses alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum QueueFault {
    /// Size, alignment or place of a queue that the driver enabled.
    #[error("the queue at {desc:#x}, {avail:#x}, {used:#x} with {size} entries is misplaced or of a wrong size")]
    Queue {
        size: u16,
        desc: u64,
        avail: u64,
        used: u64,
    },
    /// More chains available than the queue has entries.
    #[error("the available index is more than {size} ahead")]
    AvailableIndex { size: u16 },
    /// The available or used ring cannot be accessed.
    #[error("the rings cannot be accessed")]
    Rings,
    /// A chain names a descriptor that does not exist.
    #[error("descriptor {index} of {size}")]
    DescriptorIndex { index: u16, size: u16 },
    /// A chain has more descriptors than the queue, so it is a loop.
    #[error("a descriptor chain is longer than the queue's {size} entries")]
    Loop { size: u16 },
    /// An indirect descriptor, which was not negotiated.
    #[error("indirect descriptors are not negotiated")]
    Indirect,
    /// A descriptor without bytes.
    #[error("descriptor {index} has no length")]
    Empty { index: u16 },
    /// A buffer that is not in RAM.
    #[error("the buffer of {len} bytes at {addr:#x} is not in memory")]
    OutsideMemory { addr: u64, len: u32 },
    /// A readable descriptor behind a writable one (virtio 1.2, 2.7.4.2).
    #[error("descriptor {index} is readable, but follows a writable one")]
    Order { index: u16 },
    /// A chain of more than 4 GiB (virtio 1.2, 2.7.5.2), or of more than the device's bound.
    #[error("a descriptor chain has more than {max} bytes")]
    TooLong { max: u32 },
    /// A chain without the header, the status byte or the room its kind of request must have.
    #[error("a request of {readable} readable and {writable} writable bytes is too short")]
    TooShort { readable: u32, writable: u32 },
}
