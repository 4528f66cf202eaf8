//! The marks beside this host's private disks: whose copy is the newest (`shared_disk::mark`).

use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use shared_disk::arbiter::GenerationRecord;
use shared_disk::mark::{CopyState, DiskMark, MarkError, Stale, may_start};

use crate::option::DiskOption;

/// Why the private disks cannot be those of a guest's new life.
#[derive(Debug, thiserror::Error)]
pub enum DiskMarksError {
    /// A mark beside a device is in a file system that is made anew at each start.
    #[error(
        "the private disk {} is a block device, beside which no file would outlive a restart: say with mark=FILE where to note \
         how new its content is",
        .0.display()
    )]
    NoPlace(PathBuf),
    /// Another host may have a newer copy.
    #[error(
        "the private disk {} is not known to hold the guest's newest data: {source}. Start the guest where its newest copy is, \
         and have this host join it. To go on from this copy all the same, without what is newer elsewhere, remove {} and the \
         guest's folder in the shared directory",
        .image.display(),
        .mark.display()
    )]
    NotNewest {
        image: PathBuf,
        mark: PathBuf,
        source: Box<Stale>,
    },
    /// A mark cannot be read or written.
    #[error(transparent)]
    File(#[from] MarkError),
}

/// The marks of all private disks: each image with its mark.
#[derive(Clone, Debug, Default)]
pub struct DiskMarks(Vec<(PathBuf, PathBuf)>);

impl DiskMarks {
    /// Of the private ones among `disks`.
    ///
    /// # Errors
    /// If one has no place for its mark.
    pub fn of(disks: &[DiskOption]) -> Result<Self, DiskMarksError> {
        let mut marks = Vec::new();
        for disk in disks.iter().filter(|disk| disk.is_private()) {
            let is_device = |path| std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
            let mark = match disk.mark() {
                Some(mark) => mark.to_owned(),
                None if is_device(&disk.path) => return Err(DiskMarksError::NoPlace(disk.path.clone())),
                None => {
                    let mut name = disk.path.clone().into_os_string();
                    name.push(".ftvm");
                    PathBuf::from(name)
                }
            };
            marks.push((disk.path.clone(), mark));
        }
        Ok(DiskMarks(marks))
    }

    /// Whether there are private disks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the guest, whose last life the arbiter knows as `last`, may be started from these copies.
    ///
    /// # Errors
    /// If one is not known to be the newest.
    pub fn check(&self, last: Option<&GenerationRecord>) -> Result<(), DiskMarksError> {
        for (image, path) in &self.0 {
            let mark = DiskMark::load(path)?;
            may_start(mark.as_ref(), last).map_err(|source| DiskMarksError::NotNewest {
                image: image.clone(),
                mark: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Notes what the copies hold from now on.
    ///
    /// # Errors
    /// If a mark cannot be written.
    pub fn store(&self, held: CopyState, generation: u64, owner: u128) -> Result<(), DiskMarksError> {
        let mark = DiskMark::now(held, generation, owner);
        Ok(self.0.iter().try_for_each(|(_, path)| mark.store(path))?)
    }
}
