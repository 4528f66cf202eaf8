//! Disk requests as a guest's block device makes them: numbered, with their data in a bounce buffer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes of a sector: what offsets and lengths of requests, and sizes of disks, are multiples of (virtio 1.2, 5.2.2).
pub const SECTOR: u64 = 512;

/// What a request does. Offsets and lengths are bytes, multiples of [`SECTOR`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    Read {
        offset: u64,
        len: u32,
    },
    /// The data is copied out of guest memory when the request is made (a bounce buffer), so that DMA never races with
    /// the guest.
    Write {
        offset: u64,
        data: Arc<Vec<u8>>,
    },
    Flush,
}

/// One request. `id` counts up per disk from 0, in the order the guest made them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    pub disk: u8,
    pub id: u64,
    pub op: DiskOp,
}
