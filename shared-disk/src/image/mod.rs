//! Virtual disks: raw image files and block devices.
//!
//! A disk that two hosts share is opened with O_DIRECT (PROTOCOL 8). With the page cache of one host in between, a
//! write would count as complete while the other host cannot read it yet, and a new primary would be served what it had
//! read before the old one wrote. Without it a write is complete when the other host would read it, and a flush when it
//! is stable. For the same reason a backup opens its shared disks for writing only after it has won the test-and-set.
//!
//! O_DIRECT wants memory, offsets and lengths aligned. Memory that is not goes through a bounce buffer. Offsets and
//! lengths are multiples of 512 bytes, while the device may have blocks of 4096; a transfer that does not fall on whole
//! blocks is widened to them. A widened read reads more; a widened write reads the blocks, changes them and writes them
//! back, while no other write to this image is under way. That is correct and slow.

mod direct;
mod error;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ftvm_schema::request::{DiskOp, DiskRequest};
use nix::fcntl::OFlag;
use parking_lot::RwLock;

use self::direct::{Alignment, BOUNCE_BYTES, UNALIGNED, direct_alignment};
pub use self::error::ImageError;
use crate::SECTOR;
use crate::aligned::AlignedBuffer;

/// The longest read that is made for a guest, in bytes; it needs a buffer of that size. Linux guests ask for a few MiB
/// at most.
const REQUEST_BYTES: u32 = 32 << 20;

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAccess {
    /// Writes are refused.
    ReadOnly,
    /// Reads, writes and flushes.
    ReadWrite,
}

/// Whether the host's page cache takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// O_DIRECT: for every disk that two hosts share.
    Direct,
    /// Through the page cache: for private disks, and for images that both sides open on one and the same host.
    Buffered,
}

/// An open disk image. All methods may be called from many threads at once. Requests that overlap are the caller's to
/// order, which [`plan`](crate::plan) does.
#[derive(Debug)]
pub struct DiskImage {
    file: File,
    path: PathBuf,
    access: ImageAccess,
    size: u64,
    alignment: Alignment,
    /// A read-modify-write takes it exclusively, other writes share it.
    rewriting: RwLock<()>,
    /// Requests of the guest that have failed.
    failures: AtomicU64,
}

impl DiskImage {
    /// Opens a raw image file or a block device.
    ///
    /// # Errors
    /// [`ImageError::Open`], [`ImageError::Kind`], [`ImageError::Size`], [`ImageError::NoDirect`] or
    /// [`ImageError::Alignment`].
    pub fn open(path: impl AsRef<Path>, access: ImageAccess, caching: Caching) -> Result<Self, ImageError> {
        let path = path.as_ref().to_owned();
        let flags = match caching {
            Caching::Direct => OFlag::O_DIRECT,
            Caching::Buffered => OFlag::empty(),
        };
        // With O_NONBLOCK a FIFO under this name does not block the open. Files and block devices ignore it.
        let flags = flags | OFlag::O_NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(access == ImageAccess::ReadWrite)
            .custom_flags(flags.bits())
            .open(&path);
        let file = file.map_err(|cause| match (caching, cause.kind()) {
            (Caching::Direct, io::ErrorKind::InvalidInput) => ImageError::NoDirect {
                path: path.clone(),
                cause,
            },
            _ => ImageError::Open {
                path: path.clone(),
                cause,
            },
        })?;
        let alignment = match caching {
            Caching::Direct => None,
            Caching::Buffered => Some(UNALIGNED),
        };
        Self::examine(file, path, access, alignment)
    }

    /// An image in `file`. Without a given `alignment` the system is asked for it.
    fn examine(
        file: File,
        path: PathBuf,
        access: ImageAccess,
        alignment: Option<Alignment>,
    ) -> Result<Self, ImageError> {
        let cannot_open = |cause| ImageError::Open {
            path: path.clone(),
            cause,
        };
        let kind = file.metadata().map_err(cannot_open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind { path });
        }
        // A block device has no length in its metadata, but it has an end.
        let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(cannot_open)?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(ImageError::Size { path, size });
        }
        let alignment = match alignment {
            Some(alignment) => alignment,
            None => direct_alignment(&file).map_err(|cause| ImageError::NoDirect {
                path: path.clone(),
                cause,
            })?,
        };
        if !size.is_multiple_of(widen(alignment.offset)) {
            return Err(ImageError::Alignment {
                path,
                size,
                alignment: alignment.offset,
            });
        }
        Ok(DiskImage {
            file,
            path,
            access,
            size,
            alignment,
            rewriting: RwLock::new(()),
            failures: AtomicU64::new(0),
        })
    }

    /// Locks the image (flock(2)) until it is dropped, against all who lock it as well: a primary and a backup on one
    /// host must not be given the same file as their private disk.
    ///
    /// # Errors
    /// [`ImageError::Locked`] if another has it.
    pub fn lock(&self) -> Result<(), ImageError> {
        self.file.try_lock().map_err(|cause| ImageError::Locked {
            path: self.path.clone(),
            cause: cause.into(),
        })
    }

    /// The size in bytes, a multiple of [`SECTOR`].
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `data` from `offset` on.
    ///
    /// # Errors
    /// [`ImageError::Range`] or [`ImageError::Io`]; `data` is undefined then.
    pub fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<(), ImageError> {
        self.check_range(offset, data.len())?;
        if self.is_aligned(offset, data) {
            return self.read_exactly(offset, data);
        }
        for (at, part) in self.pieces(offset, data.len()) {
            let (outer, inner) = self.widened(at, part.len());
            let mut bounce = AlignedBuffer::new(range_len(&outer), self.alignment.memory);
            self.read_exactly(outer.start, bounce.bytes())?;
            data[part].copy_from_slice(&bounce.bytes()[inner]);
        }
        Ok(())
    }

    /// Writes `data` from `offset` on. When it returns, the other host reads it; it is stable after a flush.
    ///
    /// # Errors
    /// [`ImageError::Range`], [`ImageError::ReadOnly`] or [`ImageError::Io`]; a part may have been written then.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ImageError> {
        self.check_range(offset, data.len())?;
        if self.access == ImageAccess::ReadOnly {
            return Err(ImageError::ReadOnly);
        }
        if self.is_aligned(offset, data) {
            let _shared = self.rewriting.read();
            return self.write_exactly(offset, data);
        }
        for (at, part) in self.pieces(offset, data.len()) {
            let (outer, inner) = self.widened(at, part.len());
            let mut bounce = AlignedBuffer::new(range_len(&outer), self.alignment.memory);
            if range_len(&outer) == part.len() {
                let _shared = self.rewriting.read();
                bounce.bytes().copy_from_slice(&data[part]);
                self.write_exactly(at, bounce.bytes())?;
            } else {
                let _exclusive = self.rewriting.write();
                self.read_exactly(outer.start, bounce.bytes())?;
                bounce.bytes()[inner].copy_from_slice(&data[part]);
                self.write_exactly(outer.start, bounce.bytes())?;
            }
        }
        Ok(())
    }

    /// Makes every write that has returned stable (fdatasync).
    ///
    /// # Errors
    /// [`ImageError::Io`]: which writes are lost is then unknown, and a later flush that succeeds says nothing of them.
    pub fn flush(&self) -> Result<(), ImageError> {
        self.file.sync_data().map_err(|cause| self.failed("flush", 0, 0, cause))
    }

    /// Does what `request` asks. Returns what a read brings, and nothing for a write or a flush.
    ///
    /// # Errors
    /// What the host said. It is logged as a warning too, as the guest sees no more of it than a status.
    pub fn perform(&self, request: &DiskRequest) -> Result<Vec<u8>, ImageError> {
        let result = match &request.op {
            DiskOp::Read { offset, len } => self.read_vec(*offset, *len),
            DiskOp::Write { offset, data } => self.write_at(*offset, data).map(|()| Vec::new()),
            DiskOp::Flush => self.flush().map(|()| Vec::new()),
        };
        result.inspect_err(|error| self.report(request, error))
    }

    fn read_vec(&self, offset: u64, len: u32) -> Result<Vec<u8>, ImageError> {
        let bytes = usize::try_from(len).ok().filter(|_| len <= REQUEST_BYTES);
        let bytes = bytes.ok_or(ImageError::Length { len })?;
        self.check_range(offset, bytes)?;
        let mut data = vec![0; bytes];
        self.read_at(offset, &mut data)?;
        Ok(data)
    }

    /// Logs a failure of a guest's request. A guest can provoke failures at will, so only the first, second, fourth,
    /// eighth and so on is shown.
    fn report(&self, request: &DiskRequest, error: &ImageError) {
        let count = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count.is_power_of_two() {
            tracing::warn!(
                "disk {} request {} failed, failure {count} of this disk: {error}",
                request.disk,
                request.id
            );
        }
    }

    fn check_range(&self, offset: u64, len: usize) -> Result<(), ImageError> {
        let fits = offset.checked_add(widen(len)).is_some_and(|end| end <= self.size);
        if fits && offset.is_multiple_of(SECTOR) && widen(len).is_multiple_of(SECTOR) {
            return Ok(());
        }
        Err(ImageError::Range {
            offset,
            len,
            size: self.size,
        })
    }

    fn is_aligned(&self, offset: u64, data: &[u8]) -> bool {
        data.as_ptr().align_offset(self.alignment.memory) == 0
            && offset.is_multiple_of(widen(self.alignment.offset))
            && data.len().is_multiple_of(self.alignment.offset)
    }

    /// Cuts a transfer so that each piece, once widened, fits a bounce buffer: the offset on the disk of each, and its
    /// part of the data.
    fn pieces(&self, offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + widen(done);
            // Pieces end at multiples of the buffer's size, which are multiples of every alignment.
            let room = widen(BOUNCE_BYTES) - at % widen(BOUNCE_BYTES);
            let end = len.min(done + usize::try_from(room).unwrap_or(BOUNCE_BYTES));
            let part = done..end;
            done = end;
            (!part.is_empty()).then_some((at, part))
        })
    }

    /// The smallest aligned range of the disk around a piece, and where in it the piece lies.
    fn widened(&self, at: u64, len: usize) -> (Range<u64>, Range<usize>) {
        let block = widen(self.alignment.offset);
        let start = at - at % block;
        let end = (at + widen(len)).next_multiple_of(block);
        let before = range_len(&(start..at));
        (start..end, before..before + len)
    }

    fn read_exactly(&self, offset: u64, data: &mut [u8]) -> Result<(), ImageError> {
        let len = data.len();
        let read = |done: usize| self.file.read_at(&mut data[done..], offset + widen(done));
        let short = io::ErrorKind::UnexpectedEof;
        self.transfer(len, short, read)
            .map_err(|cause| self.failed("read", offset, len, cause))
    }

    fn write_exactly(&self, offset: u64, data: &[u8]) -> Result<(), ImageError> {
        let write = |done: usize| self.file.write_at(&data[done..], offset + widen(done));
        let short = io::ErrorKind::WriteZero;
        self.transfer(data.len(), short, write)
            .map_err(|cause| self.failed("write", offset, data.len(), cause))
    }

    /// Transfers `len` bytes by calls of `step`, which is told how many bytes are done and says how many more it did.
    /// After a short one the transfer goes on from the last aligned place before its end. One that gets no further is a
    /// failure of kind `short`.
    fn transfer(
        &self,
        len: usize,
        short: io::ErrorKind,
        mut step: impl FnMut(usize) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            match step(done) {
                Ok(count) => {
                    let upto = (done + count).min(len);
                    let aligned = if upto == len {
                        len
                    } else {
                        upto - upto % self.alignment.offset
                    };
                    if aligned == done {
                        return Err(short.into());
                    }
                    done = aligned;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, offset: u64, len: usize, cause: io::Error) -> ImageError {
        ImageError::Io {
            action,
            path: self.path.clone(),
            offset,
            len,
            cause,
        }
    }
}

fn widen(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

/// Length of a range that lies in memory, or is to.
fn range_len(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("bounce buffers are short")
}

#[cfg(test)]
mod tests;
