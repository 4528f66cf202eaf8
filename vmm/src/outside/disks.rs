//! This host's disks for a guest: their images, the reservations of those with `reserve=on`, the marks and the copying of the
//! private ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use ftvm_host::disk::Losses;
use ftvm_host::option::DiskOption;
use ftvm_host::queue::EventSender;
use ftvm_roles::disks::Disks;
use ftvm_roles::host_event::HostEvent;
use ftvm_schema::request::{DiskOp, DiskRequest};
use parking_lot::Mutex;
use shared_disk::arbiter::GenerationRecord;
use shared_disk::image::{DiskImage, ImageError};
use shared_disk::mark::CopyState;
use shared_disk::scsi::ScsiError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::disk_threads::{DiskThreads, HandsError};
use super::superseded::Superseded;
use crate::link::blocks::BlockSource;
use ftvm_host::disk_marks::{DiskMarks, DiskMarksError};
use ftvm_host::reservations::Reservations;

/// What of a host's disks fails.
#[derive(Debug, thiserror::Error)]
pub enum HostDisksError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Scsi(#[from] ScsiError),
    #[error("a disk is not fenced, so the guest does not run here: {0}")]
    NotReserved(#[source] ScsiError),
    #[error("a disk is not fenced, so the guest does not run here: the thread that asks its device failed: {0}")]
    ReservingThread(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Hands(#[from] HandsError),
    #[error(transparent)]
    Mark(#[from] DiskMarksError),
}

/// A disk request that failed because this host has lost the way to the disk.
#[derive(Debug)]
pub struct DiskLost {
    pub disk: u8,
    /// What the host said.
    pub what: String,
    /// What the guest is to be told, if it is.
    pub failure: HostEvent,
}

/// This host's disks.
#[derive(Debug)]
pub struct HostDisks {
    options: Vec<DiskOption>,
    /// From their opening until whoever orders their requests takes them.
    opened: Option<Disks<DiskThreads>>,
    blocks: BlockSource,
    marks: DiskMarks,
    reservations: Reservations,
    superseded: Superseded,
    events: EventSender,
    losses: Arc<Mutex<Option<mpsc::UnboundedSender<DiskLost>>>>,
}

impl HostDisks {
    /// Those of `options`, none of them open yet.
    ///
    /// # Errors
    /// A private one has no place for its mark.
    pub fn new(options: &[DiskOption], events: &EventSender) -> Result<Self, HostDisksError> {
        Ok(HostDisks {
            options: options.to_vec(),
            opened: None,
            blocks: BlockSource::new(BTreeMap::new()),
            marks: DiskMarks::of(options)?,
            reservations: Reservations::default(),
            superseded: Superseded::default(),
            events: events.clone(),
            losses: Arc::default(),
        })
    }

    /// Opens the disks: only a side that is live has them open (PROTOCOL 8). Returns their sizes in bytes.
    ///
    /// # Errors
    /// Which disk, what is wrong and what to do.
    pub fn open(&mut self) -> Result<Vec<u64>, HostDisksError> {
        let mut images = Vec::new();
        for option in &self.options {
            let image = DiskImage::open(&option.path, option.access(), option.caching())?;
            if option.is_reserved() {
                self.reservations.add(&option.path)?;
            }
            if option.is_private() {
                image.lock()?;
            }
            images.push((option.is_private(), Arc::new(image)));
        }
        let private = (0u8..).zip(&images).filter(|(_, (private, _))| *private);
        let private: BTreeMap<u8, Arc<DiskImage>> =
            private.map(|(disk, (_, image))| (disk, Arc::clone(image))).collect();
        self.blocks = BlockSource::new(private);
        let losses = Arc::clone(&self.losses);
        let losses: Losses = Arc::new(move |disk, what, failure| {
            let losses = losses.lock();
            let lost = DiskLost { disk, what, failure };
            match &*losses {
                Some(told) => told.send(lost).map_err(|unsent| unsent.0.failure),
                None => Err(lost.failure),
            }
        });
        let written = self.blocks.written();
        let (disks, sizes) = DiskThreads::start(images, written, &self.superseded, &self.events, &losses)?;
        self.opened = Some(disks);
        Ok(sizes)
    }

    /// Where disk requests end that failed because the way to the disk is lost. Until this is called, the guest is
    /// told of them like of any other.
    #[must_use]
    pub fn losses(&mut self) -> mpsc::UnboundedReceiver<DiskLost> {
        // Unbounded here, bounded by the requests in flight.
        let (told, losses) = mpsc::unbounded_channel();
        *self.losses.lock() = Some(told);
        losses
    }

    /// The private disks, for a backup that is to get copies.
    pub fn blocks(&mut self) -> &mut BlockSource {
        &mut self.blocks
    }

    /// Whether the guest, whose last life the arbiter knows as `last`, may be started with these private disks.
    ///
    /// # Errors
    /// If another host may have a newer copy of one.
    pub fn may_start(&self, last: Option<&GenerationRecord>) -> Result<(), HostDisksError> {
        Ok(self.marks.check(last)?)
    }

    /// From now on the private disks are those of this generation, which `owner` owns.
    ///
    /// # Errors
    /// If that cannot be noted beside them.
    pub fn mark_current(&self, generation: u64, owner: u128) -> Result<(), HostDisksError> {
        Ok(self.marks.store(CopyState::Current, generation, owner)?)
    }

    /// The disks, opened unless they are already, for whoever orders what is asked of them.
    ///
    /// # Errors
    /// Which disk, what is wrong and what to do.
    pub fn take(&mut self) -> Result<Disks<DiskThreads>, HostDisksError> {
        loop {
            match self.opened.take() {
                Some(disks) => return Ok(disks),
                None => self.open()?,
            };
        }
    }

    /// The guest has ended: what it had asked of private disks and was not told of is carried out here as on the backup,
    /// so that both copies stay level, once what `threads` are at has landed.
    ///
    /// # Errors
    /// If a disk fails; the copies may differ then.
    pub fn finish_private(&mut self, unfinished: Vec<DiskRequest>, threads: DiskThreads) -> Result<(), HostDisksError> {
        drop(threads); // what is in flight has landed
        for request in unfinished {
            if let (DiskOp::Write { offset, data }, Some(image)) = (&request.op, self.blocks.image(request.disk)) {
                image.write_at(*offset, data)?;
            }
        }
        Ok(self.blocks.images().try_for_each(DiskImage::flush)?)
    }

    /// Starts to have every other host kept from writing to the disks with `reserve=on`, for incarnation `me`, which has just
    /// won the right to live. Before the first write. A device may keep this waiting for a minute, on a thread of its own.
    #[must_use]
    pub fn reserve(&mut self, me: u128) -> JoinHandle<(Reservations, Result<(), ScsiError>)> {
        let mut reservations = std::mem::take(&mut self.reservations);
        tokio::task::spawn_blocking(move || {
            let taken = reservations.take(me);
            (reservations, taken)
        })
    }

    /// Waits for that.
    ///
    /// # Errors
    /// If a device refuses, or stays silent: the guest must not run here.
    pub async fn reserved(
        &mut self,
        reserving: JoinHandle<(Reservations, Result<(), ScsiError>)>,
    ) -> Result<(), HostDisksError> {
        let (reservations, taken) = reserving.await?;
        self.reservations = reservations;
        taken.map_err(HostDisksError::NotReserved)
    }

    /// The guest has ended here: its disks are free. What fails is only told, for the next owner takes them anyway.
    pub fn give_back(&mut self) {
        self.reservations.release();
    }

    /// Notices that another host has taken a disk of this one.
    #[must_use]
    pub fn superseded(&self) -> Superseded {
        self.superseded.clone()
    }
}
