//! The marks beside this host's private disks: whose copy is the newest (`shared_disk::mark`).

use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use shared_disk::arbiter::GenerationRecord;
use shared_disk::mark::{CopyState, DiskMark, may_start};

use crate::cli::options::DiskOption;
use ftvm_host::failure::Failure;

/// The marks of all private disks: each image with its mark.
#[derive(Clone, Debug, Default)]
pub struct Marks(Vec<(PathBuf, PathBuf)>);

impl Marks {
    /// Of the private ones among `disks`.
    ///
    /// # Errors
    /// If one has no place for its mark.
    pub fn of(disks: &[DiskOption]) -> Result<Self, Failure> {
        let mut marks = Vec::new();
        for disk in disks.iter().filter(|disk| disk.private) {
            let is_device = |path| std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
            let mark = match &disk.mark {
                Some(mark) => mark.clone(),
                None if is_device(&disk.path) => {
                    return Err(Failure::new(format!(
                        "the private disk {} is a block device, beside which no file would outlive a restart: say with \
                         mark=FILE where to note how new its content is",
                        disk.path.display()
                    )));
                }
                None => {
                    let mut name = disk.path.clone().into_os_string();
                    name.push(".ftvm");
                    PathBuf::from(name)
                }
            };
            marks.push((disk.path.clone(), mark));
        }
        Ok(Marks(marks))
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
    pub fn check(&self, last: Option<&GenerationRecord>) -> Result<(), Failure> {
        for (image, path) in &self.0 {
            let mark = DiskMark::load(path).map_err(Failure::new)?;
            may_start(mark.as_ref(), last).map_err(|stale| {
                Failure::new(format!(
                    "the private disk {} is not known to hold the guest's newest data: {stale}. Start the guest where its \
                     newest copy is, and have this host join it. To go on from this copy all the same, without what is \
                     newer elsewhere, remove {} and the guest's folder in the shared directory",
                    image.display(),
                    path.display()
                ))
            })?;
        }
        Ok(())
    }

    /// Notes what the copies hold from now on.
    ///
    /// # Errors
    /// If a mark cannot be written.
    pub fn store(&self, held: CopyState, generation: u64, owner: u128) -> Result<(), Failure> {
        let mark = DiskMark::now(held, generation, owner);
        self.0
            .iter()
            .try_for_each(|(_, path)| mark.store(path))
            .map_err(Failure::new)
    }
}
