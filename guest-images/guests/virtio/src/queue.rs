//! A split virtqueue (virtio 1.2, 2.7).

use core::sync::atomic::{Ordering, compiler_fence, fence};

use guest_rt::memory::FreeMemory;
use guest_rt::mmio::Mmio;

use crate::dma::Dma;

/// Most descriptors of a queue.
const MAX_SIZE: usize = 256;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// A part of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer {
    /// The device reads it.
    Out { address: u64, len: u32 },
    /// The device writes it.
    In { address: u64, len: u32 },
}

/// Whether the device should interrupt when it has used a buffer. It may do so in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupts {
    Wanted,
    Unwanted,
}

/// A request that the device has done with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// What [`Queue::add`] returned.
    pub(crate) head: u16,
    /// Bytes that the device has written.
    pub(crate) len: u32,
}

/// A queue. What the device can write into is never trusted for addresses: chains are kept in memory of our own.
#[derive(Debug)]
pub(crate) struct Queue {
    index: u16,
    size: u16,
    dma: Dma,
    notify: Mmio,
    /// The next free descriptor, or the next of the same chain.
    next: [u16; MAX_SIZE],
    /// Descriptors of the chain that begins here; 0 if none does.
    chain: [u16; MAX_SIZE],
    free_head: u16,
    free: u16,
    available: u16,
    used: u16,
    /// Requests that the device has not been notified of.
    unnotified: u16,
}

impl Queue {
    pub(crate) fn new(index: u16, size: u16, notify: Mmio, memory: &mut FreeMemory) -> Option<Self> {
        assert!(usize::from(size) <= MAX_SIZE);
        let mut queue = Self {
            index,
            size,
            dma: Dma::new(memory, Self::used_offset(size) + 6 + 8 * usize::from(size))?,
            notify,
            next: [0; MAX_SIZE],
            chain: [0; MAX_SIZE],
            free_head: 0,
            free: size,
            available: 0,
            used: 0,
            unnotified: 0,
        };
        (1..=size)
            .zip(&mut queue.next)
            .for_each(|(number, next)| *next = number);
        Some(queue)
    }

    fn available_offset(size: u16) -> usize {
        16 * usize::from(size)
    }

    fn used_offset(size: u16) -> usize {
        (Self::available_offset(size) + 6 + 2 * usize::from(size)).next_multiple_of(4)
    }

    /// Addresses of the descriptor table, the available ring and the used ring.
    pub(crate) fn addresses(&self) -> [u64; 3] {
        [0, Self::available_offset(self.size), Self::used_offset(self.size)].map(|offset| self.dma.address(offset))
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Whether a request of that many parts fits.
    pub(crate) fn has_room(&self, parts: u16) -> bool {
        self.free >= parts
    }

    /// Whether requests are with the device.
    pub(crate) fn is_idle(&self) -> bool {
        self.free == self.size
    }

    /// Gives a request to the device, which may not look before it is notified. There has to be room.
    pub(crate) fn add(&mut self, parts: &[Buffer]) -> u16 {
        let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
        assert!(count > 0 && self.has_room(count), "queue {} is full", self.index);
        let head = self.free_head;
        let mut at = head;
        for (left, part) in (0..count).rev().zip(parts) {
            let (address, len, direction) = match *part {
                Buffer::Out { address, len } => (address, len, 0),
                Buffer::In { address, len } => (address, len, WRITE),
            };
            let descriptor = 16 * usize::from(at);
            let next = self.next[usize::from(at)];
            self.dma.write64(descriptor, address);
            self.dma.write32(descriptor + 8, len);
            self.dma
                .write16(descriptor + 12, direction | if left > 0 { NEXT } else { 0 });
            self.dma.write16(descriptor + 14, if left > 0 { next } else { 0 });
            at = next;
        }
        self.free_head = at;
        self.free -= count;
        self.chain[usize::from(head)] = count;

        let available = Self::available_offset(self.size);
        let slot = usize::from(self.available % self.size);
        self.dma.write16(available + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        // Stores stay in order on x86; the compiler must keep them so too.
        compiler_fence(Ordering::Release);
        self.dma.write16(available + 2, self.available);
        self.unnotified += 1;
        head
    }

    /// Tells the device of new requests, unless it has said that it looks anyway. Nothing is told while there are fewer than
    /// `least` of them.
    pub(crate) fn notify(&mut self, least: u16) {
        if self.unnotified == 0 || self.unnotified < least {
            return;
        }
        self.unnotified = 0;
        // The device's flag is read after the requests are visible.
        fence(Ordering::SeqCst);
        if self.dma.read16(Self::used_offset(self.size)) & NO_NOTIFY == 0 {
            self.notify.write16(0, self.index);
        }
    }

    /// Asks for interrupts or not.
    pub(crate) fn set_interrupts(&mut self, wanted: Interrupts) {
        let flags = match wanted {
            Interrupts::Wanted => 0,
            Interrupts::Unwanted => NO_INTERRUPT,
        };
        self.dma.write16(Self::available_offset(self.size), flags);
        // What the device uses from now on it sees the flag for; what it has used is there to be seen after this.
        fence(Ordering::SeqCst);
    }

    /// Whether a request is done.
    pub(crate) fn has_used(&self) -> bool {
        self.dma.read16(Self::used_offset(self.size) + 2) != self.used
    }

    /// The next request that is done; its descriptors are free again.
    pub(crate) fn pop(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        compiler_fence(Ordering::Acquire);
        let element = Self::used_offset(self.size) + 4 + 8 * usize::from(self.used % self.size);
        let (head, len) = (self.dma.read32(element), self.dma.read32(element + 4));
        self.used = self.used.wrapping_add(1);
        let head = u16::try_from(head)
            .ok()
            .filter(|&head| head < self.size && self.chain[usize::from(head)] > 0);
        let head = head.unwrap_or_else(|| panic!("queue {}: the device used what it was not given", self.index));

        let count = core::mem::take(&mut self.chain[usize::from(head)]);
        let last = (1..count).fold(head, |at, _| self.next[usize::from(at)]);
        self.next[usize::from(last)] = self.free_head;
        self.free_head = head;
        self.free += count;
        Some(Used { head, len })
    }
}
