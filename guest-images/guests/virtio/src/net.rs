//! The network device (virtio 1.2, 5.1): plain Ethernet frames, no offloads.

use guest_rt::memory::FreeMemory;

use crate::device::{Device, DeviceError};
use crate::dma::Dma;
use crate::pci::Function;
use crate::queue::{Buffer, Interrupts, Queue};

const FEATURE_MAC: u64 = 1 << 5;
/// Buffers in each direction.
const BUFFERS: u16 = 256;
/// Bytes of a buffer: header and frame, rounded so that no buffer crosses a page.
const BUFFER_SIZE: usize = 2048;
/// Bytes of the header in front of each frame; without offloads it is zero but for `num_buffers`.
const HEADER_SIZE: usize = 12;
/// Longest frame: Ethernet header and 1500 bytes.
pub const MAX_FRAME: usize = 1514;

/// Frames that come in.
#[derive(Debug)]
pub struct Receiver {
    queue: Queue,
    buffers: Dma,
    /// Which buffer is with which descriptor.
    buffer_of: [u16; BUFFERS as usize],
}

/// Frames that go out.
#[derive(Debug)]
pub struct Transmitter {
    queue: Queue,
    buffers: Dma,
    buffer_of: [u16; BUFFERS as usize],
    /// Buffers that are not with the device.
    free: [u16; BUFFERS as usize],
    free_len: usize,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    pub receiver: Receiver,
    pub transmitter: Transmitter,
    mac: [u8; 6],
}

fn buffer_offset(buffer: u16) -> usize {
    usize::from(buffer) * BUFFER_SIZE
}

impl Net {
    /// Starts a device; interrupts are not asked for yet.
    ///
    /// # Errors
    /// The device is no usable one, or memory has run out.
    pub fn open(function: Function, memory: &mut FreeMemory) -> Result<Self, DeviceError> {
        let device = Device::open(function, 0, FEATURE_MAC)?;
        let mac = core::array::from_fn(|at| device.config.read8(at));
        let buffers = |queue: &Queue, memory: &mut FreeMemory| {
            Dma::new(memory, usize::from(queue.size()) * BUFFER_SIZE).ok_or(DeviceError::Memory)
        };
        let queue = device.queue(0, BUFFERS, memory)?;
        let mut receiver = Receiver {
            buffers: buffers(&queue, memory)?,
            queue,
            buffer_of: [0; _],
        };
        let queue = device.queue(1, BUFFERS, memory)?;
        let mut transmitter = Transmitter {
            buffers: buffers(&queue, memory)?,
            free: core::array::from_fn(|at| u16::try_from(at).unwrap_or(0)),
            free_len: usize::from(queue.size()),
            buffer_of: [0; _],
            queue,
        };
        transmitter.queue.set_interrupts(Interrupts::Unwanted);
        receiver.queue.set_interrupts(Interrupts::Unwanted);
        device.start()?;
        (0..receiver.queue.size()).for_each(|buffer| receiver.offer(buffer));
        receiver.queue.notify(1);
        Ok(Self {
            receiver,
            transmitter,
            mac,
        })
    }

    /// The device's MAC address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Tells the device of what has been given to it: one access for any number of frames.
    pub fn notify(&mut self) {
        self.transmitter.queue.notify(1);
        // The device still has three quarters of its buffers when it is told of the others.
        self.receiver.queue.notify(self.receiver.queue.size() / 4);
    }

    /// Asks for an interrupt on the next frame, or on the next free transmit buffer if there is none. `false` if there is
    /// something to do already, so that one must not wait.
    pub fn prepare_to_wait(&mut self) -> bool {
        self.receiver.queue.set_interrupts(Interrupts::Wanted);
        let full = self.transmitter.free_len == 0;
        if full {
            self.transmitter.queue.set_interrupts(Interrupts::Wanted);
        }
        let work = self.receiver.queue.has_used() || full && self.transmitter.queue.has_used();
        !work
    }

    /// The wait is over: no interrupts are needed until the next.
    pub fn resume(&mut self) {
        self.receiver.queue.set_interrupts(Interrupts::Unwanted);
        self.transmitter.queue.set_interrupts(Interrupts::Unwanted);
    }
}

impl Receiver {
    fn offer(&mut self, buffer: u16) {
        let address = self.buffers.address(buffer_offset(buffer));
        let head = self.queue.add(&[Buffer::In {
            address,
            len: u32::try_from(HEADER_SIZE + MAX_FRAME).unwrap_or(0),
        }]);
        self.buffer_of[usize::from(head)] = buffer;
    }

    /// Whether a frame is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.has_used()
    }

    /// Lets `read` have the next frame, and gives its buffer back to the device. An empty frame stands for none.
    pub fn receive<R>(&mut self, read: impl FnOnce(&[u8]) -> R) -> R {
        let Some(used) = self.queue.pop() else {
            return read(&[]);
        };
        let buffer = self.buffer_of[usize::from(used.head)];
        let len = usize::try_from(used.len)
            .unwrap_or(usize::MAX)
            .clamp(HEADER_SIZE, HEADER_SIZE + MAX_FRAME);
        let result = read(
            self.buffers
                .bytes(buffer_offset(buffer) + HEADER_SIZE, len - HEADER_SIZE),
        );
        self.offer(buffer);
        result
    }
}

impl Transmitter {
    /// Whether a frame can be sent now.
    pub fn is_ready(&mut self) -> bool {
        while let Some(used) = self.queue.pop() {
            self.free[self.free_len] = self.buffer_of[usize::from(used.head)];
            self.free_len += 1;
        }
        self.free_len > 0
    }

    /// Lets `write` fill a frame of `len` bytes, at most [`MAX_FRAME`], and gives it to the device. Call after `is_ready`.
    pub fn transmit<R>(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(
            len <= MAX_FRAME && self.free_len > 0,
            "a frame of {len} bytes, {} free buffers",
            self.free_len
        );
        self.free_len -= 1;
        let buffer = self.free[self.free_len];
        let offset = buffer_offset(buffer);
        self.buffers.bytes_mut(offset, HEADER_SIZE).fill(0);
        let result = write(self.buffers.bytes_mut(offset + HEADER_SIZE, len));
        let address = self.buffers.address(offset);
        let len = u32::try_from(HEADER_SIZE + len).unwrap_or(0);
        let head = self.queue.add(&[Buffer::Out { address, len }]);
        self.buffer_of[usize::from(head)] = buffer;
        result
    }
}
