//! A backup's own reads of the shared disks (`--disk-reads=backup`; the paper, section 4.2).

use std::time::Duration;

use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::image::{DiskImage, ImageAccess};

use crate::cli::options::DiskOption;
use ftvm_host::failure::Failure;
use ftvm_roles::replay::DiskReader;

/// The primary's request succeeded, so this side's is repeated when it fails: this often, with this pause, some five seconds in
/// all. A path to the disk that is gone for longer makes this host useless as a backup.
const TRIES: (u32, Duration) = (50, Duration::from_millis(100));

/// The disks, open for reading: writing is for a side that is live (PROTOCOL 8).
#[derive(Debug)]
pub struct DiskReads(Vec<DiskImage>);

impl DiskReads {
    /// Opens what this host was given.
    ///
    /// # Errors
    /// A sentence saying which disk, what is wrong and what to do.
    pub fn open(disks: &[DiskOption]) -> Result<Self, Failure> {
        let open = |disk: &DiskOption| {
            DiskImage::open(&disk.path, ImageAccess::ReadOnly, disk.caching()).map_err(Failure::new)
        };
        disks.iter().map(open).collect::<Result<_, _>>().map(DiskReads)
    }
}

impl DiskReader for DiskReads {
    fn read(&mut self, request: &DiskRequest) -> Result<Vec<u8>, String> {
        let image = self.0.get(usize::from(request.disk));
        let image = image.ok_or_else(|| format!("this host was not given disk {}: add --disk", request.disk))?;
        insist(image, request)
    }
}

/// Carries out a request of a guest whose primary can do so; what a read brings.
///
/// # Errors
/// A sentence: this host cannot, for some five seconds.
pub fn insist(image: &DiskImage, request: &DiskRequest) -> Result<Vec<u8>, String> {
    for _ in 0..TRIES.0 {
        if let Ok(data) = image.perform(request) {
            return Ok(data);
        }
        std::thread::sleep(TRIES.1);
    }
    let what = match &request.op {
        DiskOp::Read { offset, len } => format!("a read of {len} bytes at {offset}"),
        DiskOp::Write { offset, data } => format!("a write of {} bytes at {offset}", data.len()),
        DiskOp::Flush => "a flush".to_owned(),
    };
    Err(format!(
        "disk {} fails here although it works on the primary: {what} failed {} times",
        request.disk, TRIES.0
    ))
}
