//! Executes disk requests on a small pool of threads.
//!
//! Requests of one pool run in parallel and finish in any order: whoever submits has put overlapping ones in order
//! (`shared_disk::plan`), holds the lease, and has armed the lease guard for writes to shared storage (PROTOCOL 8, 14). A
//! finished request comes back through the event queue and becomes an input; until then it has not happened.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use ftvm_schema::entry::DiskStatus;
use ftvm_schema::request::{DiskOp, DiskRequest};
use logging_channel::clock::boottime_ns;
use parking_lot::Mutex;

use crate::queue::EventSender;
use ftvm_roles::disks::{LateEffect, UnderWay};
use ftvm_roles::host_event::HostEvent;

/// Threads of a pool: enough to overlap a slow flush with reads, few enough to start at once.
pub const DISK_THREADS: usize = 4;

/// Requests submitted and not finished: the virtio queues of eight disks, 128 requests each.
pub const MAX_IN_FLIGHT: usize = 1024;

/// Something that can execute requests: an image, or a test's memory.
pub trait Disk: Send + Sync + Debug {
    /// Executes one request, returning when it is complete in the sense of PROTOCOL 8: a write when the other host would
    /// read it, a flush when it is stable. The data is what a read brought, and empty otherwise.
    fn execute(&self, request: &DiskRequest) -> Ended;

    /// Size in bytes, a multiple of 512.
    fn size(&self) -> u64;

    /// Whether another side has reserved the disk for itself. From then on no answer reaches the guest, whose life goes on
    /// there.
    fn is_superseded(&self) -> bool {
        false
    }
}

/// How a request has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub status: DiskStatus,
    pub data: Vec<u8>,
    /// What the host said, where it has lost the way to the disk: another host may reach it still.
    pub lost: Option<String>,
}

impl From<(DiskStatus, Vec<u8>)> for Ended {
    fn from((status, data): (DiskStatus, Vec<u8>)) -> Self {
        let lost = None;
        Ended { status, data, lost }
    }
}

/// Who is told of requests whose disk is lost, instead of the guest: disk, what the host said, what the guest would be told.
/// Gives it back where nobody wants to know.
pub type Losses = Arc<dyn Fn(u8, String, HostEvent) -> Result<(), HostEvent> + Send + Sync>;

/// Why a request was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum DiskPoolError {
    /// No such disk in this machine.
    #[error("disk request {id} is for disk {disk}, but the machine has {disks} disk(s)")]
    NoSuchDisk { disk: u8, id: u64, disks: usize },
    /// More than the machine's virtio queues can hold.
    #[error("disk {disk}, request {id}: {MAX_IN_FLIGHT} requests are in flight already")]
    Full { disk: u8, id: u64 },
    /// A thread could not be started.
    #[error("cannot start a disk thread: {0}")]
    Thread(std::io::Error),
}

/// The threads. Dropping the pool waits for the requests in flight, so that none lands later.
#[derive(Debug)]
pub struct DiskPool {
    disks: usize,
    requests: Option<Sender<DiskRequest>>,
    in_flight: Arc<AtomicUsize>,
    /// What each thread is at.
    under_way: Arc<[Mutex<Option<UnderWay>>; DISK_THREADS]>,
    threads: Vec<JoinHandle<()>>,
}

impl DiskPool {
    /// Starts the threads. A request's `disk` is an index into `disks`.
    ///
    /// # Errors
    /// [`DiskPoolError::Thread`].
    pub fn start(disks: &[Arc<dyn Disk>], events: &EventSender, losses: &Losses) -> Result<DiskPool, DiskPoolError> {
        let (sender, receiver) = bounded(MAX_IN_FLIGHT);
        let mut pool = DiskPool {
            disks: disks.len(),
            requests: Some(sender),
            in_flight: Arc::new(AtomicUsize::new(0)),
            under_way: Arc::default(),
            threads: Vec::with_capacity(DISK_THREADS),
        };
        for number in 0..DISK_THREADS {
            let worker = Worker {
                disks: disks.to_vec(),
                requests: receiver.clone(),
                in_flight: Arc::clone(&pool.in_flight),
                under_way: Arc::clone(&pool.under_way),
                number,
                events: events.clone(),
                losses: Arc::clone(losses),
            };
            let thread = std::thread::Builder::new()
                .name(format!("disk-io{number}"))
                .spawn(move || worker.run());
            pool.threads.push(thread.map_err(DiskPoolError::Thread)?);
        }
        Ok(pool)
    }

    /// Hands over a request. Never waits. Its end comes as [`HostEvent::DiskDone`].
    ///
    /// # Errors
    /// [`DiskPoolError::NoSuchDisk`], [`DiskPoolError::Full`].
    pub fn submit(&self, request: DiskRequest) -> Result<(), DiskPoolError> {
        let (disk, id) = (request.disk, request.id);
        if usize::from(disk) >= self.disks {
            let disks = self.disks;
            return Err(DiskPoolError::NoSuchDisk { disk, id, disks });
        }
        if self.in_flight.fetch_add(1, Ordering::AcqRel) >= MAX_IN_FLIGHT {
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(DiskPoolError::Full { disk, id });
        }
        let requests = self.requests.as_ref().expect("taken only when the pool is dropped");
        requests
            .try_send(request)
            .expect("the channel has room for all in flight, and threads that outlive it");
        Ok(())
    }

    /// What the threads are at; what waits for them is not among it.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        self.under_way.iter().filter_map(|slot| *slot.lock()).collect()
    }

    /// Requests submitted and not finished.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

impl Drop for DiskPool {
    fn drop(&mut self) {
        drop(self.requests.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

struct Worker {
    disks: Vec<Arc<dyn Disk>>,
    requests: Receiver<DiskRequest>,
    in_flight: Arc<AtomicUsize>,
    under_way: Arc<[Mutex<Option<UnderWay>>; DISK_THREADS]>,
    number: usize,
    events: EventSender,
    losses: Losses,
}

impl Worker {
    fn run(&self) {
        for request in &self.requests {
            let disk = self.disks[usize::from(request.disk)].as_ref();
            let effect = match request.op {
                DiskOp::Write { .. } => LateEffect::Lands,
                DiskOp::Read { .. } | DiskOp::Flush => LateEffect::Nothing,
            };
            *self.under_way[self.number].lock() = Some(UnderWay {
                disk: request.disk,
                effect,
                since_ns: boottime_ns(),
            });
            let Ended { status, data, lost } = checked(&request, disk);
            *self.under_way[self.number].lock() = None;
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            if disk.is_superseded() {
                continue;
            }
            let done = HostEvent::DiskDone {
                disk: request.disk,
                id: request.id,
                status,
                data,
            };
            let done = match lost {
                Some(what) => (self.losses)(request.disk, what, done),
                None => Err(done),
            };
            let Err(done) = done else { continue };
            // Without a consumer there is no guest to tell; requests already submitted still have to land.
            let _ = self.events.answer(done);
        }
    }
}

/// Executes a request and holds the disk to its contract: exactly the bytes asked for, and only for a read that worked.
fn checked(request: &DiskRequest, disk: &dyn Disk) -> Ended {
    let ended = disk.execute(request);
    let expected = match (&request.op, ended.status) {
        (DiskOp::Read { len, .. }, DiskStatus::Ok) => usize::try_from(*len).expect("a 64-bit host"),
        _ => 0,
    };
    if ended.data.len() == expected {
        return ended;
    }
    tracing::error!(
        "disk {}, request {}: {} bytes came back, {expected} were expected",
        request.disk,
        request.id,
        ended.data.len()
    );
    (DiskStatus::IoError, Vec::new()).into()
}

#[cfg(test)]
mod tests;
