//! The test-and-set as a block of a SCSI device that both hosts see.
//!
//! COMPARE AND WRITE (SBC-3, 5.3) replaces one logical block if it still holds what was read, and the device itself sees to
//! it that nothing comes between. It is what cluster file systems use for the same end, and every array that serves them has
//! it. A generation's record lies in one block ([`layout`]); nothing is ever removed, so a claim that was long on its way
//! finds another content and does nothing. Whatever the device answers, the block is read back and believed instead.
//!
//! The device is ftvm's own. A zeroed one is taken into use by the first start; one with any other content is refused, and
//! not written to. Commands go past the host's page cache (`crate::scsi`), each call opens the device anew, because a path
//! that was lost comes back as another device, and no answer is given before the block is stable.

mod layout;

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use self::layout::{BLOCKS, Cell, Kind, SLOTS, decode, encode, header, register_block};
use super::register::{self, Register, check_id, check_nonce, foreign, no_nonce, plain_name};
use super::{Arbiter, ArbiterError, Outcome, Record, TestAndSet};
use crate::scsi::{Compared, Device, ScsiError, Trouble};

/// How often a block that others write is tried. Each failure is someone's start, join or end.
const TRIES: u32 = 16;

/// Before a block that seems damaged is read again.
const TORN: Duration = Duration::from_millis(20);

/// What must be zero at the beginning of a device that is to be taken into use, and at its end, in bytes: boot sectors,
/// partition tables, the superblocks of file systems, RAIDs and volume groups lie there.
const ZERO_BEGINNING: u64 = 1 << 20;
const ZERO_END: u64 = 128 << 10;

/// What the arbiter needs of a device.
trait Blocks {
    fn block_bytes(&self) -> u64;
    fn blocks(&self) -> u64;
    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, ScsiError>;
    fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError>;
    fn synchronize(&self) -> Result<(), ScsiError>;
}

impl Blocks for Device {
    fn block_bytes(&self) -> u64 {
        u64::from(self.capacity().block_bytes)
    }

    fn blocks(&self) -> u64 {
        self.capacity().blocks
    }

    fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, ScsiError> {
        Device::read(self, block, count)
    }

    fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError> {
        Device::compare_and_write(self, block, expected, new)
    }

    fn synchronize(&self) -> Result<(), ScsiError> {
        Device::synchronize(self, 0, u32::try_from(BLOCKS).unwrap_or(0))
    }
}

type Opener = dyn Fn() -> Result<Box<dyn Blocks>, ScsiError> + Send + Sync;

/// A generation register on a SCSI disk, or a partition of one, that is ftvm's alone. It has room for 64 guests, which keep
/// their place. Needs CAP_SYS_RAWIO, and at least 2 MiB.
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
        plain_name("guest", guest)?;
        let path = path.into();
        let device = path.clone();
        Ok(SharedLun {
            path,
            guest: guest.to_owned(),
            open: Box::new(move || Ok(Box::new(Device::open(&device)?))),
        })
    }

    fn table(&self) -> Result<Table<'_>, ArbiterError> {
        let device = (self.open)().map_err(failed)?;
        if device.blocks() < BLOCKS || device.blocks().saturating_mul(device.block_bytes()) < 2 * ZERO_BEGINNING {
            return Err(self.unusable(format!("is smaller than 2 MiB or {BLOCKS} blocks")));
        }
        let blocks = device.read(0, BLOCKS).map_err(failed)?;
        let lun = self;
        let mut table = Table { lun, device, blocks };
        for _ in 0..TRIES {
            if table.is_sound() {
                break;
            }
            thread::sleep(TORN);
            table.blocks = table.device.read(0, BLOCKS).map_err(failed)?;
        }
        Ok(table)
    }

    /// This device, in use: with a header that is ours.
    fn formatted(&self) -> Result<Table<'_>, ArbiterError> {
        let table = self.table()?;
        if table.is_formatted()? {
            return Ok(table);
        }
        Err(ArbiterError::Unreachable {
            what: format!(
                "{} is empty; is it the device on which the guest was started?",
                self.path.display()
            ),
        })
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
        ArbiterError::Unreachable {
            what: format!("{} changes while it is read", self.path.display()),
        }
    }

    fn unusable(&self, what: String) -> ArbiterError {
        ArbiterError::Broken {
            what: format!("{} {what}", self.path.display()),
            advice: "Give ftvm a SCSI device or partition of its own. If nothing on this one is needed any more, zero it \
                     (for instance with `blkdiscard --zeroout`), and start again",
        }
    }

    /// The slot's nonce block, as it becomes `new`.
    fn set_nonce(&self, new: impl Fn(&Table<'_>, Option<Cell>) -> Option<Vec<u8>>) -> Result<(), ArbiterError> {
        for _ in 0..TRIES {
            let table = self.formatted()?;
            let block = table.nonce_block()?;
            let held = decode(Kind::Nonce, table.block(block)).map_err(|error| foreign(&table.place(block), error))?;
            let Some(new) = new(&table, held) else { return Ok(()) };
            if table.swap(block, &new)? == Compared::Written {
                return Ok(());
            }
        }
        Err(self.changing())
    }
}

/// What the device held when it was last looked at.
struct Table<'a> {
    lun: &'a SharedLun,
    device: Box<dyn Blocks>,
    blocks: Vec<u8>,
}

impl Table<'_> {
    fn block_len(&self) -> usize {
        usize::try_from(self.device.block_bytes()).expect("blocks are short")
    }

    fn block(&self, number: u64) -> &[u8] {
        let (number, length) = (usize::try_from(number).expect("the table is short"), self.block_len());
        &self.blocks[number * length..(number + 1) * length]
    }

    fn place(&self, block: u64) -> String {
        format!("block {block} of {}", self.lun.path.display())
    }

    fn is_formatted(&self) -> Result<bool, ArbiterError> {
        let first = self.block(0);
        match decode(Kind::Header, first) {
            Ok(None) => Ok(false),
            Ok(Some(_)) if first == header(self.block_len()) => Ok(true),
            Ok(Some(cell)) => Err(self.lun.unusable(format!(
                "says it is '{}', which this version of ftvm cannot use",
                cell.content.escape_ascii()
            ))),
            Err(_) => Err(self.lun.unusable("holds something that is not ftvm's".to_owned())),
        }
    }

    /// Whether no block of a device in use is damaged. COMPARE AND WRITE is atomic, but a READ beside it may bring a block that
    /// is half written (seen with LIO): that is over soon.
    fn is_sound(&self) -> bool {
        let sound = |block: u64| {
            let kind = if block % 2 == 1 { Kind::Register } else { Kind::Nonce };
            decode(kind, self.block(block)).is_ok()
        };
        self.block(0) != header(self.block_len()) || (1..BLOCKS).all(sound)
    }

    fn check_zeroed(&self) -> Result<(), ArbiterError> {
        let (blocks, bytes) = (self.device.blocks(), self.device.block_bytes());
        let (beginning, end) = ((ZERO_BEGINNING / bytes).max(BLOCKS), ZERO_END / bytes);
        for (first, count) in [
            (0, beginning.min(blocks)),
            (blocks.saturating_sub(end), end.min(blocks)),
        ] {
            let content = self.device.read(first, count).map_err(failed)?;
            if content.iter().any(|byte| *byte != 0) {
                return Err(self.lun.unusable(format!(
                    "is not zeroed (something lies in its {count} blocks from {first} on), so it may be in use"
                )));
            }
        }
        Ok(())
    }

    /// Replaces a block by `new`, if it is still as it was read.
    fn swap(&self, block: u64, new: &[u8]) -> Result<Compared, ArbiterError> {
        self.device
            .compare_and_write(block, self.block(block), new)
            .map_err(failed)
    }

    /// The guest's register.
    fn slot(&self) -> Result<Option<(u64, Cell)>, ArbiterError> {
        let mut damaged = None;
        for slot in 0..SLOTS {
            let block = register_block(slot);
            match decode(Kind::Register, self.block(block)) {
                Ok(Some(cell)) if cell.name == self.lun.guest => return Ok(Some((block, cell))),
                Ok(_) => {}
                Err(error) => damaged = damaged.or(Some(foreign(&self.place(block), error))),
            }
        }
        // It may be this guest's.
        damaged.map_or(Ok(None), Err)
    }

    /// The guest's register, which must be there.
    fn own_slot(&self) -> Result<(u64, Cell), ArbiterError> {
        self.slot()?.ok_or_else(|| ArbiterError::Unreachable {
            what: format!(
                "no guest '{}' was ever started on {}",
                self.lun.guest,
                self.lun.path.display()
            ),
        })
    }

    /// The block of the guest's nonce.
    fn nonce_block(&self) -> Result<u64, ArbiterError> {
        self.own_slot().map(|(block, _)| block + 1)
    }

    fn take_slot(&self) -> Result<(), ArbiterError> {
        let free = (0..SLOTS)
            .map(register_block)
            .find(|block| self.block(*block).iter().all(|byte| *byte == 0));
        let Some(free) = free else {
            return Err(self
                .lun
                .unusable(format!("holds {SLOTS} guests already, and they keep their places")));
        };
        // If somebody was faster, the next look tells who.
        self.swap(free, &encode(Kind::Register, &self.lun.guest, &[], self.block_len()))
            .map(drop)
    }
}

impl Register for SharedLun {
    /// The block as it was read, and its number.
    type Place = (Vec<u8>, u64);

    fn newest(&self) -> Result<(Option<Record>, Self::Place), ArbiterError> {
        let table = self.formatted()?;
        let (block, cell) = table.own_slot()?;
        let held = table.block(block).to_vec();
        if cell.content.is_empty() {
            return Ok((None, (held, block)));
        }
        let record = Record::parse_any(&cell.content).map_err(|error| foreign(&table.place(block), error))?;
        Ok((Some(record), (held, block)))
    }

    fn attempt(&self, (held, block): Self::Place, record: &Record) -> Result<(), ArbiterError> {
        let device = (self.open)().map_err(failed)?;
        let new = encode(Kind::Register, &self.guest, record.encode().as_bytes(), held.len());
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
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<Outcome, ArbiterError> {
        register::claim(self, generation, owner, me)
    }
}

impl Arbiter for SharedLun {
    /// Takes a zeroed device into use, and gives the guest one of its places.
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

    fn last(&self) -> Result<Option<Record>, ArbiterError> {
        let table = self.table()?;
        if !table.is_formatted()? || table.slot()?.is_none() {
            return Ok(None);
        }
        Ok(register::Register::newest(self)?.0)
    }

    /// Replaces the guest's nonce block by itself: the device may not know COMPARE AND WRITE, or be write-protected.
    fn check_access(&self) -> Result<(), ArbiterError> {
        let table = self.formatted()?;
        let block = table.nonce_block()?;
        table.swap(block, table.block(block)).map(drop)
    }

    /// A guest has one nonce: an older one, whatever its name, is replaced.
    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        plain_name("nonce", name)?;
        check_nonce(name, bytes)?;
        self.set_nonce(|table, _| Some(encode(Kind::Nonce, name, bytes, table.block_len())))
    }

    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        plain_name("nonce", name)?;
        let table = self.formatted()?;
        let block = table.nonce_block()?;
        let held = decode(Kind::Nonce, table.block(block)).map_err(|error| foreign(&table.place(block), error))?;
        match held {
            Some(cell) if cell.name == name => check_nonce(name, &cell.content).map(|()| cell.content),
            _ => Err(no_nonce(
                &format!("the nonce {name} to the shared device"),
                "Give both hosts the same device, for instance by its /dev/disk/by-id name",
            )),
        }
    }

    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        plain_name("nonce", name)?;
        self.set_nonce(|table, held| {
            held.filter(|cell| cell.name == name)
                .map(|_| vec![0; table.block_len()])
        })
    }
}

/// Sorts an error into "wait" and "act".
fn failed(error: ScsiError) -> ArbiterError {
    let advice = match &error {
        error if error.is_retryable() => {
            return ArbiterError::Unreachable {
                what: error.to_string(),
            };
        }
        ScsiError::Command { trouble, .. } => match trouble {
            Trouble::Unsupported { .. } => {
                "The device must know COMPARE AND WRITE (VMware calls it ATS): LIO and most arrays do, plain disks do not"
            }
            Trouble::ReservationConflict => "The device of the test-and-set must not be reserved by anyone",
            _ => "Make the device writable for this host",
        },
        ScsiError::System { .. } => {
            "ftvm must be allowed to send any SCSI command: run it as root, or with CAP_SYS_RAWIO"
        }
        _ => "The shared device must be a whole SCSI disk or a partition of one, such as an iSCSI or Fibre Channel LUN",
    };
    let what = error.to_string();
    ArbiterError::Broken { what, advice }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
