//! The threads that do a live guest's disk I/O, and the timer that ends this process if a write to a shared disk would outlast
//! its lease.

use std::sync::Arc;

use ftvm_schema::entry::DiskStatus;
use ftvm_schema::request::{DiskOp, DiskRequest};
use parking_lot::Mutex;
use shared_disk::image::{DiskImage, ImageError};
use shared_disk::mirror::Written;

use super::superseded::Superseded;
use ftvm_host::disk::{Disk, DiskPool, DiskPoolError, Ended, Losses};
use ftvm_host::lease_guard::{LeaseGuard, LeaseGuardError};
use ftvm_host::queue::EventSender;
use ftvm_roles::disks::UnderWay;
use ftvm_roles::disks::{DiskShell, Disks};

/// What of the disks' threads, or of the timer that ends this process with its lease, fails.
#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    #[error(transparent)]
    Guard(#[from] LeaseGuardError),
    #[error(transparent)]
    Pool(#[from] DiskPoolError),
}

/// Kills this process if a shared-disk write is still in flight when the lease ends (PROTOCOL 14).
#[derive(Debug)]
struct GuardedWrites {
    guard: LeaseGuard,
    writes: usize,
}

/// A disk whose writes are known to the lease guard.
#[derive(Debug)]
struct GuardedDisk {
    image: Arc<DiskImage>,
    guarded: Arc<Mutex<GuardedWrites>>,
    superseded: Superseded,
}

impl Disk for GuardedDisk {
    fn execute(&self, request: &DiskRequest) -> Ended {
        let result = self.image.perform(request);
        if matches!(request.op, DiskOp::Write { .. }) {
            let mut guarded = self.guarded.lock();
            if let Err(error) = guarded.write_landed() {
                tracing::error!("{error}");
            }
        }
        if result.as_ref().is_err_and(ImageError::is_reservation_conflict) {
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
    image: Arc<DiskImage>,
    written: Arc<Mutex<Written>>,
}

impl Disk for PrivateDisk {
    fn execute(&self, request: &DiskRequest) -> Ended {
        let result = self.image.perform(request);
        if let DiskOp::Write { offset, data } = &request.op {
            self.written.lock().over(request.disk, *offset, data.len() as u64);
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

/// The threads that do the I/O, and the lease guard.
#[derive(Debug)]
pub struct DiskThreads {
    pool: DiskPool,
    guarded: Arc<Mutex<GuardedWrites>>,
    /// To private disks; they need no lease guard.
    written: Arc<Mutex<Written>>,
}

impl DiskThreads {
    /// Starts the threads, for these images: whether each is private, and what is written to those is noted. Returns the disks,
    /// with no request yet, and their sizes in bytes.
    ///
    /// # Errors
    /// The host has no timer or no thread to give.
    pub(crate) fn start(
        images: Vec<(bool, Arc<DiskImage>)>,
        written: Arc<Mutex<Written>>,
        superseded: &Superseded,
        events: &EventSender,
        losses: &Losses,
    ) -> Result<(Disks<DiskThreads>, Vec<u64>), HandsError> {
        let guard = LeaseGuard::new()?;
        let guarded = Arc::new(Mutex::new(GuardedWrites { guard, writes: 0 }));
        let numbered = (0u8..).zip(&images);
        let private = numbered.filter_map(|(disk, (private, _))| private.then_some(disk));
        let private = private.collect();
        let disk = |(private, image)| -> Arc<dyn Disk> {
            if private {
                let written = Arc::clone(&written);
                Arc::new(PrivateDisk { image, written })
            } else {
                Arc::new(GuardedDisk {
                    image,
                    guarded: Arc::clone(&guarded),
                    superseded: superseded.clone(),
                })
            }
        };
        let disks: Vec<Arc<dyn Disk>> = images.into_iter().map(disk).collect();
        let sizes = disks.iter().map(|disk| disk.size()).collect();
        let pool = DiskPool::start(&disks, events, losses)?;
        let threads = DiskThreads { pool, guarded, written };
        Ok((Disks::new(threads, disks.len()).with_private(private), sizes))
    }
}

impl GuardedWrites {
    fn write_landed(&mut self) -> Result<(), LeaseGuardError> {
        self.writes = self.writes.saturating_sub(1);
        if self.writes == 0 { self.guard.disarm() } else { Ok(()) }
    }
}

impl DiskShell for DiskThreads {
    type Error = HandsError;

    fn write_begins(&mut self) {
        self.guarded.lock().writes += 1;
    }

    fn writes(&self) -> usize {
        self.guarded.lock().writes + self.written.lock().under_way()
    }

    fn write_given_up(&mut self) -> Result<(), HandsError> {
        Ok(self.guarded.lock().write_landed()?)
    }

    fn arm(&mut self, deadline_ns: u64) -> Result<(), HandsError> {
        let mut guarded = self.guarded.lock();
        if guarded.writes == 0 {
            return Ok(());
        }
        Ok(guarded.guard.arm(deadline_ns)?)
    }

    fn disarm(&mut self) -> Result<(), HandsError> {
        Ok(self.guarded.lock().guard.disarm()?)
    }

    fn start(&mut self, request: DiskRequest) -> Result<(), HandsError> {
        if matches!(request.op, DiskOp::Write { .. }) {
            let mut written = self.written.lock();
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
