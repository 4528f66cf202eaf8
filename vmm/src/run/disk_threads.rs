//! The threads that do a live guest's disk I/O, and the timer that ends this process if a write to a shared disk would outlast
//! its lease.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use logging_channel::entry::DiskStatus;
use shared_disk::image::{Image, ImageError};
use shared_disk::mirror::Written;
use shared_disk::request::{DiskOp, DiskRequest};

use super::fence::Superseded;
use super::mirror::lock;
use crate::backends::disk::{Disk, DiskPool, DiskPoolError, Ended, Losses};
use crate::backends::fence::{FenceError, LeaseGuard};
use crate::backends::queue::EventSender;
use crate::roles::disks::{DiskShell, Disks};
use crate::roles::primary::UnderWay;

/// What of the disks' threads, or of the timer that ends this process with its lease, fails.
#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    #[error(transparent)]
    Guard(#[from] FenceError),
    #[error(transparent)]
    Pool(#[from] DiskPoolError),
}

/// Kills this process if a shared-disk write is still in flight when the lease ends (PROTOCOL 14).
#[derive(Debug)]
struct Fence {
    guard: LeaseGuard,
    writes: usize,
}

/// A disk whose writes are known to the fence.
#[derive(Debug)]
struct FencedDisk {
    image: Arc<Image>,
    fence: Arc<Mutex<Fence>>,
    superseded: Superseded,
}

impl Disk for FencedDisk {
    fn execute(&self, request: &DiskRequest) -> Ended {
        let result = self.image.perform(request);
        if matches!(request.op, DiskOp::Write { .. }) {
            let mut fence = self.fence.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = fence.write_over() {
                tracing::error!("{error}");
            }
        }
        if result.as_ref().is_err_and(ImageError::is_fenced) {
            self.superseded.notice();
        }
        ended(result)
    }

    fn is_superseded(&self) -> bool {
        self.superseded.is_noticed()
    }

    fn size(&self) -> u64 {
        self.image.size()
    }
}

/// A disk that nobody else reaches: its writes are noted for a backup that is to get a copy.
#[derive(Debug)]
struct PrivateDisk {
    image: Arc<Image>,
    written: Arc<Mutex<Written>>,
}

impl Disk for PrivateDisk {
    fn execute(&self, request: &DiskRequest) -> Ended {
        let result = self.image.perform(request);
        if let DiskOp::Write { offset, data } = &request.op {
            lock(&self.written).over(request.disk, *offset, data.len() as u64);
        }
        ended(result)
    }

    fn size(&self) -> u64 {
        self.image.size()
    }
}

fn ended(result: Result<Vec<u8>, ImageError>) -> Ended {
    match result {
        Ok(data) => (DiskStatus::Ok, data).into(),
        Err(error) => Ended {
            lost: error.is_path_loss().then(|| error.to_string()),
            ..(DiskStatus::IoError, Vec::new()).into()
        },
    }
}

/// The threads that do the I/O, and the fence.
#[derive(Debug)]
pub struct DiskThreads {
    pool: DiskPool,
    fence: Arc<Mutex<Fence>>,
    /// To private disks; they need no fence.
    written: Arc<Mutex<Written>>,
}

impl DiskThreads {
    /// Starts the threads, for these images: whether each is private, and what is written to those is noted. Returns the disks,
    /// with no request yet, and their sizes in bytes.
    ///
    /// # Errors
    /// The host has no timer or no thread to give.
    pub(super) fn start(
        images: Vec<(bool, Arc<Image>)>,
        written: Arc<Mutex<Written>>,
        superseded: &Superseded,
        events: &EventSender,
        losses: &Losses,
    ) -> Result<(Disks<DiskThreads>, Vec<u64>), HandsError> {
        let guard = LeaseGuard::new()?;
        let fence = Arc::new(Mutex::new(Fence { guard, writes: 0 }));
        let numbered = (0u8..).zip(&images);
        let private = numbered.filter_map(|(disk, (private, _))| private.then_some(disk));
        let private = private.collect();
        let disk = |(private, image)| -> Arc<dyn Disk> {
            if private {
                let written = Arc::clone(&written);
                Arc::new(PrivateDisk { image, written })
            } else {
                Arc::new(FencedDisk {
                    image,
                    fence: Arc::clone(&fence),
                    superseded: superseded.clone(),
                })
            }
        };
        let disks: Vec<Arc<dyn Disk>> = images.into_iter().map(disk).collect();
        let sizes = disks.iter().map(|disk| disk.size()).collect();
        let pool = DiskPool::start(&disks, events, losses)?;
        let threads = DiskThreads { pool, fence, written };
        Ok((Disks::new(threads, disks.len()).with_private(private), sizes))
    }

    fn fence(&self) -> MutexGuard<'_, Fence> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fence {
    fn write_over(&mut self) -> Result<(), FenceError> {
        self.writes = self.writes.saturating_sub(1);
        if self.writes == 0 { self.guard.disarm() } else { Ok(()) }
    }
}

impl DiskShell for DiskThreads {
    type Error = HandsError;

    fn write_begins(&mut self) {
        self.fence().writes += 1;
    }

    fn writes(&self) -> usize {
        self.fence().writes + lock(&self.written).under_way()
    }

    fn write_given_up(&mut self) -> Result<(), HandsError> {
        Ok(self.fence().write_over()?)
    }

    fn arm(&mut self, deadline_ns: u64) -> Result<(), HandsError> {
        let mut fence = self.fence();
        if fence.writes == 0 {
            return Ok(());
        }
        Ok(fence.guard.arm(deadline_ns)?)
    }

    fn disarm(&mut self) -> Result<(), HandsError> {
        Ok(self.fence().guard.disarm()?)
    }

    fn start(&mut self, request: DiskRequest) -> Result<(), HandsError> {
        if matches!(request.op, DiskOp::Write { .. }) {
            let mut written = lock(&self.written);
            if written.has(request.disk) {
                written.begins();
            }
        }
        Ok(self.pool.submit(request)?)
    }

    fn under_way(&self) -> Vec<UnderWay> {
        self.pool.under_way()
    }
}
