//! The block device (virtio 1.2, 5.2).
//!
//! One job at a time: a read, a write or a flush. A long one is split into requests, of which as many as fit are with the
//! device at once. The driver does not wait: its user asks whether the job is done.

use alloc::vec::Vec;
use core::fmt;

use guest_rt::memory::FreeMemory;

use crate::device::{Device, DeviceError};
use crate::dma::Dma;
use crate::pci::Function;
use crate::queue::{Buffer, Queue};

/// Bytes of a sector, whatever the device's block size is.
pub const SECTOR: usize = 512;

const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
const QUEUE_SIZE: u16 = 64;
/// Requests that can be with the device at once; each takes three descriptors.
const SLOTS: usize = 16;
/// Bytes of data of a request.
const SLOT_DATA: usize = 64 << 10;
/// Bytes of a slot: data, header and status.
const SLOT_SIZE: usize = SLOT_DATA + 64;
const HEADER: usize = SLOT_DATA;
const STATUS: usize = SLOT_DATA + 16;

const TYPE_READ: u32 = 0;
const TYPE_WRITE: u32 = 1;
const TYPE_FLUSH: u32 = 4;

/// A request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockError {
    what: &'static str,
    sector: u64,
    /// 1: I/O error, 2: unsupported; anything else is not in the standard.
    status: u8,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at sector {}: the disk says status {}",
            self.what, self.sector, self.status
        )
    }
}

impl core::error::Error for BlockError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
        }
    }
}

/// A job: its data is what is written, or what has been read.
#[derive(Debug)]
struct Job {
    kind: Kind,
    sector: u64,
    data: Vec<u8>,
    /// Bytes that have been given to the device, and that it has done with. A flush counts as one byte.
    submitted: usize,
    completed: usize,
    error: Option<BlockError>,
}

impl Job {
    fn size(&self) -> usize {
        if self.kind == Kind::Flush { 1 } else { self.data.len() }
    }
}

/// What is in a slot: the part of the job's data.
#[derive(Clone, Copy, Debug)]
struct Part {
    slot: usize,
    start: usize,
    len: usize,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    queue: Queue,
    slots: Dma,
    free: [bool; SLOTS],
    part_of: [Option<Part>; QUEUE_SIZE as usize],
    sectors: u64,
    has_flush: bool,
    read_only: bool,
    job: Option<Job>,
}

impl Block {
    /// Starts a device.
    ///
    /// # Errors
    /// The device is no usable one, or memory has run out.
    pub fn open(function: Function, memory: &mut FreeMemory) -> Result<Self, DeviceError> {
        let device = Device::open(function, FEATURE_FLUSH | FEATURE_READ_ONLY, 0)?;
        let queue = device.queue(0, QUEUE_SIZE, memory)?;
        let slots = Dma::new(memory, SLOTS * SLOT_SIZE).ok_or(DeviceError::Memory)?;
        let sectors = u64::from(device.config.read32(0)) | u64::from(device.config.read32(4)) << 32;
        device.start()?;
        Ok(Self {
            queue,
            slots,
            free: [true; SLOTS],
            part_of: [None; QUEUE_SIZE as usize],
            sectors,
            has_flush: device.features & FEATURE_FLUSH != 0,
            read_only: device.features & FEATURE_READ_ONLY != 0,
            job: None,
        })
    }

    /// Size in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the device takes no writes.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether there is no job.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.job.is_none()
    }

    /// Begins to read `len` bytes, a multiple of [`SECTOR`].
    pub fn start_read(&mut self, sector: u64, len: usize) {
        self.start(Kind::Read, sector, alloc::vec![0; len]);
    }

    /// Begins to write whole sectors.
    pub fn start_write(&mut self, sector: u64, data: Vec<u8>) {
        self.start(Kind::Write, sector, data);
    }

    /// Begins to make stable what has been written. A device without flush has no cache that needs one.
    pub fn start_flush(&mut self) {
        self.start(Kind::Flush, 0, Vec::new());
    }

    fn start(&mut self, kind: Kind, sector: u64, data: Vec<u8>) {
        assert!(self.job.is_none(), "one job at a time");
        let end = (data.len() / SECTOR) as u64 + sector;
        assert!(
            data.len().is_multiple_of(SECTOR) && end <= self.sectors,
            "{} bytes at {sector}",
            data.len()
        );
        let mut job = Job {
            kind,
            sector,
            data,
            submitted: 0,
            completed: 0,
            error: None,
        };
        if kind == Kind::Flush && !self.has_flush {
            (job.submitted, job.completed) = (1, 1);
        }
        self.job = Some(job);
        self.submit();
    }

    /// The job's outcome, once: what has been read, or the data that was written.
    ///
    /// # Errors
    /// A request of the job failed.
    pub fn poll(&mut self) -> Option<Result<Vec<u8>, BlockError>> {
        self.collect();
        self.submit();
        let all_back = self.queue.is_idle();
        let job = self
            .job
            .take_if(|job| all_back && (job.completed == job.size() || job.error.is_some()))?;
        Some(match job.error {
            Some(error) => Err(error),
            None => Ok(job.data),
        })
    }

    fn submit(&mut self) {
        let Some(job) = self.job.as_mut() else {
            return;
        };
        while job.submitted < job.size() && job.error.is_none() && self.queue.has_room(3) {
            let Some(slot) = self.free.iter().position(|&free| free) else {
                break;
            };
            let base = slot * SLOT_SIZE;
            let (start, len) = match job.kind {
                Kind::Flush => (0, 0),
                Kind::Read | Kind::Write => (job.submitted, (job.size() - job.submitted).min(SLOT_DATA)),
            };
            let kind = match job.kind {
                Kind::Read => TYPE_READ,
                Kind::Write => TYPE_WRITE,
                Kind::Flush => TYPE_FLUSH,
            };
            self.slots.write32(base + HEADER, kind);
            self.slots.write32(base + HEADER + 4, 0);
            self.slots
                .write64(base + HEADER + 8, job.sector + (start / SECTOR) as u64);
            self.slots.write8(base + STATUS, 0xff);
            let address = self.slots.address(base);
            let data_len = u32::try_from(len).unwrap_or(0);
            let header = Buffer::Out {
                address: address + HEADER as u64,
                len: 16,
            };
            let status = Buffer::In {
                address: address + STATUS as u64,
                len: 1,
            };
            let head = match job.kind {
                Kind::Flush => self.queue.add(&[header, status]),
                Kind::Read => self.queue.add(&[header, Buffer::In { address, len: data_len }, status]),
                Kind::Write => {
                    self.slots
                        .bytes_mut(base, len)
                        .copy_from_slice(&job.data[start..start + len]);
                    self.queue
                        .add(&[header, Buffer::Out { address, len: data_len }, status])
                }
            };
            self.free[slot] = false;
            self.part_of[usize::from(head)] = Some(Part { slot, start, len });
            job.submitted += len.max(1);
        }
        self.queue.notify(1);
    }

    fn collect(&mut self) {
        while let Some(used) = self.queue.pop() {
            let part = self.part_of[usize::from(used.head)].take();
            let (Some(Part { slot, start, len }), Some(job)) = (part, self.job.as_mut()) else {
                continue;
            };
            let base = slot * SLOT_SIZE;
            self.free[slot] = true;
            job.completed += len.max(1);
            match self.slots.read8(base + STATUS) {
                0 if job.kind == Kind::Read => {
                    job.data[start..start + len].copy_from_slice(self.slots.bytes(base, len));
                }
                0 => {}
                status => {
                    let sector = job.sector + (start / SECTOR) as u64;
                    job.error = Some(BlockError {
                        what: job.kind.name(),
                        sector,
                        status,
                    });
                }
            }
        }
    }
}
