//! What is on the disk, byte by byte. All numbers are little-endian.

use alloc::vec::Vec;
use core::fmt;

use crate::crc::crc32c;

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Sectors in front of the regions: two superblocks, and room.
const RESERVED: u64 = 8;
/// Least sectors of a region: 8 MiB. The store may exceed its limit by one request, and has to fit nevertheless.
const MIN_REGION: u64 = 16 << 10;
/// Begins a superblock.
const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"ftvm-kv1");
/// Begins a frame.
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"kvFR");
/// Bytes in front of a frame's payload.
pub(super) const FRAME_HEADER: usize = 36;
/// Most bytes of a frame's payload: what one round of requests may journal (see the guest's server), with room to spare.
pub(super) const MAX_PAYLOAD: usize = 8 << 20;

/// Where things are on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    region_sectors: u64,
}

/// A disk that is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeometryError {
    /// Sectors that it has.
    pub sectors: u64,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = RESERVED + 2 * MIN_REGION;
        let mebibytes = (least * SECTOR as u64).div_ceil(1 << 20);
        write!(
            f,
            "a disk of {} sectors of 512 bytes, but the log needs {least} ({mebibytes} MiB)",
            self.sectors
        )
    }
}

impl core::error::Error for GeometryError {}

impl Geometry {
    /// The geometry of a disk.
    ///
    /// # Errors
    /// The disk is too small.
    pub fn of(sectors: u64) -> Result<Self, GeometryError> {
        let region_sectors = sectors.saturating_sub(RESERVED) / 2;
        if region_sectors < MIN_REGION {
            Err(GeometryError { sectors })
        } else {
            Ok(Self { region_sectors })
        }
    }

    /// Most memory that the store may use, by its own estimate, in bytes: each key's estimate is at least the size of the
    /// command that restores it. So the store takes at most 5/8 of a region, and what is left takes the requests that are
    /// under way and keeps rewriting rare.
    #[must_use]
    pub fn max_store(&self) -> usize {
        let region = usize::try_from(self.region_sectors).unwrap_or(usize::MAX / SECTOR) * SECTOR;
        region / 8 * 5
    }

    pub(super) fn region_start(&self, region: u8) -> u64 {
        RESERVED + u64::from(region) * self.region_sectors
    }

    pub(super) fn region_end(&self, region: u8) -> u64 {
        self.region_start(region) + self.region_sectors
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Says which region is active. The two superblocks take turns, by generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Random number of this disk.
    pub(super) disk: u64,
    pub(super) generation: u64,
    /// Sequence number of the active region's first frame.
    pub(super) first_sequence: u64,
    /// Counts starts of the guest with this disk.
    pub(super) epoch: u32,
    /// 0 or 1.
    pub(super) region: u8,
}

impl Superblock {
    pub(super) const SECTORS: [u64; 2] = [0, 1];
    const SIZE: usize = 44;

    pub(super) fn sector(&self) -> u64 {
        self.generation % 2
    }

    pub(super) fn other_region(&self) -> u8 {
        1 - self.region
    }

    pub(super) fn encode(&self) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        bytes[..8].copy_from_slice(&SUPERBLOCK_MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.disk.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[36..40].copy_from_slice(&u32::from(self.region).to_le_bytes());
        let crc = crc32c(0, &bytes[..Self::SIZE - 4]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; SECTOR]) -> Option<Self> {
        let crc = u32::from_le_bytes(field(bytes, 40));
        let magic = u64::from_le_bytes(field(bytes, 0));
        let region = u32::from_le_bytes(field(bytes, 36));
        if magic != SUPERBLOCK_MAGIC || crc != crc32c(0, &bytes[..Self::SIZE - 4]) || region > 1 {
            return None;
        }
        Some(Self {
            disk: u64::from_le_bytes(field(bytes, 8)),
            generation: u64::from_le_bytes(field(bytes, 16)),
            first_sequence: u64::from_le_bytes(field(bytes, 24)),
            epoch: u32::from_le_bytes(field(bytes, 32)),
            region: u8::from(region == 1),
        })
    }
}

/// What tells a frame from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) disk: u64,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
}

/// Why there is no frame where one is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// Nothing has been written here.
    Blank,
    /// Something that is no frame, or one of another disk.
    Foreign,
    /// A frame of another place in the log, as the region's earlier use leaves them.
    Stale,
    /// It does not fit into the region, or is longer than any frame.
    Length,
    /// The CRC is wrong: it was not written completely.
    Torn,
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadFrame::Blank => "nothing written beyond",
            BadFrame::Foreign => "no frame of this log beyond",
            BadFrame::Stale => "only an old frame beyond",
            BadFrame::Length => "a frame with an impossible length beyond",
            BadFrame::Torn => "a torn frame beyond",
        })
    }
}

impl Frame {
    /// Sectors of a frame with that much payload.
    pub(super) fn sectors(payload: usize) -> u64 {
        (FRAME_HEADER + payload).div_ceil(SECTOR) as u64
    }

    /// The frame as it is written.
    pub(super) fn encode(&self, payload: &[u8]) -> Vec<u8> {
        let size = (FRAME_HEADER + payload.len()).next_multiple_of(SECTOR);
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.disk.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&u64::from(self.epoch).to_le_bytes());
        let crc = crc32c(crc32c(0, &bytes), payload);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(size, 0);
        bytes
    }

    /// Decodes a frame's first sector: the epoch and the payload's length. `expected` is what it should be; a later epoch
    /// is one too.
    pub(super) fn decode_header(&self, first: &[u8]) -> Result<(u32, usize), BadFrame> {
        if first.iter().all(|&byte| byte == 0) {
            return Err(BadFrame::Blank);
        }
        let disk = u64::from_le_bytes(field(first, 8));
        if u32::from_le_bytes(field(first, 0)) != FRAME_MAGIC || disk != self.disk {
            return Err(BadFrame::Foreign);
        }
        let sequence = u64::from_le_bytes(field(first, 16));
        let epoch = u32::try_from(u64::from_le_bytes(field(first, 24))).map_err(|_| BadFrame::Foreign)?;
        if sequence != self.sequence || epoch < self.epoch {
            return Err(BadFrame::Stale);
        }
        let len = usize::try_from(u32::from_le_bytes(field(first, 4))).map_err(|_| BadFrame::Length)?;
        if len > MAX_PAYLOAD {
            Err(BadFrame::Length)
        } else {
            Ok((epoch, len))
        }
    }

    /// The payload of a whole frame, if its CRC says that it is whole.
    pub(super) fn decode_payload(frame: &[u8], len: usize) -> Result<&[u8], BadFrame> {
        let payload = frame.get(FRAME_HEADER..FRAME_HEADER + len).ok_or(BadFrame::Length)?;
        let crc = u32::from_le_bytes(field(frame, FRAME_HEADER - 4));
        if crc == crc32c(crc32c(0, &frame[..FRAME_HEADER - 4]), payload) {
            Ok(payload)
        } else {
            Err(BadFrame::Torn)
        }
    }
}
