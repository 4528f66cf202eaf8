//! A backup's own reads of the shared disks (`--disk-reads=backup`; the paper, section 4.2).

use std::time::Duration;

use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::image::{DiskImage, ImageAccess, ImageError};

use crate::option::DiskOption;
use ftvm_roles::copies::DiskError;
use ftvm_roles::replay::DiskReader;

/// The primary's request succeeded, so this side's is repeated when it fails: this often, with this pause, some five seconds in
/// all. A path to the disk that is gone for longer makes this host useless as a backup.
const TRIES: (u32, Duration) = (50, Duration::from_millis(100));

/// Why a backup cannot do what its primary could.
#[derive(Debug, thiserror::Error)]
pub enum ReadsError {
    /// The guest has more disks than this host was given.
    #[error("this host was not given disk {0}: add --disk")]
    NotGiven(u8),
    /// Every try failed.
    #[error("disk {disk} fails here although it works on the primary: {what} failed {} times", TRIES.0)]
    Failed {
        disk: u8,
        /// The request: what, how much and where.
        what: String,
        /// What the last try met.
        source: ImageError,
    },
}

/// The disks, open for reading: writing is for a side that is live (PROTOCOL 8).
#[derive(Debug)]
pub struct SharedReads(Vec<DiskImage>);

impl SharedReads {
    /// Opens what this host was given.
    ///
    /// # Errors
    /// [`ImageError`]: which disk, what is wrong and what to do.
    pub fn open(disks: &[DiskOption]) -> Result<Self, ImageError> {
        let open = |disk: &DiskOption| DiskImage::open(&disk.path, ImageAccess::ReadOnly, disk.caching());
        disks.iter().map(open).collect::<Result<_, _>>().map(SharedReads)
    }

    fn execute(&self, request: &DiskRequest) -> Result<Vec<u8>, ReadsError> {
        let image = self.0.get(usize::from(request.disk));
        insist(image.ok_or(ReadsError::NotGiven(request.disk))?, request)
    }
}

impl DiskReader for SharedReads {
    fn read(&mut self, request: &DiskRequest) -> Result<Vec<u8>, DiskError> {
        Ok(self.execute(request)?)
    }
}

/// Carries out a request of a guest whose primary can do so; what a read brings.
///
/// # Errors
/// [`ReadsError::Failed`]: this host cannot, for some five seconds.
pub fn insist(image: &DiskImage, request: &DiskRequest) -> Result<Vec<u8>, ReadsError> {
    let mut tries = 1;
    let source = loop {
        match image.perform(request) {
            Ok(data) => return Ok(data),
            Err(error) if tries >= TRIES.0 => break error,
            Err(_) => tries += 1,
        }
        std::thread::sleep(TRIES.1);
    };
    let what = match &request.op {
        DiskOp::Read { offset, len } => format!("a read of {len} bytes at {offset}"),
        DiskOp::Write { offset, data } => format!("a write of {} bytes at {offset}", data.len()),
        DiskOp::Flush => "a flush".to_owned(),
    };
    let disk = request.disk;
    Err(ReadsError::Failed { disk, what, source })
}
