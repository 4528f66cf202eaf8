//! A descriptor chain, checked once and then held as plain segments.
//!
//! The table is in guest memory and the guest may rewrite it at any time, so it is read once, when the chain is taken;
//! a request that completes later uses the segments, never the table again.

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::fault::QueueFault;
use ftvm_hypervisor::GuestMemory;

/// Size of a descriptor in bytes (virtio 1.2, 2.7.5).
const DESCRIPTOR_SIZE: u64 = 16;

/// A piece of guest memory; not empty, and in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Segment {
    addr: u64,
    len: u32,
}

/// The readable or the writable part of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChainBuffer {
    segments: Vec<Segment>,
    len: u32,
}

/// A chain that was taken from the available ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DescriptorChain {
    /// Its first descriptor, by which it is given back.
    pub head: u16,
    pub readable: ChainBuffer,
    pub writable: ChainBuffer,
}

impl ChainBuffer {
    /// Bytes in total.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    fn push(&mut self, segment: Segment) -> Result<(), QueueFault> {
        self.len = self
            .len
            .checked_add(segment.len)
            .ok_or(QueueFault::TooLong { max: u32::MAX })?;
        self.segments.push(segment);
        Ok(())
    }

    /// Fills `bytes` from the buffer, beginning `offset` bytes in. What lies beyond its end is left alone.
    pub(crate) fn read(&self, memory: &GuestMemory, offset: u32, bytes: &mut [u8]) -> Result<(), QueueFault> {
        let mut rest = bytes;
        for (addr, len) in self.pieces(offset) {
            let (piece, behind) = rest.split_at_mut(len.min(rest.len()));
            memory
                .read_slice(piece, GuestAddress(addr))
                .map_err(|_| outside(addr, piece.len()))?;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Writes `bytes` into the buffer, beginning `offset` bytes in. What does not fit is not written.
    pub(crate) fn write(&self, memory: &GuestMemory, offset: u32, bytes: &[u8]) -> Result<(), QueueFault> {
        let mut rest = bytes;
        for (addr, len) in self.pieces(offset) {
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            memory
                .write_slice(piece, GuestAddress(addr))
                .map_err(|_| outside(addr, piece.len()))?;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Address and length of what lies behind the first `offset` bytes.
    fn pieces(&self, offset: u32) -> impl Iterator<Item = (u64, usize)> {
        let mut skip = offset;
        self.segments.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.len);
            skip = skip.saturating_sub(skipped);
            let len = usize::try_from(segment.len.saturating_sub(skipped)).expect("64-bit host");
            (len > 0).then_some((segment.addr.wrapping_add(u64::from(skipped)), len))
        })
    }
}

impl DescriptorChain {
    /// Reads and checks the chain that begins at descriptor `head` of the table at `table`.
    pub(super) fn parse(memory: &GuestMemory, table: u64, size: u16, head: u16) -> Result<Self, QueueFault> {
        let mut chain = DescriptorChain {
            head,
            readable: ChainBuffer::default(),
            writable: ChainBuffer::default(),
        };
        let mut index = head;
        for _ in 0..size {
            let descriptor = read_descriptor(memory, table, size, index)?;
            let segment = check(memory, index, &descriptor)?;
            if descriptor.is_write_only() {
                chain.writable.push(segment)?;
            } else if chain.writable.segments.is_empty() {
                chain.readable.push(segment)?;
            } else {
                return Err(QueueFault::Order { index });
            }
            if !descriptor.has_next() {
                let whole = chain.readable.len.checked_add(chain.writable.len);
                return whole.map(|_| chain).ok_or(QueueFault::TooLong { max: u32::MAX });
            }
            index = descriptor.next();
        }
        Err(QueueFault::Loop { size })
    }
}

fn read_descriptor(memory: &GuestMemory, table: u64, size: u16, index: u16) -> Result<Descriptor, QueueFault> {
    if index >= size {
        return Err(QueueFault::DescriptorIndex { index, size });
    }
    let addr = table
        .checked_add(u64::from(index) * DESCRIPTOR_SIZE)
        .ok_or(QueueFault::Rings)?;
    memory.read_obj(GuestAddress(addr)).map_err(|_| QueueFault::Rings)
}

fn check(memory: &GuestMemory, index: u16, descriptor: &Descriptor) -> Result<Segment, QueueFault> {
    let (addr, len) = (descriptor.addr(), descriptor.len());
    if descriptor.refers_to_indirect_table() {
        return Err(QueueFault::Indirect);
    }
    if len == 0 {
        return Err(QueueFault::Empty { index });
    }
    if !memory.check_range(addr, usize::try_from(len).expect("64-bit host")) {
        return Err(QueueFault::OutsideMemory { addr: addr.0, len });
    }
    Ok(Segment { addr: addr.0, len })
}

fn outside(addr: u64, len: usize) -> QueueFault {
    QueueFault::OutsideMemory {
        addr,
        len: u32::try_from(len).unwrap_or(u32::MAX),
    }
}
