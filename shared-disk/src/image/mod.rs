//! Virtual disks: raw image files and block devices.
//!
//! A disk that two hosts share is opened with O_DIRECT (PROTOCOL 8): the page cache of one host would make a write
//! "complete" that the other host cannot read yet, and would serve a new primary what it had read before the old one
//! wrote. So a write completes when the other host would read it, and a flush when it is stable. Open the image, or
//! open it again, only after the test-and-set is won.
//!
//! O_DIRECT wants memory, offsets and lengths aligned. Memory that is not goes through a bounce buffer. Requests that
//! are not, which are 512-byte sectors on a device of 4096, are widened: a read reads more, a write becomes a
//! read-modify-write that no other write of this image overlaps. That is correct and slow; tell the guest the
//! [`Image::alignment`] as its block size and it does not happen.

mod direct;
mod error;

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, OFlags};

use self::direct::{Alignment, BOUNCE_BYTES, Bounce, UNALIGNED, direct_alignment};
pub use self::error::ImageError;
use ftvm_schema::request::{DiskOp, DiskRequest};

/// A virtio-blk sector: the unit of every offset and length.
pub const SECTOR: u64 = 512;

/// The largest transfer [`Image::execute`] makes for a guest, in bytes. Linux guests ask for a few MiB at most.
pub const REQUEST_BYTES: u32 = 32 << 20;

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
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

/// How a request ended (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoStatus {
    /// VIRTIO_BLK_S_OK
    Ok,
    /// VIRTIO_BLK_S_IOERR
    IoError,
}

/// An open disk. All methods may be called from many threads at once; what overlaps is the caller's to order, which
/// [`plan`](crate::plan) does.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    access: Access,
    size: u64,
    alignment: Alignment,
    /// Taken exclusively by a read-modify-write, shared by other writes.
    rewriting: RwLock<()>,
    failures: AtomicU64,
}

impl Image {
    /// Opens a raw image file or a block device.
    ///
    /// # Errors
    /// Every kind of [`ImageError`] up to [`ImageError::Alignment`], in their order.
    pub fn open(path: impl AsRef<Path>, access: Access, caching: Caching) -> Result<Self, ImageError> {
        let path = path.as_ref().to_owned();
        let flags = match caching {
            Caching::Direct => OFlags::DIRECT,
            Caching::Buffered => OFlags::empty(),
        };
        // O_NONBLOCK: a FIFO under this name must not block. It means nothing to files and block devices.
        let flags = i32::try_from((flags | OFlags::NONBLOCK).bits()).expect("the kernel's open flags are an int");
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(flags)
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

    /// An image in `file`; without `alignment` the system is asked.
    fn examine(file: File, path: PathBuf, access: Access, alignment: Option<Alignment>) -> Result<Self, ImageError> {
        let cannot_open = |cause| ImageError::Open {
            path: path.clone(),
            cause,
        };
        let kind = file.metadata().map_err(cannot_open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind { path });
        }
        // The metadata of a block device tells no size.
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
        Ok(Image {
            file,
            path,
            access,
            size,
            alignment,
            rewriting: RwLock::new(()),
            failures: AtomicU64::new(0),
        })
    }

    /// Keeps the image for this opening alone, as far as others ask as well (flock(2)), until it is dropped: for a private
    /// disk, of which a primary and a backup on one host must not be given the same file.
    ///
    /// # Errors
    /// [`ImageError::Locked`] if another has it.
    pub fn lock(&self) -> Result<(), ImageError> {
        let locked = rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive);
        locked.map_err(|cause| ImageError::Locked {
            path: self.path.clone(),
            cause: cause.into(),
        })
    }

    /// The size in bytes, a multiple of [`SECTOR`].
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The block size in bytes in which transfers are fast: at least [`SECTOR`]. For virtio-blk's `blk_size` both hosts
    /// must use one value, for the guest sees it: agree on the larger.
    #[must_use]
    pub fn alignment(&self) -> usize {
        self.alignment.offset.max(512)
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
            let mut bounce = Bounce::new(range_len(&outer), self.alignment.memory);
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
        if self.access == Access::ReadOnly {
            return Err(ImageError::ReadOnly);
        }
        if self.is_aligned(offset, data) {
            let _guard = self.rewriting.read();
            return self.write_exactly(offset, data);
        }
        for (at, part) in self.pieces(offset, data.len()) {
            let (outer, inner) = self.widened(at, part.len());
            let mut bounce = Bounce::new(range_len(&outer), self.alignment.memory);
            if range_len(&outer) == part.len() {
                let _guard = self.rewriting.read();
                bounce.bytes().copy_from_slice(&data[part]);
                self.write_exactly(at, bounce.bytes())?;
            } else {
                let _guard = self.rewriting.write();
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

    /// Does what `request` asks, and returns its status and the data of a read (empty otherwise). Errors are the
    /// guest's to see as a status, and the operator's as a warning.
    #[must_use]
    pub fn execute(&self, request: &DiskRequest) -> (IoStatus, Vec<u8>) {
        self.perform(request)
            .map_or_else(|_| (IoStatus::IoError, Vec::new()), |data| (IoStatus::Ok, data))
    }

    /// As [`Image::execute`], with the error for whoever wants to know what it means.
    ///
    /// # Errors
    /// What the host said; it has been shown as a warning.
    pub fn perform(&self, request: &DiskRequest) -> Result<Vec<u8>, ImageError> {
        let result = match &request.op {
            DiskOp::Read { offset, len } => self.read_vec(*offset, *len),
            DiskOp::Write { offset, data } => self.write_at(*offset, data).map(|()| Vec::new()),
            DiskOp::Flush => self.flush().map(|()| Vec::new()),
        };
        result.inspect_err(|error| self.report(request, error))
    }

    fn read_vec(&self, offset: u64, len: u32) -> Result<Vec<u8>, ImageError> {
        let bytes = usize::try_from(len.min(REQUEST_BYTES)).map_err(|_| ImageError::Length { len })?;
        if len > REQUEST_BYTES {
            return Err(ImageError::Length { len });
        }
        self.check_range(offset, bytes)?;
        let mut data = vec![0; bytes];
        self.read_at(offset, &mut data)?;
        Ok(data)
    }

    /// A guest can provoke errors at will: the first, second, fourth, eighth, ... is shown.
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

    /// Cuts a transfer so that each piece, widened, fits a bounce buffer: the offset of each and its part of the data.
    fn pieces(&self, offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = offset + widen(done);
            // All but the first piece begin at a multiple of the buffer's size, and so of any alignment.
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

    /// Calls `step` with how much is done until `len` is. A short transfer goes on at the last aligned place.
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
