//! Everything a live guest touches outside, opened from this host's own settings: cables, consoles, disks.
//!
//! [`Outside::emit`] is the only way out for what is said, and only outputs whose turn has come are given to it
//! (`ftvm_machine::output`); disk requests leave through the plans of [`Outside::take_disks`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ftvm_schema::entry::ConsolePort;
use ftvm_schema::request::{DiskOp, DiskRequest};
use parking_lot::Mutex;
use shared_disk::arbiter::GenerationRecord;
use shared_disk::image::{DiskImage, ImageError};
use shared_disk::mark::CopyState;
use shared_disk::scsi::ScsiError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::disk_threads::{DiskThreads, HandsError};
use super::door::DoorError;
use super::fence::{Fences, Superseded};
use super::marks::{Marks, MarksError};
use super::mirror::BlockSource;
use crate::cli::HostArgs;
use ftvm_host::Sent;
use ftvm_host::console::{ByteStream, Console, ConsoleError, ConsoleTarget};
use ftvm_host::disk::Losses;
use ftvm_host::entropy::{EntropyError, host_entropy};
use ftvm_host::net::rarp::rarp_frame;
use ftvm_host::net::{Inbound, NetBackend, NetError, NetReader, spawn_reader};
use ftvm_host::option::DiskOption;
use ftvm_host::queue::EventSender;
use ftvm_machine::output::Emission;
use ftvm_roles::disks::{Disks, DisksError};
use ftvm_roles::host_event::HostEvent;

/// What of a host's devices fails.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("network card {0}: a guest has 256 at most")]
    TooManyCards(usize),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error("console: {0}")]
    ConsoleWrite(#[source] std::io::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Scsi(#[from] ScsiError),
    #[error("a disk is not fenced, so the guest does not run here: {0}")]
    NotFenced(#[source] ScsiError),
    #[error("a disk is not fenced, so the guest does not run here: the thread that asks its device failed: {0}")]
    FenceThread(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Hands(#[from] HandsError),
    #[error(transparent)]
    Disks(#[from] DisksError<HandsError>),
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    #[error(transparent)]
    Mark(#[from] MarksError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("signals cannot be watched: {0}")]
    Signals(#[source] std::io::Error),
    /// The vCPU thread does not listen any more.
    #[error("the vCPU thread is gone")]
    Gone,
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

#[derive(Debug)]
struct Nic {
    backend: Arc<NetBackend>,
    reader: NetReader,
}

/// This host's side of a guest.
#[derive(Debug)]
pub struct Outside {
    nics: Vec<Nic>,
    consoles: BTreeMap<ConsolePort, Console>,
    disk_options: Vec<DiskOption>,
    /// From their opening until whoever orders their requests takes them.
    disks: Option<Disks<DiskThreads>>,
    blocks: BlockSource,
    marks: Marks,
    fences: Fences,
    superseded: Superseded,
    events: EventSender,
    losses: Arc<Mutex<Option<mpsc::UnboundedSender<DiskLost>>>>,
}

impl Outside {
    /// Opens cables and consoles. `keep` is how long a backup's inbound frames are kept.
    ///
    /// # Errors
    /// A sentence saying which device, what is wrong and what to do.
    pub fn open(
        host: &HostArgs,
        stream: ByteStream,
        inbound: Inbound,
        keep: Duration,
        events: &EventSender,
    ) -> Result<Self, OutsideError> {
        let mut nics = Vec::new();
        for (index, net) in host.nets.iter().enumerate() {
            let backend = Arc::new(NetBackend::open(&net.cable)?);
            let nic = u8::try_from(index).map_err(|_| OutsideError::TooManyCards(index))?;
            let reader = spawn_reader(Arc::clone(&backend), nic, inbound, keep, events.clone());
            nics.push(Nic {
                backend,
                reader: reader?,
            });
        }
        let mut consoles = BTreeMap::new();
        let targets = [
            (ConsolePort::Serial, Some(&host.console)),
            (ConsolePort::Virtio, host.virtio_console.as_ref()),
        ];
        for (port, target) in targets {
            if let Some(target) = target {
                let console = Console::open(target, port, stream)?;
                if let (ConsoleTarget::Pty, Some(place)) = (target, console.place()) {
                    tracing::info!("{port:?} console at {}", place.display());
                }
                consoles.insert(port, console);
            }
        }
        Ok(Outside {
            nics,
            consoles,
            disk_options: host.disks.clone(),
            disks: None,
            blocks: BlockSource::new(BTreeMap::new()),
            marks: Marks::of(&host.disks)?,
            fences: Fences::default(),
            superseded: Superseded::default(),
            events: events.clone(),
            losses: Arc::default(),
        })
    }

    /// Opens the disks: only a side that is live has them open (PROTOCOL 8). Returns their sizes in bytes.
    ///
    /// # Errors
    /// As [`Outside::open`].
    pub fn open_disks(&mut self) -> Result<Vec<u64>, OutsideError> {
        let mut images = Vec::new();
        for option in &self.disk_options {
            let image = DiskImage::open(&option.path, option.access(), option.caching())?;
            if option.is_reserved() {
                self.fences.add(&option.path)?;
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
        self.disks = Some(disks);
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
    pub fn may_start(&self, last: Option<&GenerationRecord>) -> Result<(), OutsideError> {
        Ok(self.marks.check(last)?)
    }

    /// From now on the private disks are those of this generation, which `owner` owns.
    ///
    /// # Errors
    /// If that cannot be noted beside them.
    pub fn mark_current(&self, generation: u64, owner: u128) -> Result<(), OutsideError> {
        Ok(self.marks.store(CopyState::Current, generation, owner)?)
    }

    /// The disks, opened unless they are already, for whoever orders what is asked of them.
    ///
    /// # Errors
    /// As [`Outside::open`].
    pub fn take_disks(&mut self) -> Result<Disks<DiskThreads>, OutsideError> {
        loop {
            match self.disks.take() {
                Some(disks) => return Ok(disks),
                None => self.open_disks()?,
            };
        }
    }

    /// The guest has ended: what it had asked of private disks and was not told of is carried out here as on the backup,
    /// so that both copies stay level, once what `threads` are at has landed.
    ///
    /// # Errors
    /// If a disk fails; the copies may differ then.
    pub fn finish_private(&mut self, unfinished: Vec<DiskRequest>, threads: DiskThreads) -> Result<(), OutsideError> {
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
    pub fn fence_disks(&mut self, me: u128) -> JoinHandle<(Fences, Result<(), ScsiError>)> {
        let mut fences = std::mem::take(&mut self.fences);
        tokio::task::spawn_blocking(move || {
            let taken = fences.take(me);
            (fences, taken)
        })
    }

    /// Waits for that.
    ///
    /// # Errors
    /// If a device refuses, or stays silent: the guest must not run here.
    pub async fn fenced(&mut self, fencing: JoinHandle<(Fences, Result<(), ScsiError>)>) -> Result<(), OutsideError> {
        let (fences, taken) = fencing.await?;
        self.fences = fences;
        taken.map_err(OutsideError::NotFenced)
    }

    /// The guest has ended here: its disks are free. What fails is only told, for the next owner takes them anyway.
    pub fn give_disks_back(&mut self) {
        self.fences.release();
    }

    /// Notices that another host has fenced this one off.
    #[must_use]
    pub fn superseded(&self) -> Superseded {
        self.superseded.clone()
    }

    /// Starts to read the consoles' input.
    ///
    /// # Errors
    /// As [`Outside::open`].
    pub fn listen(&mut self) -> Result<(), OutsideError> {
        for console in self.consoles.values_mut() {
            console.listen(self.events.clone())?;
        }
        Ok(())
    }

    /// Inbound frames reach the guest from now on, those kept first.
    pub fn forward_frames(&self) {
        for nic in &self.nics {
            nic.reader.go_live();
        }
    }

    /// Tells the switches where the guest's MAC addresses are now (PROTOCOL 22). Failures do not matter: it is repeated.
    pub fn announce(&self, macs: &[[u8; 6]]) {
        for (nic, mac) in self.nics.iter().zip(macs) {
            if let Err(error) = nic.backend.send(&rarp_frame(*mac)) {
                tracing::debug!("RARP: {error}");
            }
        }
    }

    /// The guest gets random bytes, as it asked for.
    ///
    /// # Errors
    /// If the host has none, or the vCPU thread is gone.
    pub fn want_entropy(&self, len: u32) -> Result<(), OutsideError> {
        let bytes = host_entropy(len)?;
        let answered = self.events.answer(HostEvent::Entropy(bytes));
        answered.map_err(|_| OutsideError::Gone)
    }

    /// Lets a frame or console bytes go whose turn has come; returns when their system call has. A disk request leaves
    /// through its plan and is nothing here.
    ///
    /// # Errors
    /// If the outside cannot take it for good (a full console disk).
    pub fn emit(&mut self, emission: &Emission) -> Result<Sent, OutsideError> {
        match emission {
            Emission::Frame { nic, bytes } => match self.nics.get(usize::from(*nic)) {
                // A TAP that is gone is an unplugged cable to the guest; `run::health` sees it.
                Some(nic) => Ok(nic.backend.send(bytes).unwrap_or_else(|error| {
                    tracing::debug!("a frame is lost: {error}");
                    Sent::Dropped
                })),
                None => Ok(Sent::Dropped),
            },
            Emission::Console { port, position, bytes } => match self.consoles.get_mut(port) {
                Some(console) => console.write(*position, bytes).map_err(OutsideError::ConsoleWrite),
                None => Ok(Sent::Dropped),
            },
            Emission::Disk(_) | Emission::PrivateDisk(_) | Emission::WantEntropy { .. } => Ok(Sent::Done),
        }
    }
}
