//! The test-and-set as a block of a SCSI device that both hosts see.
//!
//! COMPARE AND WRITE (SBC-3, 5.3) replaces one logical block if it still holds what was read, and the device itself
//! sees to it that nothing comes between. Cluster file systems use it to the same end, and every array that serves them
//! has it. A guest's record lies in one block ([`layout`]), which is replaced and never emptied, so a claim that was
//! long on its way finds another content and does nothing. The device's answer is not believed, and the block is read
//! again instead.
//!
//! The device is ftvm's alone. A zeroed one is taken into use by the first start. One with any other content is
//! refused, and not written to. Commands bypass the host's page cache (`crate::scsi`). Each call opens the device anew,
//! because a path that was lost comes back as another device, and no call succeeds before the block is stable.

mod error;
mod layout;
mod table;

#[cfg(feature = "fuzzing")]
pub use self::layout::fuzz;

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use self::error::{LunError, failed, unusable};
use self::layout::{BLOCKS, Cell, CellKind, encode, header};
use self::table::{SlotTable, ZERO_BEGINNING};
use super::register::{self, GenerationRegister, check_id, check_name, check_nonce, no_nonce};
use super::{Arbiter, ArbiterError, ClaimOutcome, GenerationRecord, TestAndSet};
use crate::scsi::{Compared, ScsiDevice, ScsiError};

/// How often a block is written that others write as well. Each failure is someone's start, join or end.
const TRIES: u32 = 16;

/// Time before a block that seems damaged is read again.
const TORN: Duration = Duration::from_millis(20);

/// What the arbiter needs of a device; tests bring one in memory.
trait BlockDevice {
    fn block_bytes(&self) -> u64;
    fn blocks(&self) -> u64;
    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, ScsiError>;
    fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError>;
    fn synchronize(&self) -> Result<(), ScsiError>;
}

impl BlockDevice for ScsiDevice {
    fn block_bytes(&self) -> u64 {
        u64::from(self.capacity().block_bytes)
    }

    fn blocks(&self) -> u64 {
        self.capacity().blocks
    }

    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, ScsiError> {
        ScsiDevice::read(self, block, count)
    }

    fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError> {
        ScsiDevice::compare_and_write(self, block, expected, new)
    }

    fn synchronize(&self) -> Result<(), ScsiError> {
        ScsiDevice::synchronize(self, 0, u32::try_from(BLOCKS).unwrap_or(0))
    }
}

type Opener = dyn Fn() -> Result<Box<dyn BlockDevice>, ScsiError> + Send + Sync;

/// A generation register on a SCSI disk, or a partition of one, that is ftvm's alone. It has room for 64 guests, which
/// keep their place. Needs CAP_SYS_RAWIO, and at least 2 MiB.
pub struct SharedLun {
    path: PathBuf,
    guest: String,
    open: Box<Opener>,
}

impl fmt::Debug for SharedLun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedLun({} on {})", self.guest, self.path.display())
    }
}

impl SharedLun {
    /// The register of `guest` on the device `path`. Touches nothing yet.
    ///
    /// # Errors
    /// When `guest` is no plain name: 1 to 64 letters, digits, `.`, `-` or `_`, not beginning with a dot.
    pub fn new(path: impl Into<PathBuf>, guest: &str) -> Result<Self, ArbiterError> {
        check_name("guest", guest)?;
        let path = path.into();
        let device = path.clone();
        Ok(SharedLun {
            path,
            guest: guest.to_owned(),
            open: Box::new(move || Ok(Box::new(ScsiDevice::open(&device)?))),
        })
    }

    /// What the device holds now. A block that seems damaged is read again for some 0.3 s.
    fn table(&self) -> Result<SlotTable<'_>, ArbiterError> {
        let device = (self.open)().map_err(failed)?;
        if device.blocks() < BLOCKS || device.blocks().saturating_mul(device.block_bytes()) < 2 * ZERO_BEGINNING {
            return Err(unusable(LunError::Small(self.path.clone())));
        }
        let blocks = device.read(0, BLOCKS).map_err(failed)?;
        let mut table = SlotTable::new(self, device, blocks);
        for _ in 0..TRIES {
            if table.is_sound() {
                break;
            }
            thread::sleep(TORN);
            table.read_again()?;
        }
        Ok(table)
    }

    /// What the device holds now, which must be in use.
    fn formatted(&self) -> Result<SlotTable<'_>, ArbiterError> {
        let table = self.table()?;
        if table.is_formatted()? {
            return Ok(table);
        }
        Err(ArbiterError::unreachable(LunError::Empty(self.path.clone())))
    }

    /// Takes the device into use if it is zeroed, and gives the guest a slot if it has none.
    fn prepare(&self) -> Result<(), ArbiterError> {
        for _ in 0..TRIES {
            let table = self.table()?;
            if !table.is_formatted()? {
                table.check_zeroed()?;
                table.swap(0, &header(table.block_len()))?;
            } else if table.slot()?.is_some() {
                return Ok(());
            } else {
                table.take_slot()?;
            }
        }
        Err(self.changing())
    }

    fn changing(&self) -> ArbiterError {
        ArbiterError::unreachable(LunError::Changing(self.path.clone()))
    }

    /// Replaces the guest's nonce block by what `new` makes of its content; leaves it alone if that is nothing.
    fn set_nonce(&self, new: impl Fn(&SlotTable<'_>, Option<Cell>) -> Option<Vec<u8>>) -> Result<(), ArbiterError> {
        for _ in 0..TRIES {
            let table = self.formatted()?;
            let block = table.nonce_block()?;
            let held = table.nonce(block)?;
            let Some(new) = new(&table, held) else { return Ok(()) };
            if table.swap(block, &new)? == Compared::Written {
                return Ok(());
            }
        }
        Err(self.changing())
    }
}

impl GenerationRegister for SharedLun {
    /// The block as it was read, and its number.
    type Place = (Vec<u8>, u64);

    fn newest(&self) -> Result<(Option<GenerationRecord>, Self::Place), ArbiterError> {
        let table = self.formatted()?;
        let (block, cell) = table.own_slot()?;
        let held = table.block(block).to_vec();
        if cell.content.is_empty() {
            return Ok((None, (held, block)));
        }
        let record = GenerationRecord::parse_any(&cell.content).map_err(|error| table.foreign(block, error))?;
        Ok((Some(record), (held, block)))
    }

    fn attempt(&self, (held, block): Self::Place, record: &GenerationRecord) -> Result<(), ArbiterError> {
        let device = (self.open)().map_err(failed)?;
        let new = encode(CellKind::Register, &self.guest, record.encode().as_bytes(), held.len());
        device.compare_and_write(block, &held, &new).map(drop).map_err(failed)
    }

    fn settle(&self) -> Result<(), ArbiterError> {
        (self.open)().and_then(|device| device.synchronize()).map_err(failed)
    }

    fn remedy(&self) -> String {
        let (path, guest) = (self.path.display(), &self.guest);
        format!("run `ftvm disown --shared scsi:{path} --name {guest}`")
    }
}

impl TestAndSet for SharedLun {
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<ClaimOutcome, ArbiterError> {
        register::claim(self, generation, owner, me)
    }
}

impl Arbiter for SharedLun {
    /// Takes a zeroed device into use, and gives the guest one of its slots.
    fn start(&self, me: u128) -> Result<u64, ArbiterError> {
        check_id(me)?;
        self.prepare()?;
        register::start(self, me).map(register::Started::generation)
    }

    fn end(&self, me: u128) -> Result<(), ArbiterError> {
        register::end(self, me).map(drop)
    }

    fn disown(&self) -> Result<(), ArbiterError> {
        register::disown(self).map(drop)
    }

    fn last(&self) -> Result<Option<GenerationRecord>, ArbiterError> {
        let table = self.table()?;
        if !table.is_formatted()? || table.slot()?.is_none() {
            return Ok(None);
        }
        Ok(GenerationRegister::newest(self)?.0)
    }

    /// Replaces the guest's nonce block by itself, for the device may not know COMPARE AND WRITE, or be
    /// write-protected.
    fn check_access(&self) -> Result<(), ArbiterError> {
        let table = self.formatted()?;
        let block = table.nonce_block()?;
        table.swap(block, table.block(block)).map(drop)
    }

    /// There is room for one nonce of a guest: an older one is replaced, whatever its name.
    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        check_name("nonce", name)?;
        check_nonce(name, bytes)?;
        self.set_nonce(|table, _| Some(encode(CellKind::Nonce, name, bytes, table.block_len())))
    }

    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        check_name("nonce", name)?;
        let table = self.formatted()?;
        let block = table.nonce_block()?;
        match table.nonce(block)? {
            Some(cell) if cell.name == name => check_nonce(name, &cell.content).map(|()| cell.content),
            _ => Err(no_nonce(
                format!("the nonce {name} to the shared device"),
                "Give both hosts the same device, for instance by its /dev/disk/by-id name",
            )),
        }
    }

    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        check_name("nonce", name)?;
        self.set_nonce(|table, held| {
            held.filter(|cell| cell.name == name)
                .map(|_| vec![0; table.block_len()])
        })
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
