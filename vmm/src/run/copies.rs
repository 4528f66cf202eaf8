//! A backup's copies of the private disks, on their images (`roles::copies` says what they are for).

use std::collections::BTreeMap;

use ftvm_schema::entry::{Generation, Incarnation};
use ftvm_schema::request::{DiskOp, DiskRequest};
use logging_channel::message::{DiskReads, MAX_BLOCKS};
use shared_disk::image::{DiskImage, ImageAccess};
use shared_disk::mark::CopyState;
use shared_disk::mirror::{EXTENT, extent_len};

use super::marks::Marks;
use super::reads;
use crate::cli::options::DiskOption;
use ftvm_devices::{DiskSharing, PlatformConfig, SECTOR};
use ftvm_host::failure::Failure;
use ftvm_roles::copies::Copies;

/// Bytes written during a clone after which they are made stable: a message is then never long on its way, and little is
/// left to do when the state is waited for.
const FLUSH_EVERY: u64 = 64 << 20;

/// The copies, and what is being done with them.
#[derive(Debug)]
pub struct PrivateDisks {
    images: BTreeMap<u8, DiskImage>,
    marks: Marks,
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
    /// A sentence saying which disk, what is wrong and what to do.
    pub fn open(
        options: &[DiskOption],
        platform: &PlatformConfig,
        reads: DiskReads,
        generation: Generation,
        owner: Incarnation,
    ) -> Result<Self, Failure> {
        let mut images = BTreeMap::new();
        for disk in platform.private_disks() {
            let option = options.get(usize::from(disk));
            let option = option.ok_or_else(|| Failure::new(format!("disk {disk} was not given: add --disk")))?;
            images.insert(disk, open(option)?);
        }
        Ok(PrivateDisks {
            images,
            marks: Marks::of(options)?,
            generation,
            owner,
            reads,
            brought: BTreeMap::new(),
            held: None,
            unflushed: 0,
        })
    }

    fn image(&self, disk: u8) -> Result<&DiskImage, String> {
        let image = self.images.get(&disk);
        image.ok_or_else(|| format!("disk {disk} is no private disk of this host"))
    }

    /// The marks say it before it is so where that is worse, and after where it is better.
    fn mark(&mut self, held: CopyState) -> Result<(), String> {
        if self.held != Some(held) {
            let stored = self.marks.store(held, self.generation.0, self.owner.0);
            stored.map_err(|e| e.to_string())?;
            self.held = Some(held);
        }
        Ok(())
    }
}

/// Opens a host's copy of a private disk for writing.
fn open(option: &DiskOption) -> Result<DiskImage, Failure> {
    let image = DiskImage::open(&option.path, ImageAccess::ReadWrite, option.caching()).map_err(Failure::new)?;
    image.lock().map_err(Failure::new)?;
    Ok(image)
}

/// Whether the disks that this host was given are what the guest needs; if not, the reason for the primary too.
///
/// # Errors
/// A disk that is private on one side only, or of another size.
pub fn agree(options: &[DiskOption], platform: &PlatformConfig) -> Result<(), String> {
    for (number, (option, disk)) in options.iter().zip(&platform.disks).enumerate() {
        let path = option.path.display();
        match (option.private, disk.sharing) {
            (false, DiskSharing::Shared) => {}
            (true, DiskSharing::Private) => {
                let size = open(option).map_err(|e| e.to_string())?.size();
                if size != disk.sectors * SECTOR {
                    return Err(format!(
                        "disk {number} has {} bytes on the primary, and the backup's private copy {path} has {size}; both \
                         must be equal",
                        disk.sectors * SECTOR
                    ));
                }
            }
            (true, DiskSharing::Shared) => {
                return Err(format!(
                    "disk {number} is shared on the primary, but the backup was given {path} with private=on"
                ));
            }
            (false, DiskSharing::Private) => {
                return Err(format!(
                    "disk {number} is private on the primary: give the backup an image of its own, with private=on, instead \
                     of {path}"
                ));
            }
        }
    }
    Ok(())
}

impl Copies for PrivateDisks {
    fn put(&mut self, disk: u8, numbers: &[u64], content: &[u8]) -> Result<(), String> {
        self.mark(CopyState::Incomplete)?;
        let image = self.image(disk)?;
        let size = image.size();
        let lengths: Vec<usize> = numbers.iter().map(|number| extent_len(size, *number)).collect();
        if numbers.len() > MAX_BLOCKS || lengths.contains(&0) || !numbers.is_sorted_by(|a, b| a < b) {
            return Err(format!(
                "the blocks {numbers:?} are none of disk {disk} with {size} bytes"
            ));
        }
        let mut bytes = vec![0; lengths.iter().sum()];
        let found = lz4_flex::block::decompress_into(content, &mut bytes);
        let found = found.map_err(|e| format!("blocks of disk {disk} do not decompress: {e}"))?;
        if found != bytes.len() {
            return Err(format!(
                "blocks of disk {disk} have {found} bytes, {} are needed",
                bytes.len()
            ));
        }
        let mut rest = &bytes[..];
        let mut changed = 0;
        for (number, length) in numbers.iter().zip(lengths) {
            let (extent, behind) = rest.split_at(length);
            rest = behind;
            changed += put_extent(image, *number, extent).map_err(|e| format!("disk {disk}: {e}"))?;
        }
        self.unflushed += changed;
        if self.unflushed >= FLUSH_EVERY {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), String> {
        for image in self.images.values() {
            image.flush().map_err(|e| e.to_string())?;
        }
        self.unflushed = 0;
        Ok(())
    }

    fn level(&mut self) -> Result<(), String> {
        self.mark(CopyState::Following)
    }

    fn request(&mut self, request: &DiskRequest) -> Result<(), String> {
        let is_read = matches!(request.op, DiskOp::Read { .. });
        if is_read && self.reads == DiskReads::Log {
            return Ok(());
        }
        let data = reads::insist(self.image(request.disk)?, request)?;
        if is_read {
            self.brought.insert((request.disk, request.id), data);
        }
        Ok(())
    }

    fn brought(&mut self, disk: u8, id: u64) -> Option<Vec<u8>> {
        self.brought.remove(&(disk, id))
    }

    fn ended(&mut self) -> Result<(), String> {
        self.flush()?;
        self.mark(CopyState::Current)
    }
}

/// Writes an extent unless it is there already: an image with holes keeps them, and a copy that is nearly level is read
/// more than written. How many bytes were written.
fn put_extent(image: &DiskImage, number: u64, extent: &[u8]) -> Result<u64, shared_disk::image::ImageError> {
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
