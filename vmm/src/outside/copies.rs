//! A backup's copies of the private disks, on their images (`roles::copies` says what they are for).

use std::collections::BTreeMap;
use std::path::PathBuf;

use ftvm_schema::entry::{Generation, Incarnation};
use ftvm_schema::request::{DiskOp, DiskRequest, SECTOR};
use logging_channel::message::{DiskReads, MAX_BLOCKS};
use lz4_flex::block::DecompressError;
use shared_disk::image::{DiskImage, ImageAccess, ImageError};
use shared_disk::mark::CopyState;
use shared_disk::mirror::{EXTENT, extent_len};

use ftvm_devices::{DiskSharing, PlatformConfig};
use ftvm_host::disk_marks::{DiskMarks, DiskMarksError};
use ftvm_host::option::DiskOption;
use ftvm_host::reads::{ReadsError, insist};
use ftvm_roles::copies::DiskCopies;
use ftvm_roles::copies::DiskError;

/// Bytes written during a clone after which they are made stable: a message is then never long on its way, and little is
/// left to do when the state is waited for.
const FLUSH_EVERY: u64 = 64 << 20;

/// Why copies cannot be had, or cannot be kept level.
#[derive(Debug, thiserror::Error)]
pub enum CopiesError {
    /// The guest has more disks than this host was given.
    #[error("disk {0} was not given: add --disk")]
    NotGiven(u8),
    /// The primary speaks of a disk that is not private here.
    #[error("disk {0} is no private disk of this host")]
    NotPrivate(u8),
    /// The primary's image has another size than this host's.
    #[error(
        "disk {disk} has {expected} bytes on the primary, and the backup's private copy {} has {found}; both must be equal",
        .path.display()
    )]
    Size {
        disk: usize,
        path: PathBuf,
        /// Bytes of the primary's image.
        expected: u64,
        /// Bytes of this host's.
        found: u64,
    },
    /// `private=on` here only.
    #[error("disk {disk} is shared on the primary, but the backup was given {} with private=on", .path.display())]
    SharedThere { disk: usize, path: PathBuf },
    /// `private=on` there only.
    #[error(
        "disk {disk} is private on the primary: give the backup an image of its own, with private=on, instead of {}",
        .path.display()
    )]
    PrivateThere { disk: usize, path: PathBuf },
    /// Too many blocks at once, out of order, or beyond the disk's end.
    #[error("the blocks {numbers:?} are none of disk {disk} with {size} bytes")]
    Blocks { disk: u8, numbers: Vec<u64>, size: u64 },
    /// The blocks' content is damaged.
    #[error("blocks of disk {disk} do not decompress: {source}")]
    Compressed { disk: u8, source: DecompressError },
    /// The blocks' content is not as long as they are.
    #[error("blocks of disk {disk} have {found} bytes, {needed} are needed")]
    Length { disk: u8, found: usize, needed: usize },
    /// A block cannot be written.
    #[error("disk {disk}: {source}")]
    Write { disk: u8, source: ImageError },
    /// An image cannot be opened or flushed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its mark cannot be written.
    #[error(transparent)]
    Mark(#[from] DiskMarksError),
    /// A request that the primary's disk carried out.
    #[error(transparent)]
    Request(#[from] ReadsError),
}

/// The copies, and what is being done with them.
#[derive(Debug)]
pub struct PrivateDisks {
    images: BTreeMap<u8, DiskImage>,
    marks: DiskMarks,
    /// The life that they belong to.
    generation: Generation,
    owner: Incarnation,
    reads: DiskReads,
    /// What reads have brought that the guest has not been told of: as much as its devices let it ask for.
    brought: BTreeMap<(u8, u64), Vec<u8>>,
    held: Option<CopyState>,
    unflushed: u64,
}

impl PrivateDisks {
    /// Opens the copies of the private disks of `platform` among `options`, which the handshake has found to agree.
    ///
    /// # Errors
    /// [`CopiesError`]: which disk, what is wrong and what to do.
    pub fn open(
        options: &[DiskOption],
        platform: &PlatformConfig,
        reads: DiskReads,
        generation: Generation,
        owner: Incarnation,
    ) -> Result<Self, CopiesError> {
        let mut images = BTreeMap::new();
        for disk in platform.private_disks() {
            let option = options.get(usize::from(disk));
            images.insert(disk, open(option.ok_or(CopiesError::NotGiven(disk))?)?);
        }
        Ok(PrivateDisks {
            images,
            marks: DiskMarks::of(options)?,
            generation,
            owner,
            reads,
            brought: BTreeMap::new(),
            held: None,
            unflushed: 0,
        })
    }

    fn image(&self, disk: u8) -> Result<&DiskImage, CopiesError> {
        self.images.get(&disk).ok_or(CopiesError::NotPrivate(disk))
    }

    /// The marks say it before it is so where that is worse, and after where it is better.
    fn mark(&mut self, held: CopyState) -> Result<(), CopiesError> {
        if self.held != Some(held) {
            self.marks.store(held, self.generation.0, self.owner.0)?;
            self.held = Some(held);
        }
        Ok(())
    }

    fn write_blocks(&mut self, disk: u8, numbers: &[u64], content: &[u8]) -> Result<(), CopiesError> {
        self.mark(CopyState::Incomplete)?;
        let image = self.image(disk)?;
        let size = image.size();
        let lengths: Vec<usize> = numbers.iter().map(|number| extent_len(size, *number)).collect();
        if numbers.len() > MAX_BLOCKS || lengths.contains(&0) || !numbers.is_sorted_by(|a, b| a < b) {
            let numbers = numbers.to_vec();
            return Err(CopiesError::Blocks { disk, numbers, size });
        }
        let mut bytes = vec![0; lengths.iter().sum()];
        let found = lz4_flex::block::decompress_into(content, &mut bytes);
        let found = found.map_err(|source| CopiesError::Compressed { disk, source })?;
        let needed = bytes.len();
        if found != needed {
            return Err(CopiesError::Length { disk, found, needed });
        }
        let mut rest = &bytes[..];
        let mut changed = 0;
        for (number, length) in numbers.iter().zip(lengths) {
            let (extent, behind) = rest.split_at(length);
            rest = behind;
            changed += put_extent(image, *number, extent).map_err(|source| CopiesError::Write { disk, source })?;
        }
        self.unflushed += changed;
        if self.unflushed >= FLUSH_EVERY {
            self.make_stable()
        } else {
            Ok(())
        }
    }

    fn make_stable(&mut self) -> Result<(), CopiesError> {
        self.images.values().try_for_each(DiskImage::flush)?;
        self.unflushed = 0;
        Ok(())
    }

    fn carry_out(&mut self, request: &DiskRequest) -> Result<(), CopiesError> {
        let is_read = matches!(request.op, DiskOp::Read { .. });
        if is_read && self.reads == DiskReads::Log {
            return Ok(());
        }
        let data = insist(self.image(request.disk)?, request)?;
        if is_read {
            self.brought.insert((request.disk, request.id), data);
        }
        Ok(())
    }
}

/// Opens a host's copy of a private disk for writing.
fn open(option: &DiskOption) -> Result<DiskImage, ImageError> {
    let image = DiskImage::open(&option.path, ImageAccess::ReadWrite, option.caching())?;
    image.lock()?;
    Ok(image)
}

/// Whether the disks that this host was given are what the guest needs; if not, the reason for the primary too.
///
/// # Errors
/// [`CopiesError`]: a disk that is private on one side only, or of another size.
pub fn agree(options: &[DiskOption], platform: &PlatformConfig) -> Result<(), CopiesError> {
    for (disk, (option, config)) in options.iter().zip(&platform.disks).enumerate() {
        let path = || option.path.clone();
        match (option.is_private(), config.sharing) {
            (false, DiskSharing::Shared) => {}
            (true, DiskSharing::Private) => {
                let (expected, found) = (config.sectors * SECTOR, open(option)?.size());
                if found != expected {
                    let path = path();
                    return Err(CopiesError::Size {
                        disk,
                        path,
                        expected,
                        found,
                    });
                }
            }
            (true, DiskSharing::Shared) => return Err(CopiesError::SharedThere { disk, path: path() }),
            (false, DiskSharing::Private) => return Err(CopiesError::PrivateThere { disk, path: path() }),
        }
    }
    Ok(())
}

impl DiskCopies for PrivateDisks {
    fn put(&mut self, disk: u8, numbers: &[u64], content: &[u8]) -> Result<(), DiskError> {
        Ok(self.write_blocks(disk, numbers, content)?)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(self.make_stable()?)
    }

    fn level(&mut self) -> Result<(), DiskError> {
        Ok(self.mark(CopyState::Following)?)
    }

    fn request(&mut self, request: &DiskRequest) -> Result<(), DiskError> {
        Ok(self.carry_out(request)?)
    }

    fn brought(&mut self, disk: u8, id: u64) -> Option<Vec<u8>> {
        self.brought.remove(&(disk, id))
    }

    fn ended(&mut self) -> Result<(), DiskError> {
        Ok(self.make_stable().and_then(|()| self.mark(CopyState::Current))?)
    }
}

/// Writes an extent unless it is there already: an image with holes keeps them, and a copy that is nearly level is read
/// more than written. How many bytes were written.
fn put_extent(image: &DiskImage, number: u64, extent: &[u8]) -> Result<u64, ImageError> {
    let mut before = vec![0; extent.len()];
    image.read_at(number * EXTENT, &mut before)?;
    if before == extent {
        return Ok(0);
    }
    image.write_at(number * EXTENT, extent)?;
    Ok(extent.len() as u64)
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
