//! A block device that takes SCSI commands.
//!
//! Commands by SG_IO do not pass through the kernel's block layer: no page cache and no partition table are between, so a
//! partition's place on its disk is added here, and a device whose blocks are not those of one SCSI disk (a logical volume,
//! an encrypted device) is refused, for commands to it would hit the wrong blocks of the disk below.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;

use super::ScsiError;
use super::cdb::{self, Capacity, Change, Holder};
use super::sg::{self, Data};
use super::status::{Answer, Trouble, judge};

/// After this time the kernel gives a command up, in ms: longer than an array takes to move a LUN to its other controller.
const TIMEOUT_MS: u32 = 30_000;

/// COMPARE AND WRITE's data begins on a page: of data that crosses from one page to the next, Linux's target (LIO) takes the
/// second half from behind the first within the same page (`compare_and_write_callback`), and writes what happens to be there.
const PAGE: usize = 4096;

/// How often a command is sent again that was certainly not executed. A reset of the device and each change of its
/// reservations cause one unit attention.
const TRIES: u32 = 10;

/// Between two tries at a busy device.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes of one read: every adapter can do that.
const TRANSFER: u64 = 64 << 10;

/// What COMPARE AND WRITE came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The block was as expected and is now as wanted.
    Written,
    /// The block was different and still is what it was.
    Differs,
}

/// An open device: a whole SCSI disk, or a partition of one.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    /// Block of the disk where this device begins.
    first: u64,
    capacity: Capacity,
    part: Part,
}

/// How much of a disk a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Partition,
}

impl Device {
    /// Opens `path` for reading and writing.
    ///
    /// # Errors
    /// [`ScsiError::System`], [`ScsiError::Unfit`], and those of READ CAPACITY.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ScsiError> {
        let path = path.into();
        let system = |action| {
            let path = path.clone();
            move |cause| ScsiError::System { action, path, cause }
        };
        // O_NONBLOCK: neither a FIFO under this name nor a device without medium must block.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("the kernel's open flags are an int");
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path);
        let file = opened.map_err(system("open"))?;
        let metadata = file.metadata().map_err(system("examine"))?;
        if !metadata.file_type().is_block_device() {
            let what = "is no block device: SCSI commands need one, such as /dev/disk/by-id/scsi-…".to_owned();
            return Err(ScsiError::Unfit { path, what });
        }
        let device = rustix::fs::major(metadata.st_rdev());
        let sysfs = format!("/sys/dev/block/{device}:{}", rustix::fs::minor(metadata.st_rdev()));
        let extent = Extent::read(Path::new(&sysfs)).map_err(system("find in /sys"))?;
        let mut device = Device {
            file,
            path,
            first: 0,
            capacity: Capacity {
                blocks: 0,
                block_bytes: 0,
            },
            part: extent.part,
        };
        let disk = device.read_capacity()?;
        (device.first, device.capacity) = extent.on(disk).map_err(|what| device.unfit(what))?;
        Ok(device)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether it is all of its disk: reservations cover no less.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.part == Part::Whole
    }

    /// Reads `count` blocks from `block` on, from the device itself.
    ///
    /// # Errors
    /// [`ScsiError::Unfit`] for blocks that it has not; else [`ScsiError::Command`] or [`ScsiError::System`].
    pub fn read(&self, block: u64, count: u64) -> Result<Vec<u8>, ScsiError> {
        self.check(block, count)?;
        let bytes = u64::from(self.capacity.block_bytes);
        let at_once = (TRANSFER / bytes).max(1);
        let mut content = Vec::new();
        let mut done = 0;
        while done < count {
            let blocks = (count - done).min(at_once);
            let (number, length) = (to_u32(blocks), to_usize(blocks * bytes));
            let mut part = vec![0; length];
            let read = self.execute(
                "READ(16)",
                &cdb::read(self.first + block + done, number),
                &mut Payload::In(&mut part),
            )?;
            if read != length {
                let what = format!("{read} bytes of {length}");
                return Err(self.nonsense("READ(16)", what));
            }
            content.append(&mut part);
            done += blocks;
        }
        Ok(content)
    }

    /// Replaces `block`, which must hold `expected`, by `new`: atomically, for everyone who uses the device.
    ///
    /// # Errors
    /// As [`Device::read`]; the block may have been written all the same, even later, if [`Trouble::Unclear`].
    ///
    /// # Panics
    /// If the contents are no blocks.
    pub fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError> {
        let length = to_usize(u64::from(self.capacity.block_bytes));
        assert!(expected.len() == length && new.len() == length, "one block each");
        self.check(block, 1)?;
        let cdb = cdb::compare_and_write(self.first + block);
        let mut room = vec![0; 2 * length + PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        let payload = &mut room[start..start + 2 * length];
        payload[..length].copy_from_slice(expected);
        payload[length..].copy_from_slice(new);
        match self.execute("COMPARE AND WRITE", &cdb, &mut Payload::Out(payload)) {
            Ok(_) => Ok(Compared::Written),
            Err(ScsiError::Command {
                trouble: Trouble::Miscompare,
                ..
            }) => Ok(Compared::Differs),
            Err(error) => Err(error),
        }
    }

    /// Makes `count` blocks from `block` on stable. A device that does not know the command has no cache to lose.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn synchronize(&self, block: u64, count: u32) -> Result<(), ScsiError> {
        self.check(block, u64::from(count))?;
        let cdb = cdb::synchronize_cache(self.first + block, count);
        match self.execute("SYNCHRONIZE CACHE(16)", &cdb, &mut Payload::None) {
            Ok(_)
            | Err(ScsiError::Command {
                trouble: Trouble::Unsupported { .. },
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The keys with which initiators are registered.
    ///
    /// # Errors
    /// [`ScsiError::Command`], [`ScsiError::System`] or [`ScsiError::Answer`].
    pub fn registered(&self) -> Result<Vec<u64>, ScsiError> {
        let answer = self.reserve_in("READ KEYS", &cdb::read_keys())?;
        cdb::parse_keys(&answer).map_err(|what| self.nonsense("READ KEYS", what))
    }

    /// Who holds the persistent reservation.
    ///
    /// # Errors
    /// As [`Device::registered`].
    pub fn holder(&self) -> Result<Option<Holder>, ScsiError> {
        let answer = self.reserve_in("READ RESERVATION", &cdb::read_reservation())?;
        cdb::parse_reservation(&answer).map_err(|what| self.nonsense("READ RESERVATION", what))
    }

    pub(super) fn change_reservation(&self, name: &'static str, change: Change) -> Result<(), ScsiError> {
        let (cdb, parameters) = cdb::persistent_reserve_out(change);
        self.execute(name, &cdb, &mut Payload::Out(&parameters)).map(drop)
    }

    fn reserve_in(&self, name: &'static str, cdb: &[u8]) -> Result<Vec<u8>, ScsiError> {
        let mut answer = vec![0; cdb::KEYS];
        let read = self.execute(name, cdb, &mut Payload::In(&mut answer))?;
        answer.truncate(read);
        Ok(answer)
    }

    fn read_capacity(&self) -> Result<Capacity, ScsiError> {
        let mut answer = [0; cdb::CAPACITY];
        let read = self.execute(
            "READ CAPACITY(16)",
            &cdb::read_capacity(),
            &mut Payload::In(&mut answer),
        )?;
        cdb::parse_capacity(&answer[..read.min(cdb::CAPACITY)]).map_err(|what| self.nonsense("READ CAPACITY(16)", what))
    }

    /// Executes a command, again where it certainly was not; the number of bytes that travelled.
    fn execute(&self, command: &'static str, cdb: &[u8], payload: &mut Payload<'_>) -> Result<usize, ScsiError> {
        let mut tries = 0;
        loop {
            let data = match payload {
                Payload::None => Data::None,
                Payload::Out(bytes) => Data::Out(bytes),
                Payload::In(bytes) => Data::In(bytes),
            };
            let reply = sg::execute(&self.file, cdb, data, TIMEOUT_MS).map_err(|cause| self.refused(command, cause))?;
            let answer = Answer {
                status: reply.status,
                host: reply.host,
                sense: &reply.sense,
            };
            let trouble = match judge(answer) {
                Ok(()) => return Ok(reply.transferred),
                Err(trouble) => trouble,
            };
            tries += 1;
            match trouble {
                Trouble::UnitAttention { .. } if tries < TRIES => {}
                Trouble::Busy { .. } if tries < TRIES => thread::sleep(PAUSE),
                _ => {
                    let path = self.path.clone();
                    return Err(ScsiError::Command { path, command, trouble });
                }
            }
        }
    }

    /// The kernel did not pass a command on.
    fn refused(&self, command: &'static str, cause: io::Error) -> ScsiError {
        match cause.raw_os_error() {
            // ENOTTY, EINVAL, EOPNOTSUPP, ENOIOCTLCMD: of drivers without SCSI commands, such as virtio-blk, NVMe and loop.
            Some(25 | 22 | 95 | 515) => self.unfit("takes no SCSI commands: it is no SCSI disk".to_owned()),
            // EPERM
            Some(1) => self.unfit(format!(
                "may not be sent {command} by this process: it needs CAP_SYS_RAWIO, as root has it"
            )),
            _ => ScsiError::System {
                action: command,
                path: self.path.clone(),
                cause,
            },
        }
    }

    fn check(&self, block: u64, count: u64) -> Result<(), ScsiError> {
        let blocks = self.capacity.blocks;
        if block.checked_add(count).is_some_and(|end| end <= blocks) {
            return Ok(());
        }
        Err(self.unfit(format!("has {blocks} blocks: {count} at {block} are not among them")))
    }

    fn unfit(&self, what: String) -> ScsiError {
        let path = self.path.clone();
        ScsiError::Unfit { path, what }
    }

    fn nonsense(&self, command: &'static str, what: String) -> ScsiError {
        let path = self.path.clone();
        ScsiError::Answer { path, command, what }
    }
}

enum Payload<'a> {
    None,
    Out(&'a [u8]),
    In(&'a mut [u8]),
}

/// Where the kernel says that a device lies on its disk, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    part: Part,
    start: u64,
    sectors: u64,
}

impl Extent {
    fn read(sysfs: &Path) -> io::Result<Extent> {
        let number = |name: &str| -> io::Result<u64> {
            let text = fs::read_to_string(sysfs.join(name))?;
            text.trim().parse().map_err(io::Error::other)
        };
        let (part, start) = match sysfs.join("partition").exists() {
            true => (Part::Partition, number("start")?),
            false => (Part::Whole, 0),
        };
        let sectors = number("size")?;
        Ok(Extent { part, start, sectors })
    }

    /// First block and size on a disk of that capacity; the error ends a sentence.
    fn on(self, disk: Capacity) -> Result<(u64, Capacity), String> {
        let sectors = u64::from(disk.block_bytes / 512);
        if !self.start.is_multiple_of(sectors) || !self.sectors.is_multiple_of(sectors) {
            return Err(format!("does not lie on whole blocks of {} bytes", disk.block_bytes));
        }
        let (first, blocks) = (self.start / sectors, self.sectors / sectors);
        let fits = match self.part {
            Part::Whole => blocks == disk.blocks,
            Part::Partition => first.checked_add(blocks).is_some_and(|end| end <= disk.blocks),
        };
        if !fits {
            return Err(format!(
                "is not one SCSI disk or a partition of it: it has {blocks} blocks, the disk that answers has {}",
                disk.blocks
            ));
        }
        let block_bytes = disk.block_bytes;
        Ok((first, Capacity { blocks, block_bytes }))
    }
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).expect("a transfer is short")
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("a transfer is short")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Capacity = Capacity {
        blocks: 1000,
        block_bytes: 4096,
    };

    fn placed(part: Part, start: u64, sectors: u64) -> Result<(u64, u64), String> {
        let placed = Extent { part, start, sectors }.on(DISK);
        placed.map(|(first, capacity)| (first, capacity.blocks))
    }

    #[test]
    fn partitions_lie_where_the_kernel_says() {
        assert_eq!(placed(Part::Whole, 0, 8000), Ok((0, 1000)));
        assert_eq!(placed(Part::Partition, 80, 7920), Ok((10, 990)));
        for (start, sectors) in [(80, 7928), (81, 7920), (80, 7921), (u64::MAX - 7, 8)] {
            assert!(placed(Part::Partition, start, sectors).is_err(), "{start} {sectors}");
        }
    }

    #[test]
    fn what_is_no_whole_disk_is_refused() {
        // A logical volume, for one, passes commands on to a larger disk.
        for sectors in [7992, 8008] {
            let why = placed(Part::Whole, 0, sectors).unwrap_err();
            assert!(why.contains("not one SCSI disk"), "{why}");
        }
    }

    #[test]
    fn files_take_no_scsi_commands() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = Device::open(file.path()).unwrap_err().to_string();
        assert!(text.contains("no block device"), "{text}");
        let error = Device::open("/dev/no/such").unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("/dev/no/such"),
            "{error}"
        );
    }
}
