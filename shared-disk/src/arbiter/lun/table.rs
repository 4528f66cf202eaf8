//! The slots of a device: which block is whose.

use super::error::{LunError, failed, unusable};
use super::layout::{BLOCKS, Cell, CellError, CellKind, SLOTS, decode, encode, header, register_block};
use super::{BlockDevice, SharedLun};
use crate::arbiter::ArbiterError;
use crate::arbiter::register::foreign;
use crate::scsi::Compared;

/// How many bytes must be zero at the beginning of a device that is to be taken into use, and at its end. Boot sectors,
/// partition tables, and the superblocks of file systems, RAIDs and volume groups lie there.
pub(super) const ZERO_BEGINNING: u64 = 1 << 20;
const ZERO_END: u64 = 128 << 10;

/// What the device held when it was read.
pub(super) struct SlotTable<'a> {
    lun: &'a SharedLun,
    device: Box<dyn BlockDevice>,
    /// The content of the first [`BLOCKS`] blocks.
    blocks: Vec<u8>,
}

impl<'a> SlotTable<'a> {
    /// Of `lun`, where `device` held `blocks`.
    pub(super) fn new(lun: &'a SharedLun, device: Box<dyn BlockDevice>, blocks: Vec<u8>) -> Self {
        SlotTable { lun, device, blocks }
    }

    /// Reads the device again.
    pub(super) fn read_again(&mut self) -> Result<(), ArbiterError> {
        self.blocks = self.device.read(0, BLOCKS).map_err(failed)?;
        Ok(())
    }

    pub(super) fn block_len(&self) -> usize {
        usize::try_from(self.device.block_bytes()).expect("blocks are short")
    }

    pub(super) fn block(&self, number: u64) -> &[u8] {
        let (number, length) = (usize::try_from(number).expect("the table is short"), self.block_len());
        &self.blocks[number * length..(number + 1) * length]
    }

    /// What is in `block` is none of ours.
    pub(super) fn foreign(&self, block: u64, cause: impl std::error::Error + Send + Sync + 'static) -> ArbiterError {
        foreign(format!("block {block} of {}", self.lun.path.display()), cause)
    }

    /// What the nonce block `block` says; `None` if it is empty.
    pub(super) fn nonce(&self, block: u64) -> Result<Option<Cell>, ArbiterError> {
        decode(CellKind::Nonce, self.block(block)).map_err(|error: CellError| self.foreign(block, error))
    }

    /// Whether the device is in use, by its header. It is an error if someone else uses it.
    pub(super) fn is_formatted(&self) -> Result<bool, ArbiterError> {
        let first = self.block(0);
        match decode(CellKind::Header, first) {
            Ok(None) => Ok(false),
            Ok(Some(_)) if first == header(self.block_len()) => Ok(true),
            Ok(Some(cell)) => Err(unusable(LunError::OtherVersion {
                path: self.lun.path.clone(),
                content: cell.content.escape_ascii().to_string(),
            })),
            Err(cause) => Err(unusable(LunError::InUse {
                path: self.lun.path.clone(),
                cause,
            })),
        }
    }

    /// Whether no block of a device in use is damaged. COMPARE AND WRITE is atomic against others of its kind, but a
    /// READ at the same time may bring a block that is half written (seen with LIO). That passes at once.
    pub(super) fn is_sound(&self) -> bool {
        let sound = |block: u64| {
            let kind = if block % 2 == 1 {
                CellKind::Register
            } else {
                CellKind::Nonce
            };
            decode(kind, self.block(block)).is_ok()
        };
        self.block(0) != header(self.block_len()) || (1..BLOCKS).all(sound)
    }

    /// Nobody may have put the device to use: its beginning and its end must be zero.
    pub(super) fn check_zeroed(&self) -> Result<(), ArbiterError> {
        let (blocks, bytes) = (self.device.blocks(), self.device.block_bytes());
        let (beginning, end) = ((ZERO_BEGINNING / bytes).max(BLOCKS), ZERO_END / bytes);
        for (first, count) in [
            (0, beginning.min(blocks)),
            (blocks.saturating_sub(end), end.min(blocks)),
        ] {
            let content = self.device.read(first, count).map_err(failed)?;
            if content.iter().any(|byte| *byte != 0) {
                let path = self.lun.path.clone();
                return Err(unusable(LunError::NotZeroed { path, first, count }));
            }
        }
        Ok(())
    }

    /// Replaces a block by `new`, if it is still as it was read.
    pub(super) fn swap(&self, block: u64, new: &[u8]) -> Result<Compared, ArbiterError> {
        self.device
            .compare_and_write(block, self.block(block), new)
            .map_err(failed)
    }

    /// The guest's register, and the number of its block.
    pub(super) fn slot(&self) -> Result<Option<(u64, Cell)>, ArbiterError> {
        let mut damaged = None;
        for slot in 0..SLOTS {
            let block = register_block(slot);
            match decode(CellKind::Register, self.block(block)) {
                Ok(Some(cell)) if cell.name == self.lun.guest => return Ok(Some((block, cell))),
                Ok(_) => {}
                Err(error) => damaged = damaged.or(Some(self.foreign(block, error))),
            }
        }
        // A damaged block may be this guest's, so the guest may be there.
        damaged.map_or(Ok(None), Err)
    }

    /// The guest's register, which must be there.
    pub(super) fn own_slot(&self) -> Result<(u64, Cell), ArbiterError> {
        self.slot()?.ok_or_else(|| {
            ArbiterError::unreachable(LunError::NoGuest {
                path: self.lun.path.clone(),
                guest: self.lun.guest.clone(),
            })
        })
    }

    /// The number of the guest's nonce block.
    pub(super) fn nonce_block(&self) -> Result<u64, ArbiterError> {
        self.own_slot().map(|(block, _)| block + 1)
    }

    /// Gives the guest the first free slot, unless somebody is faster: the next look tells who.
    pub(super) fn take_slot(&self) -> Result<(), ArbiterError> {
        let free = (0..SLOTS)
            .map(register_block)
            .find(|block| self.block(*block).iter().all(|byte| *byte == 0));
        let Some(free) = free else {
            return Err(unusable(LunError::Full(self.lun.path.clone())));
        };
        self.swap(
            free,
            &encode(CellKind::Register, &self.lun.guest, &[], self.block_len()),
        )
        .map(drop)
    }
}
