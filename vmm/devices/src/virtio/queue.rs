//! A virtqueue as its registers show it, and the rings behind it (virtio 1.2, 2.7).
//!
//! The rings are accessed through the `virtio-queue` crate, opened anew for each operation from the registers and the
//! two indices kept here: the crate's queue carries a field that its state does not, so it is never kept across an
//! exit. EVENT_IDX and indirect descriptors are not offered.

use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::DescriptorChain;
use super::fault::QueueFault;
use crate::error::BadState;
use ftvm_hypervisor::GuestMemory;

/// Whether the driver has enabled the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum QueueStage {
    /// Addresses and size may be written.
    Setup,
    Enabled,
}

/// One virtqueue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtQueue {
    max_size: u16,
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) phase: QueueStage,
    next_avail: u16,
    next_used: u16,
}

impl VirtQueue {
    /// A queue of at most `max_size` entries, a power of two.
    pub(super) fn new(max_size: u16) -> Self {
        VirtQueue {
            max_size,
            size: max_size,
            desc: 0,
            avail: 0,
            used: 0,
            phase: QueueStage::Setup,
            next_avail: 0,
            next_used: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = VirtQueue::new(self.max_size);
    }

    /// Whether the device may use the queue.
    pub(crate) fn is_enabled(&self) -> bool {
        self.phase == QueueStage::Enabled
    }

    /// The driver has described the queue and wants it used.
    pub(super) fn enable(&mut self, memory: &GuestMemory) -> Result<(), QueueFault> {
        let valid = self.open().is_ok_and(|ring| ring.is_valid(memory)) && self.avail != 0;
        if !valid {
            return Err(self.misplaced());
        }
        self.phase = QueueStage::Enabled;
        Ok(())
    }

    /// How many chains the driver has made available and [`Self::pop`] has not taken.
    pub(crate) fn available(&self, memory: &GuestMemory) -> Result<u16, QueueFault> {
        if !self.is_enabled() {
            return Ok(0);
        }
        let index = self
            .open()?
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| QueueFault::Rings)?;
        let available = index.0.wrapping_sub(self.next_avail);
        if available > self.size {
            return Err(QueueFault::AvailableIndex { size: self.size });
        }
        Ok(available)
    }

    /// Takes the next available chain.
    ///
    /// A caller that empties the queue first asks [`Self::available`] and takes that many: what the device writes may
    /// lie over the available ring, so asking again and again need not end.
    pub(crate) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<DescriptorChain>, QueueFault> {
        if self.available(memory)? == 0 {
            return Ok(None);
        }
        let mut ring = self.open()?;
        let head = ring
            .iter(memory)
            .map_err(|_| QueueFault::Rings)?
            .next()
            .ok_or(QueueFault::Rings)?
            .head_index();
        let chain = DescriptorChain::parse(memory, self.desc, self.size, head)?;
        self.next_avail = ring.next_avail();
        Ok(Some(chain))
    }

    /// Puts the chain taken last back; it is the next one again.
    pub(crate) fn unpop(&mut self) {
        self.next_avail = self.next_avail.wrapping_sub(1);
    }

    /// Gives the chain that began at `head` back to the driver, with `len` bytes written.
    pub(crate) fn push(&mut self, memory: &GuestMemory, head: u16, len: u32) -> Result<(), QueueFault> {
        let mut ring = self.open()?;
        ring.add_used(memory, head, len).map_err(|_| QueueFault::Rings)?;
        self.next_used = ring.next_used();
        Ok(())
    }

    /// Whether the driver wants to hear of used chains (virtio 1.2, 2.7.7).
    pub(super) fn wants_interrupt(&self, memory: &GuestMemory) -> Result<bool, QueueFault> {
        let flags: u16 = memory
            .load(GuestAddress(self.avail), Ordering::Acquire)
            .map_err(|_| QueueFault::Rings)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    pub(super) fn check(&self, max_size: u16) -> Result<(), BadState> {
        if self.max_size == max_size {
            Ok(())
        } else {
            Err(BadState::new(
                "a virtqueue's maximal size",
                "what the device offers",
                self.max_size,
            ))
        }
    }

    fn open(&self) -> Result<Queue, QueueFault> {
        Queue::try_from(QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
        })
        .map_err(|_| self.misplaced())
    }

    fn misplaced(&self) -> QueueFault {
        QueueFault::Queue {
            size: self.size,
            desc: self.desc,
            avail: self.avail,
            used: self.used,
        }
    }
}
