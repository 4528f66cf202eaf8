//! Everything a live guest touches outside, opened from this host's own settings: cables, consoles, disks.
//!
//! [`Outside::release`] is the only way out, and only outputs whose turn has come are given to it (`ftvm_machine::output`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ftvm_schema::entry::{ConsolePort, DiskStatus};
use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::arbiter::Record;
use shared_disk::image::{Image, ImageError};
use shared_disk::mark::Held;
use shared_disk::mirror::Written;
use shared_disk::plan::Gate;
use tokio::sync::mpsc;

use super::fence::{Fences, Superseded};
use super::marks::Marks;
use super::mirror::{BlockSource, lock};
use crate::cli::HostArgs;
use ftvm_host::Sent;
use ftvm_host::console::{ByteStream, Console, ConsoleTarget};
use ftvm_host::disk::{Disk, DiskPool, Ended, Losses};
use ftvm_host::entropy::host_entropy;
use ftvm_host::lease_guard::{LeaseGuard, LeaseGuardError};
use ftvm_host::net::rarp::rarp_frame;
use ftvm_host::net::{Inbound, NetBackend, NetReader, spawn_reader};
use ftvm_host::option::DiskOption;
use ftvm_host::queue::EventSender;
use ftvm_machine::output::{Emission, Output};
use ftvm_roles::disks::{DiskShell, Disks, DisksError};
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::primary::{UnderWay, Writes};

/// What of a host's devices fails.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutsideError(String);

impl OutsideError {
    fn from(error: impl std::fmt::Display) -> Self {
        OutsideError(error.to_string())
    }

    /// The vCPU thread does not listen any more.
    #[must_use]
    pub fn gone() -> Self {
        OutsideError("the vCPU thread is gone".to_owned())
    }
}

/// Kills this process if a shared-disk write is still in flight when the lease ends (PROTOCOL 14).
#[derive(Debug)]
struct Fence {
    guard: LeaseGuard,
    writes: usize,
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

#[derive(Debug)]
struct Nic {
    backend: Arc<NetBackend>,
    reader: NetReader,
}

/// The threads that do the I/O, and the fence.
#[derive(Debug)]
struct DiskThreads {
    pool: DiskPool,
    fence: Arc<Mutex<Fence>>,
    /// To private disks; they need no fence.
    written: Arc<Mutex<Written>>,
}

impl DiskThreads {
    fn fence(&self) -> MutexGuard<'_, Fence> {
        self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fence {
    fn write_over(&mut self) -> Result<(), LeaseGuardError> {
        self.writes = self.writes.saturating_sub(1);
        if self.writes == 0 { self.guard.disarm() } else { Ok(()) }
    }
}

impl DiskShell for DiskThreads {
    type Error = OutsideError;

    fn write_begins(&mut self) {
        self.fence().writes += 1;
    }

    fn writes(&self) -> usize {
        self.fence().writes + lock(&self.written).under_way()
    }

    fn write_given_up(&mut self) -> Result<(), OutsideError> {
        self.fence().write_over().map_err(OutsideError::from)
    }

    fn arm(&mut self, deadline_ns: u64) -> Result<(), OutsideError> {
        let mut fence = self.fence();
        if fence.writes == 0 {
            return Ok(());
        }
        fence.guard.arm(deadline_ns).map_err(OutsideError::from)
    }

    fn disarm(&mut self) -> Result<(), OutsideError> {
        self.fence().guard.disarm().map_err(OutsideError::from)
    }

    fn start(&mut self, request: DiskRequest) -> Result<(), OutsideError> {
        if matches!(request.op, DiskOp::Write { .. }) {
            let mut written = lock(&self.written);
            if written.has(request.disk) {
                written.begins();
            }
        }
        self.pool.submit(request).map_err(OutsideError::from)
    }
}

/// This host's side of a guest.
#[derive(Debug)]
pub struct Outside {
    nics: Vec<Nic>,
    consoles: BTreeMap<ConsolePort, Console>,
    disk_options: Vec<DiskOption>,
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
            let backend = Arc::new(NetBackend::open(&net.cable).map_err(OutsideError::from)?);
            let nic = u8::try_from(index).map_err(OutsideError::from)?;
            let reader = spawn_reader(Arc::clone(&backend), nic, inbound, keep, events.clone());
            nics.push(Nic {
                backend,
                reader: reader.map_err(OutsideError::from)?,
            });
        }
        let mut consoles = BTreeMap::new();
        let targets = [
            (ConsolePort::Serial, Some(&host.console)),
            (ConsolePort::Virtio, host.virtio_console.as_ref()),
        ];
        for (port, target) in targets {
            if let Some(target) = target {
                let console = Console::open(target, port, stream).map_err(OutsideError::from)?;
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
            marks: Marks::of(&host.disks).map_err(OutsideError::from)?,
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
        let guard = LeaseGuard::new().map_err(OutsideError::from)?;
        let fence = Arc::new(Mutex::new(Fence { guard, writes: 0 }));
        let mut images = Vec::new();
        for option in &self.disk_options {
            let image = Image::open(&option.path, option.access(), option.caching()).map_err(OutsideError::from)?;
            if option.is_reserved() {
                self.fences.add(&option.path).map_err(OutsideError::from)?;
            }
            if option.is_private() {
                image.lock().map_err(OutsideError::from)?;
            }
            images.push((option.is_private(), Arc::new(image)));
        }
        let private = (0u8..).zip(&images).filter(|(_, (private, _))| *private);
        let private: BTreeMap<u8, Arc<Image>> = private.map(|(disk, (_, image))| (disk, Arc::clone(image))).collect();
        let numbers = private.keys().copied().collect();
        self.blocks = BlockSource::new(private);
        let written = self.blocks.written();
        let superseded = self.superseded.clone();
        let disks: Vec<Arc<dyn Disk>> = images
            .into_iter()
            .map(|(private, image)| -> Arc<dyn Disk> {
                if private {
                    let written = Arc::clone(&written);
                    Arc::new(PrivateDisk { image, written })
                } else {
                    let fence = Arc::clone(&fence);
                    Arc::new(FencedDisk {
                        image,
                        fence,
                        superseded: superseded.clone(),
                    })
                }
            })
            .collect();
        let sizes = disks.iter().map(|disk| disk.size()).collect();
        let losses = Arc::clone(&self.losses);
        let losses: Losses = Arc::new(move |disk, what, failure| {
            let losses = losses.lock().unwrap_or_else(PoisonError::into_inner);
            let lost = DiskLost { disk, what, failure };
            match &*losses {
                Some(told) => told.send(lost).map_err(|unsent| unsent.0.failure),
                None => Err(lost.failure),
            }
        });
        let pool = DiskPool::start(&disks, &self.events, &losses).map_err(OutsideError::from)?;
        let threads = DiskThreads { pool, fence, written };
        self.disks = Some(Disks::new(threads, disks.len()).with_private(numbers));
        Ok(sizes)
    }

    /// Where disk requests end that failed because the way to the disk is lost. Until this is called, the guest is
    /// told of them like of any other.
    #[must_use]
    pub fn losses(&mut self) -> mpsc::UnboundedReceiver<DiskLost> {
        // Unbounded here, bounded by the requests in flight.
        let (told, losses) = mpsc::unbounded_channel();
        *self.losses.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
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
    pub fn may_start(&self, last: Option<&Record>) -> Result<(), OutsideError> {
        self.marks.check(last).map_err(OutsideError::from)
    }

    /// From now on the private disks are those of this generation, which `owner` owns.
    ///
    /// # Errors
    /// If that cannot be noted beside them.
    pub fn mark_current(&self, generation: u64, owner: u128) -> Result<(), OutsideError> {
        let stored = self.marks.store(Held::Current, generation, owner);
        stored.map_err(OutsideError::from)
    }

    /// The guest has ended: what it had asked of private disks and was not told of is carried out here as on the backup,
    /// so that both copies stay level. No request is taken after this.
    ///
    /// # Errors
    /// If a disk fails; the copies may differ then.
    pub fn finish_private(&mut self) -> Result<(), OutsideError> {
        if self.marks.is_empty() {
            return Ok(());
        }
        let Some(disks) = self.disks.take() else { return Ok(()) };
        let (unfinished, threads) = disks.into_unfinished();
        drop(threads); // what is in flight has landed
        for request in unfinished {
            if let (DiskOp::Write { offset, data }, Some(image)) = (&request.op, self.blocks.image(request.disk)) {
                image.write_at(*offset, data).map_err(OutsideError::from)?;
            }
        }
        self.blocks
            .images()
            .try_for_each(Image::flush)
            .map_err(OutsideError::from)
    }

    /// Keeps every other host from writing to the disks with `reserve=on`, as incarnation `me`, which has just won the right
    /// to live. Before the first write. A device may keep this waiting for a minute, on a thread of its own.
    ///
    /// # Errors
    /// As [`Outside::open`].
    pub async fn fence_disks(&mut self, me: u128) -> Result<(), OutsideError> {
        let refused = |why| OutsideError(format!("a disk is not fenced, so the guest does not run here: {why}"));
        let mut fences = std::mem::take(&mut self.fences);
        let taking = tokio::task::spawn_blocking(move || {
            let taken = fences.take(me);
            (fences, taken)
        });
        let (fences, taken) = taking.await.map_err(|e| refused(e.to_string()))?;
        self.fences = fences;
        taken.map_err(|e| refused(e.to_string()))
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
            console.listen(self.events.clone()).map_err(OutsideError::from)?;
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

    /// Takes over what needs a place in a plan, or is no output at all: disk requests in the order the guest made them,
    /// and a wish for entropy.
    ///
    /// # Errors
    /// If a plan refuses the request, which the device's own bounds should prevent, or the host has no entropy.
    pub fn accept(&mut self, emission: &Emission, gate: Gate) -> Result<(), OutsideError> {
        match emission {
            Emission::Disk(request) | Emission::PrivateDisk(request) => self
                .disks(request.disk)?
                .accept(request, gate)
                .map_err(OutsideError::from),
            Emission::WantEntropy { len } => {
                let bytes = host_entropy(*len).map_err(OutsideError::from)?;
                self.events
                    .answer(HostEvent::Entropy(bytes))
                    .map_err(OutsideError::from)
            }
            Emission::Frame { .. } | Emission::Console { .. } => Ok(()),
        }
    }

    /// Lets an output go whose turn has come; returns when its system call has.
    ///
    /// # Errors
    /// If the outside cannot take it for good (a full console disk).
    pub fn release(&mut self, output: &Output) -> Result<Sent, OutsideError> {
        match &output.emission {
            Emission::Frame { nic, bytes } => match self.nics.get(usize::from(*nic)) {
                // A TAP that is gone is an unplugged cable to the guest; `run::health` sees it.
                Some(nic) => Ok(nic.backend.send(bytes).unwrap_or_else(|error| {
                    tracing::debug!("a frame is lost: {error}");
                    Sent::Dropped
                })),
                None => Ok(Sent::Dropped),
            },
            Emission::Console { port, position, bytes } => match self.consoles.get_mut(port) {
                Some(console) => console.write(*position, bytes).map_err(OutsideError::from),
                None => Ok(Sent::Dropped),
            },
            Emission::Disk(request) | Emission::PrivateDisk(request) => {
                let released = self.disks(request.disk)?.release(request);
                released.map(|()| Sent::Done).map_err(OutsideError::from)
            }
            Emission::WantEntropy { .. } => Ok(Sent::Done),
        }
    }

    /// The guest has been told that a request is finished.
    ///
    /// # Errors
    /// If no such request was made.
    pub fn finished(&mut self, disk: u8, id: u64) -> Result<(), OutsideError> {
        self.disks(disk)?.finished(disk, id).map_err(OutsideError::from)
    }

    /// The backup knows that the guest has been told.
    ///
    /// # Errors
    /// If no such request was made.
    pub fn acked(&mut self, disk: u8, id: u64) -> Result<(), OutsideError> {
        self.disks(disk)?.acked(disk, id).map_err(OutsideError::from)
    }

    /// There is no backup any more: nothing waits for acks.
    pub fn release_all(&mut self) {
        if let Some(disks) = &mut self.disks {
            disks.release_all();
        }
    }

    /// Whether the disks' plans can take what the guest may ask of them at one exit.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.disks.as_ref().is_none_or(Disks::has_room)
    }

    /// Writes to disks that have begun and are not over.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.disks.as_ref().map_or(0, Disks::writes)
    }

    /// Disk requests that this host's threads are at.
    #[must_use]
    pub fn under_way(&mut self) -> Vec<UnderWay> {
        let disks = self.disks.as_mut();
        disks.map_or_else(Vec::new, |disks| disks.shell().pool.under_way())
    }

    /// Whether disk requests wait for leave to start.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.disks.as_ref().is_some_and(Disks::has_ready)
    }

    /// Starts the disk requests whose turn has come. `writes` is asked after the fence is armed, right before each
    /// write starts: the order of PROTOCOL 14.
    ///
    /// # Errors
    /// If the fence or the pool fails.
    pub fn start_ready(&mut self, writes: impl Fn() -> Writes) -> Result<(), OutsideError> {
        let disks = self.disks.as_mut();
        disks.map_or(Ok(()), |disks| disks.start_ready(writes).map_err(OutsideError::from))
    }

    /// The lease has been renewed, or there is none any more: writes in flight have longer to land.
    ///
    /// # Errors
    /// If the fence fails.
    pub fn extend_fence(&mut self, writes: Writes) -> Result<(), OutsideError> {
        let disks = self.disks.as_mut();
        disks.map_or(Ok(()), |disks| disks.extend_fence(writes).map_err(OutsideError::from))
    }

    fn disks(&mut self, disk: u8) -> Result<&mut Disks<DiskThreads>, OutsideError> {
        let closed = || OutsideError::from(DisksError::<OutsideError>::NoSuchDisk(disk));
        self.disks.as_mut().ok_or_else(closed)
    }
}
