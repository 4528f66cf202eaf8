//! virtio-blk (virtio 1.2, 5.2): reads, writes and flushes of one disk, without touching the disk.
//!
//! A request becomes a [`DiskRequest`] effect with its data copied out, and stays outstanding until an input completes
//! it; read data and status reach guest memory only then. Requests may complete in any order. Those under way when the
//! driver resets the device go on (a write must still be finished somewhere, PROTOCOL 8), but answer nobody.

mod outstanding;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ftvm_schema::entry::DiskStatus;
use ftvm_schema::request::{DiskOp, DiskRequest, SECTOR};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::chain::{ChainBuffer, DescriptorChain};
use super::fault::QueueFault;
use super::model::{CONFIG_SIZE, Model, Served};
use super::queue::VirtQueue;
use crate::config::{DiskAccess, DiskConfig, MAX_SERIAL};
use crate::env::{DeviceEnv, Effect};
use crate::error::{ApplyError, BadState};
use outstanding::{Outstanding, Waiter, data_len};

const REQUESTS: usize = 0;
const QUEUE_SIZE: u16 = 128;

/// Bytes of `struct virtio_blk_req` before the data: type, reserved, sector.
const HEADER: u32 = 16;
/// Bytes behind the data: the status.
const STATUS: u32 = 1;

/// Data of one request at most: it is held, and logged if read. A driver that keeps to `SEG_MAX` segments of
/// `SIZE_MAX` bytes never gets there.
const MAX_DATA: u32 = 4 << 20;
/// Data segments of a request: the queue less header and status.
const SEG_MAX: u32 = 126;
const SIZE_MAX: u32 = 32 << 10;

/// What the driver is told as the disk's block size.
#[allow(clippy::cast_possible_truncation, reason = "512 bytes")]
const BLOCK_SIZE: u32 = SECTOR as u32;

/// Requests outstanding at most, those of a driver before a reset included. More wait in the ring.
pub const MAX_OUTSTANDING: usize = QUEUE_SIZE as usize;
/// Data of all outstanding requests at most: it is part of every state record. More waits in the ring.
pub const MAX_OUTSTANDING_DATA: u64 = 16 << 20;

/// One disk's driver side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtioBlock {
    number: u8,
    config: DiskConfig,
    /// Number of the next request; never reused, not even after a reset.
    next_id: u64,
    /// In the order of their numbers.
    outstanding: Vec<Outstanding>,
    /// The ring holds chains that found no room.
    stalled: bool,
}

/// A completed request on its way to the driver.
#[derive(Debug)]
pub(crate) struct Completion<'a> {
    reply: Waiter,
    status: DiskStatus,
    data: &'a [u8],
}

/// What becomes of a chain.
enum Plan {
    /// Answered at once: bytes for the writable part, and the status.
    Answer(Vec<u8>, DiskStatus),
    /// Needs the disk.
    Issue(DiskOp),
}

impl VirtioBlock {
    /// Disk `number` of this size and kind.
    pub(crate) fn new(number: u8, config: DiskConfig) -> Self {
        VirtioBlock {
            number,
            config,
            next_id: 0,
            outstanding: Vec::new(),
            stalled: false,
        }
    }

    /// Goes on with the requests and numbers of the disk that this was before a reset of the machine.
    pub(crate) fn inherit(&mut self, before: &VirtioBlock) {
        self.next_id = before.next_id;
        self.outstanding.clone_from(&before.outstanding);
        self.reset();
    }

    /// What the driver has asked for and no input has completed, in order.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = &DiskRequest> {
        self.outstanding.iter().map(|outstanding| &outstanding.request)
    }

    /// Takes request `id` off the list. The outside is done with it, whatever the driver has done meanwhile.
    ///
    /// # Errors
    /// There is no such request, or `data` is not what it must bring. Nothing has changed then.
    pub(crate) fn complete<'a>(
        &mut self,
        id: u64,
        status: DiskStatus,
        data: &'a [u8],
    ) -> Result<Completion<'a>, ApplyError> {
        let found = self
            .outstanding
            .iter()
            .position(|outstanding| outstanding.request.id == id);
        let index = found.ok_or(ApplyError::NoSuchRequest { disk: self.number, id })?;
        let expected = match (&self.outstanding[index].request.op, status) {
            (DiskOp::Read { len, .. }, DiskStatus::Ok) => *len as usize,
            _ => 0,
        };
        if data.len() != expected {
            return Err(ApplyError::DataLength {
                disk: self.number,
                id,
                expected,
                found: data.len(),
            });
        }
        let reply = self.outstanding.remove(index).reply;
        Ok(Completion { reply, status, data })
    }

    /// Tells the driver, and takes what waited in the ring for room.
    pub(crate) fn answer(
        &mut self,
        completion: Completion<'_>,
        queues: &mut [VirtQueue],
        env: &mut DeviceEnv<'_>,
    ) -> Served {
        let queue = &mut queues[REQUESTS];
        let mut used = None;
        if let Waiter::Driver { head, writable } = completion.reply {
            let chain = DescriptorChain {
                head,
                writable,
                readable: ChainBuffer::default(),
            };
            answer(queue, &chain, completion.data, completion.status, env)?;
            used = Some(REQUESTS);
        }
        if self.stalled {
            Ok(self.take_requests(queue, env)?.or(used))
        } else {
            Ok(used)
        }
    }

    fn take_requests(&mut self, queue: &mut VirtQueue, env: &mut DeviceEnv<'_>) -> Served {
        self.stalled = false;
        let mut used = None;
        for _ in 0..queue.available(env.memory)? {
            let Some(chain) = queue.pop(env.memory)? else {
                break;
            };
            match self.plan(&chain, env)? {
                Plan::Answer(bytes, status) => {
                    answer(queue, &chain, &bytes, status, env)?;
                    used = Some(REQUESTS);
                }
                Plan::Issue(op) if self.has_room(data_len(&op)) => self.issue(chain, op, env),
                Plan::Issue(_) => {
                    queue.unpop();
                    self.stalled = true;
                    break;
                }
            }
        }
        Ok(used)
    }

    fn plan(&self, chain: &DescriptorChain, env: &DeviceEnv<'_>) -> Result<Plan, QueueFault> {
        let (readable, writable) = (chain.readable.len(), chain.writable.len());
        let (Some(to_disk), Some(from_disk)) = (readable.checked_sub(HEADER), writable.checked_sub(STATUS)) else {
            return Err(QueueFault::TooShort { readable, writable });
        };
        let mut header = [0; HEADER as usize];
        chain.readable.read(env.memory, 0, &mut header)?;
        let [kind @ .., _, _, _, _, _, _, _, _, _, _, _, _] = header;
        let [.., s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let failed = Plan::Answer(Vec::new(), DiskStatus::IoError);
        Ok(match u32::from_le_bytes(kind) {
            VIRTIO_BLK_T_IN => match self.offset(sector, from_disk) {
                Some(offset) => Plan::Issue(DiskOp::Read { offset, len: from_disk }),
                None => failed,
            },
            VIRTIO_BLK_T_OUT => match self.offset(sector, to_disk) {
                Some(offset) if self.config.access == DiskAccess::ReadWrite => {
                    let mut data = vec![0; to_disk as usize];
                    chain.readable.read(env.memory, HEADER, &mut data)?;
                    let data = Arc::new(data);
                    Plan::Issue(DiskOp::Write { offset, data })
                }
                _ => failed,
            },
            VIRTIO_BLK_T_FLUSH => Plan::Issue(DiskOp::Flush),
            VIRTIO_BLK_T_GET_ID => Plan::Answer(self.identification(from_disk), DiskStatus::Ok),
            _ => Plan::Answer(Vec::new(), DiskStatus::Unsupported),
        })
    }

    /// Byte offset of an extent, if it is one: whole sectors, at least one, within the bound and the disk.
    fn offset(&self, sector: u64, len: u32) -> Option<u64> {
        let whole = len > 0 && len <= MAX_DATA && u64::from(len).is_multiple_of(SECTOR);
        let end = sector.checked_add(u64::from(len) / SECTOR)?;
        let offset = sector.checked_mul(SECTOR)?;
        (whole && end <= self.config.sectors).then_some(offset)
    }

    /// The serial, padded with zeros to its field.
    fn identification(&self, room: u32) -> Vec<u8> {
        let mut id = self.config.serial.clone().into_bytes();
        id.resize(MAX_SERIAL.min(room as usize), 0);
        id
    }

    fn has_room(&self, data: u64) -> bool {
        let held: u64 = self.outstanding().map(|request| data_len(&request.op)).sum();
        self.outstanding.len() < MAX_OUTSTANDING && held.saturating_add(data) <= MAX_OUTSTANDING_DATA
    }

    fn issue(&mut self, chain: DescriptorChain, op: DiskOp, env: &mut DeviceEnv<'_>) {
        let request = DiskRequest {
            disk: self.number,
            id: self.next_id,
            op,
        };
        // Never reached: no disk is asked 2^64 times.
        self.next_id = self.next_id.saturating_add(1);
        env.effects.push(Effect::Disk(request.clone()));
        self.outstanding.push(Outstanding {
            request,
            reply: Waiter::Driver {
                head: chain.head,
                writable: chain.writable,
            },
        });
    }
}

/// Writes data and status, and gives the chain back.
fn answer(
    queue: &mut VirtQueue,
    chain: &DescriptorChain,
    data: &[u8],
    status: DiskStatus,
    env: &mut DeviceEnv<'_>,
) -> Result<(), QueueFault> {
    let status = match status {
        DiskStatus::Ok => 0,
        DiskStatus::IoError => 1,
        DiskStatus::Unsupported => 2,
    };
    chain.writable.write(env.memory, 0, data)?;
    chain
        .writable
        .write(env.memory, chain.writable.len().saturating_sub(STATUS), &[status])?;
    let data_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    queue.push(env.memory, chain.head, data_len.saturating_add(STATUS))
}

impl Model for VirtioBlock {
    const TYPE: u16 = 2;
    const CLASS: u32 = 0x01_0000;
    const QUEUE_SIZES: &'static [u16] = &[QUEUE_SIZE];

    fn features(&self) -> u64 {
        let read_only = u64::from(self.config.access == DiskAccess::ReadOnly);
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | read_only << VIRTIO_BLK_F_RO
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        config[0..8].copy_from_slice(&self.config.sectors.to_le_bytes());
        config[8..12].copy_from_slice(&SIZE_MAX.to_le_bytes());
        config[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        config[20..24].copy_from_slice(&BLOCK_SIZE.to_le_bytes());
        config
    }

    fn notify(&mut self, _index: usize, queues: &mut [VirtQueue], env: &mut DeviceEnv<'_>) -> Served {
        self.take_requests(&mut queues[REQUESTS], env)
    }

    fn reset(&mut self) {
        for outstanding in &mut self.outstanding {
            outstanding.reply = Waiter::Nobody;
        }
        self.stalled = false;
    }

    fn check(&self, built: &Self) -> Result<(), BadState> {
        if (self.number, &self.config) != (built.number, &built.config) {
            return Err(BadState::new(
                "a disk",
                "the one configured here",
                format!("{:?}", self.config),
            ));
        }
        outstanding::check(&self.outstanding, self.number, self.next_id, MAX_OUTSTANDING)
    }
}
