//! A block device that takes SCSI commands.
//!
//! Commands by SG_IO do not pass through the kernel's block layer. No page cache is in between, and no partition table
//! either, so the place of a partition on its disk is added here. A device whose blocks are not those of one SCSI disk,
//! such as a logical volume or an encrypted device, is refused: commands to it would hit the wrong blocks of the disk
//! below.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};

use super::ScsiError;
use super::cdb::{self, Capacity, Change, Holder, ScsiAnswerError};
use super::span::{DiskPart, DiskSpan};
use super::status::{CommandFault, judge};
use crate::aligned::{AlignedBuffer, PAGE};
use crate::syscall::sg::{self, Payload};

/// After this time, in milliseconds, the kernel gives a command up. It is longer than an array takes to move a LUN to
/// its other controller.
const TIMEOUT_MS: u32 = 30_000;

/// How often a command is sent that was certainly not executed before. A reset of the device, and each change of its
/// reservations, make it refuse one command with a unit attention.
const TRIES: u32 = 10;

/// ENOIOCTLCMD, with which some of the kernel's drivers refuse an ioctl. It is meant to stay within the kernel, so it
/// has no name in the C library.
const NO_IOCTL: i32 = 515;

/// Time between two tries at a busy device.
const PAUSE: Duration = Duration::from_millis(50);

/// The most bytes of one read: every adapter can do that many.
const TRANSFER: u64 = 64 << 10;

/// What COMPARE AND WRITE has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// The block was as expected and is now as wanted.
    Written,
    /// The block was different and still is what it was.
    Differs,
}

/// An open device: a whole SCSI disk, or a partition of one.
#[derive(Debug)]
pub struct ScsiDevice {
    file: File,
    path: PathBuf,
    /// The block of the disk at which this device begins.
    first: u64,
    capacity: Capacity,
    part: DiskPart,
}

/// Why a device cannot be used; ends a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A file, or a device of another kind.
    #[error("is no block device: SCSI commands need one, such as /dev/disk/by-id/scsi-…")]
    NoBlockDevice,
    /// The driver passes no SCSI commands on.
    #[error("takes no SCSI commands: it is no SCSI disk")]
    NoScsi,
    /// This process may not send the command.
    #[error("may not be sent {command} by this process: it needs CAP_SYS_RAWIO, as root has it")]
    Forbidden {
        /// The command's name.
        command: &'static str,
    },
    /// Blocks behind the end.
    #[error("has {blocks} blocks: {count} at {block} are not among them")]
    Range {
        /// The size of the device in blocks.
        blocks: u64,
        /// The first block asked for.
        block: u64,
        /// How many were asked for.
        count: u64,
    },
    /// It begins or ends within a block.
    #[error("does not lie on whole blocks of {block_bytes} bytes")]
    PartOfBlock {
        /// Bytes of a block.
        block_bytes: u32,
    },
    /// The kernel and the device know different sizes of it.
    #[error(
        "is not one SCSI disk or a partition of it: it has {blocks} blocks, the disk that answers has {disk_blocks}"
    )]
    NotOneDisk {
        /// By the kernel.
        blocks: u64,
        /// By the device.
        disk_blocks: u64,
    },
    /// A partition, where a reservation is wanted.
    #[error("is a partition: a reservation covers its whole disk, so reserve=on needs that")]
    Partition,
}

impl ScsiDevice {
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
        // With O_NONBLOCK neither a FIFO under this name nor a device without a medium blocks the open.
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&path);
        let file = opened.map_err(system("open"))?;
        let metadata = file.metadata().map_err(system("examine"))?;
        if !metadata.file_type().is_block_device() {
            let cause = Unfit::NoBlockDevice;
            return Err(ScsiError::Unfit { path, cause });
        }
        let number = metadata.st_rdev();
        let sysfs = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        let span = DiskSpan::read(Path::new(&sysfs)).map_err(system("find in /sys"))?;
        let mut device = ScsiDevice {
            file,
            path,
            first: 0,
            capacity: Capacity {
                blocks: 0,
                block_bytes: 0,
            },
            part: span.part,
        };
        let disk = device.read_capacity()?;
        (device.first, device.capacity) = span.on(disk).map_err(|cause| device.unfit(cause))?;
        Ok(device)
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether it is a whole disk and no partition: a reservation covers no less.
    pub(super) fn is_whole(&self) -> bool {
        self.part == DiskPart::Whole
    }

    /// Reads `count` blocks from `block` on, from the device itself and not from a cache of this host.
    ///
    /// # Errors
    /// [`ScsiError::Unfit`] for blocks that it does not have; else [`ScsiError::Command`], [`ScsiError::System`] or
    /// [`ScsiError::Answer`].
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
                let wanted = length;
                return Err(self.nonsense("READ(16)", ScsiAnswerError::Length { read, wanted }));
            }
            content.append(&mut part);
            done += blocks;
        }
        Ok(content)
    }

    /// Replaces `block`, which must hold `expected`, by `new`: atomically, for everyone who uses the device.
    ///
    /// # Errors
    /// As [`ScsiDevice::read`]. After [`CommandFault::Unclear`] the block may have been written all the same, or be
    /// written later.
    ///
    /// # Panics
    /// If the contents have not the size of a block.
    pub(crate) fn compare_and_write(&self, block: u64, expected: &[u8], new: &[u8]) -> Result<Compared, ScsiError> {
        let length = to_usize(u64::from(self.capacity.block_bytes));
        assert!(expected.len() == length && new.len() == length, "one block each");
        self.check(block, 1)?;
        let cdb = cdb::compare_and_write(self.first + block);
        // On a page: if the data cross from one page into the next, Linux's target (LIO) looks for the second half in
        // the first page, behind the first half, and writes what happens to be there (`compare_and_write_callback`).
        let mut buffer = AlignedBuffer::new(2 * length, PAGE);
        let payload = buffer.bytes();
        payload[..length].copy_from_slice(expected);
        payload[length..].copy_from_slice(new);
        match self.execute("COMPARE AND WRITE", &cdb, &mut Payload::Out(payload)) {
            Ok(_) => Ok(Compared::Written),
            Err(ScsiError::Command {
                fault: CommandFault::Miscompare,
                ..
            }) => Ok(Compared::Differs),
            Err(error) => Err(error),
        }
    }

    /// Makes `count` blocks from `block` on stable. A device that does not know the command has no cache that could be
    /// lost.
    ///
    /// # Errors
    /// As [`ScsiDevice::read`].
    pub(crate) fn synchronize(&self, block: u64, count: u32) -> Result<(), ScsiError> {
        self.check(block, u64::from(count))?;
        let cdb = cdb::synchronize_cache(self.first + block, count);
        match self.execute("SYNCHRONIZE CACHE(16)", &cdb, &mut Payload::None) {
            Ok(_)
            | Err(ScsiError::Command {
                fault: CommandFault::Unsupported { .. },
                ..
            }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The keys with which hosts are registered.
    ///
    /// # Errors
    /// [`ScsiError::Command`], [`ScsiError::System`] or [`ScsiError::Answer`].
    pub fn registered(&self) -> Result<Vec<u64>, ScsiError> {
        let answer = self.reserve_in("READ KEYS", &cdb::read_keys())?;
        cdb::parse_keys(&answer).map_err(|cause| self.nonsense("READ KEYS", cause))
    }

    /// Who holds the persistent reservation.
    ///
    /// # Errors
    /// As [`ScsiDevice::registered`].
    pub(super) fn holder(&self) -> Result<Option<Holder>, ScsiError> {
        let answer = self.reserve_in("READ RESERVATION", &cdb::read_reservation())?;
        cdb::parse_reservation(&answer).map_err(|cause| self.nonsense("READ RESERVATION", cause))
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
        cdb::parse_capacity(&answer[..read.min(cdb::CAPACITY)])
            .map_err(|cause| self.nonsense("READ CAPACITY(16)", cause))
    }

    /// Executes a command, and sends it again if it certainly was not executed. Returns how many bytes travelled.
    fn execute(&self, command: &'static str, cdb: &[u8], payload: &mut Payload<'_>) -> Result<usize, ScsiError> {
        let mut tries = 0;
        loop {
            let reply = sg::execute(&self.file, cdb, payload, TIMEOUT_MS);
            let reply = reply.map_err(|cause| self.refused(command, cause))?;
            let fault = match judge(&reply) {
                Ok(()) => return Ok(reply.transferred),
                Err(fault) => fault,
            };
            tries += 1;
            match fault {
                CommandFault::UnitAttention { .. } if tries < TRIES => {}
                CommandFault::Busy { .. } if tries < TRIES => thread::sleep(PAUSE),
                _ => {
                    let path = self.path.clone();
                    return Err(ScsiError::Command { path, command, fault });
                }
            }
        }
    }

    /// The kernel did not pass a command on.
    fn refused(&self, command: &'static str, cause: io::Error) -> ScsiError {
        let system = |cause| ScsiError::System {
            action: command,
            path: self.path.clone(),
            cause,
        };
        match cause.raw_os_error() {
            // What drivers without SCSI commands answer, such as those of virtio-blk, NVMe and loop devices.
            Some(NO_IOCTL) => self.unfit(Unfit::NoScsi),
            Some(number) => match Errno::from_raw(number) {
                Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP => self.unfit(Unfit::NoScsi),
                Errno::EPERM => self.unfit(Unfit::Forbidden { command }),
                _ => system(cause),
            },
            None => system(cause),
        }
    }

    /// The device must have these blocks.
    fn check(&self, block: u64, count: u64) -> Result<(), ScsiError> {
        let blocks = self.capacity.blocks;
        if block.checked_add(count).is_some_and(|end| end <= blocks) {
            return Ok(());
        }
        Err(self.unfit(Unfit::Range { blocks, block, count }))
    }

    fn unfit(&self, cause: Unfit) -> ScsiError {
        let path = self.path.clone();
        ScsiError::Unfit { path, cause }
    }

    fn nonsense(&self, command: &'static str, cause: ScsiAnswerError) -> ScsiError {
        let path = self.path.clone();
        ScsiError::Answer { path, command, cause }
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

    #[test]
    fn files_take_no_scsi_commands() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = ScsiDevice::open(file.path()).unwrap_err().to_string();
        assert!(text.contains("no block device"), "{text}");
        let error = ScsiDevice::open("/dev/no/such").unwrap_err();
        assert!(
            error.is_retryable() && error.to_string().contains("/dev/no/such"),
            "{error}"
        );
    }
}
