//! The disks of a live guest: when a request may start, and how writes stay within the lease.
//!
//! Plans order the requests of each disk (PROTOCOL 8); a write moreover needs leave to write at the moment it starts and
//! must have landed before the lease ends (PROTOCOL 14). What really touches a disk or a timer is a [`DiskShell`]: threads
//! and a POSIX timer in production, events in the simulator.

use ftvm_schema::entry::Position;
use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::plan::{DiskPlan, Gate, PlanError, PlanLimits};

use ftvm_devices::{MAX_OUTSTANDING, MAX_OUTSTANDING_DATA};

/// Whether shared-disk writes may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Nobody else may become live.
    Freely,
    /// Only if they have landed by this CLOCK_BOOTTIME, in nanoseconds.
    Until(u64),
    /// No.
    NotNow,
    /// No, and not to private disks either: a joining backup is about to get the state, and has what is on the disks.
    Settling,
}

/// A request that a thread of this host is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    pub disk: u8,
    pub effect: LateEffect,
    /// When it was begun: CLOCK_BOOTTIME in nanoseconds.
    pub since_ns: u64,
}

/// What a request does when it ends late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LateEffect {
    /// Nothing that anybody sees: it reads, or flushes.
    Nothing,
    /// It writes.
    Lands,
}

/// What carries out the requests of [`Disks`]; links call it their hands. It counts the writes to shared disks that have begun
/// and are not over, and owns the lease guard: a timer that ends this process when the lease does. Whenever the last write is
/// over, it disarms the lease guard itself, at that moment.
pub trait DiskShell {
    type Error: std::error::Error + 'static;
    /// A write is about to start: from here on it counts.
    fn write_begins(&mut self);
    /// Writes that have begun and are not over.
    fn writes(&self) -> usize;
    /// A write that began does not start after all.
    ///
    /// # Errors
    /// The lease guard cannot be disarmed.
    fn write_given_up(&mut self) -> Result<(), Self::Error>;
    /// This process is to end at CLOCK_BOOTTIME `deadline_ns`, unless all writes are over before. Does nothing if none has begun.
    ///
    /// # Errors
    /// The lease guard cannot be armed.
    fn arm(&mut self, deadline_ns: u64) -> Result<(), Self::Error>;
    /// Nobody else may write: no deadline any more.
    ///
    /// # Errors
    /// The lease guard cannot be disarmed.
    fn disarm(&mut self) -> Result<(), Self::Error>;
    /// Starts the I/O.
    ///
    /// # Errors
    /// It cannot be started.
    fn start(&mut self, request: DiskRequest) -> Result<(), Self::Error>;
    /// Requests whose I/O is being done at this moment, which may be fewer than have started.
    fn under_way(&self) -> Vec<UnderWay>;
}

/// A disk request is finished: the guest has been told of its end at `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskEnd {
    pub at: Position,
    pub disk: u8,
    pub id: u64,
    pub known: Known,
}

/// When the backup can do without what was on the disk until a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// When it has the log up to there.
    Received,
    /// When it has executed the log up to there: it reads these blocks itself.
    Executed,
}

/// Why a request cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum DisksError<E: std::error::Error + 'static> {
    #[error("the guest uses disk {0}, which this host was not given: add --disk")]
    NoSuchDisk(u8),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Shell(E),
}

/// The disks of a live guest.
#[derive(Debug)]
pub struct Disks<S> {
    shell: S,
    plans: Vec<DiskPlan>,
    /// Requests whose turn in the plan has come, waiting for leave to write.
    ready: Vec<DiskRequest>,
    /// Disks that nobody else reaches: what touches them waits for no ack, no lease and no lease guard.
    private: Vec<u8>,
    /// What the lease guard was last told; while no write has begun since, it need not be told again.
    guard: Option<Writes>,
}

impl<S: DiskShell> Disks<S> {
    /// `count` disks.
    #[must_use]
    pub fn new(shell: S, count: usize) -> Self {
        Disks {
            shell,
            plans: (0..count).map(|_| DiskPlan::new(PlanLimits::default())).collect(),
            ready: Vec::new(),
            private: Vec::new(),
            guard: None,
        }
    }

    /// With these disks private.
    #[must_use]
    pub fn with_private(mut self, disks: Vec<u8>) -> Self {
        self.private = disks;
        self
    }

    /// How many disks are private.
    #[must_use]
    pub(crate) fn private_count(&self) -> usize {
        self.private.len()
    }

    /// Requests whose I/O is being done at this moment.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        self.shell.under_way()
    }

    fn is_private(&self, disk: u8) -> bool {
        self.private.contains(&disk)
    }

    /// What carries out the requests.
    pub fn shell(&mut self) -> &mut S {
        &mut self.shell
    }

    /// Takes over a request, in the order the guest made them.
    ///
    /// # Errors
    /// If a plan refuses it, which the device's own bounds should prevent.
    pub fn accept(&mut self, request: &DiskRequest, gate: Gate) -> Result<(), DisksError<S::Error>> {
        let gate = match request.op {
            DiskOp::Read { .. } => Gate::Open,
            DiskOp::Write { .. } | DiskOp::Flush if self.is_private(request.disk) => Gate::Open,
            DiskOp::Write { .. } | DiskOp::Flush => gate,
        };
        self.with_plan(request.disk, |plan, ready| plan.submit(request.clone(), gate, ready))
    }

    /// The output rule lets a request go.
    ///
    /// # Errors
    /// If no such request was made.
    pub fn release(&mut self, request: &DiskRequest) -> Result<(), DisksError<S::Error>> {
        self.with_plan(request.disk, |plan, ready| plan.release(request.id, ready))
    }

    /// The guest has been told that a request is finished.
    ///
    /// # Errors
    /// If no such request was made.
    pub fn finished(&mut self, disk: u8, id: u64) -> Result<(), DisksError<S::Error>> {
        self.with_plan(disk, |plan, ready| plan.finished(id, ready))?;
        if self.is_private(disk) {
            self.with_plan(disk, |plan, ready| plan.acked(id, ready))?;
        }
        Ok(())
    }

    /// The backup knows that the guest has been told. It does not matter where it has a copy of its own.
    ///
    /// # Errors
    /// If no such request was made.
    pub fn acked(&mut self, disk: u8, id: u64) -> Result<(), DisksError<S::Error>> {
        if self.is_private(disk) {
            return Ok(());
        }
        self.with_plan(disk, |plan, ready| plan.acked(id, ready))
    }

    /// The requests to private disks whose end the guest has not been told, in its order, and the hands that do nothing any
    /// more.
    #[must_use]
    pub(crate) fn into_unfinished(self) -> (Vec<DiskRequest>, S) {
        let private = self
            .private
            .iter()
            .filter_map(|disk| self.plans.get(usize::from(*disk)));
        (private.flat_map(DiskPlan::pending).cloned().collect(), self.shell)
    }

    /// There is no backup any more: nothing waits for acks.
    pub fn release_all(&mut self) {
        for plan in &mut self.plans {
            plan.release_all(&mut self.ready);
        }
    }

    /// Writes in flight.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.shell.writes()
    }

    /// Whether every plan can take what its device may ask for at one exit. A guest whose requests end faster than the
    /// backup acks must wait (PROTOCOL 9).
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.plans
            .iter()
            .all(|plan| plan.has_room(MAX_OUTSTANDING, MAX_OUTSTANDING_DATA))
    }

    /// Whether requests wait for leave to start.
    #[must_use]
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Starts the requests whose turn has come. `writes` is asked after the lease guard is armed, right before each write
    /// starts: the order of PROTOCOL 14.
    ///
    /// # Errors
    /// If the shell fails.
    pub fn start_ready(&mut self, writes: impl Fn() -> Writes) -> Result<(), DisksError<S::Error>> {
        let mut waiting = Vec::new();
        for request in std::mem::take(&mut self.ready) {
            let is_write = matches!(request.op, DiskOp::Write { .. });
            if is_write && self.is_private(request.disk) {
                if writes() == Writes::Settling {
                    waiting.push(request);
                    continue;
                }
            } else if is_write {
                self.shell.write_begins();
                self.guard = None;
                if let Writes::Until(deadline) = writes() {
                    self.shell.arm(deadline).map_err(DisksError::Shell)?;
                }
                if matches!(writes(), Writes::NotNow | Writes::Settling) {
                    self.shell.write_given_up().map_err(DisksError::Shell)?;
                    waiting.push(request);
                    continue;
                }
            }
            self.shell.start(request).map_err(DisksError::Shell)?;
        }
        self.ready = waiting;
        Ok(())
    }

    /// The lease has been renewed, or there is none any more: writes in flight have longer to land.
    ///
    /// # Errors
    /// If the lease guard fails.
    pub(crate) fn extend_guard(&mut self, writes: Writes) -> Result<(), DisksError<S::Error>> {
        if self.guard == Some(writes) {
            return Ok(());
        }
        let done = match writes {
            Writes::Until(deadline) => self.shell.arm(deadline),
            Writes::Freely => self.shell.disarm(),
            Writes::NotNow | Writes::Settling => return Ok(()),
        };
        self.guard = Some(writes);
        done.map_err(DisksError::Shell)
    }

    fn with_plan(
        &mut self,
        disk: u8,
        call: impl FnOnce(&mut DiskPlan, &mut Vec<DiskRequest>) -> Result<(), PlanError>,
    ) -> Result<(), DisksError<S::Error>> {
        let plan = self.plans.get_mut(usize::from(disk));
        let plan = plan.ok_or(DisksError::NoSuchDisk(disk))?;
        Ok(call(plan, &mut self.ready)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands that do everything at once.
    #[derive(Debug, Default)]
    struct Hands {
        begun: usize,
        started: Vec<(u8, u64)>,
    }

    impl DiskShell for Hands {
        type Error = std::convert::Infallible;

        fn write_begins(&mut self) {
            self.begun += 1;
        }

        fn writes(&self) -> usize {
            0
        }

        fn write_given_up(&mut self) -> Result<(), Self::Error> {
            Ok(())
        }

        fn arm(&mut self, _: u64) -> Result<(), Self::Error> {
            Ok(())
        }

        fn disarm(&mut self) -> Result<(), Self::Error> {
            Ok(())
        }

        fn start(&mut self, request: DiskRequest) -> Result<(), Self::Error> {
            self.started.push((request.disk, request.id));
            Ok(())
        }

        fn under_way(&self) -> Vec<UnderWay> {
            Vec::new()
        }
    }

    #[test]
    fn a_guest_that_reads_faster_than_the_backup_acks_is_stopped_before_its_plan_is_full() {
        let mut disks = Disks::new(Hands::default(), 2);
        let read = |id| DiskRequest {
            disk: 1,
            id,
            op: DiskOp::Read { offset: 0, len: 512 },
        };
        let limit = (PlanLimits::default().requests - MAX_OUTSTANDING) as u64;
        for id in 0..=limit {
            assert!(disks.has_room(), "at request {id}");
            disks.accept(&read(id), Gate::Held).unwrap();
            disks.finished(1, id).unwrap();
        }
        assert!(!disks.has_room());
        // What one exit may still bring fits.
        for id in limit + 1..limit + MAX_OUTSTANDING as u64 {
            disks.accept(&read(id), Gate::Held).unwrap();
        }
        disks.acked(1, 0).unwrap();
        assert!(!disks.has_room());
        for id in 1..=limit {
            disks.acked(1, id).unwrap();
        }
        assert!(disks.has_room());
    }

    fn write(disk: u8, id: u64) -> DiskRequest {
        let op = DiskOp::Write {
            offset: 0,
            data: std::sync::Arc::new(vec![0; 512]),
        };
        DiskRequest { disk, id, op }
    }

    fn started(disks: &mut Disks<Hands>, writes: Writes) -> Vec<(u8, u64)> {
        disks.start_ready(|| writes).unwrap();
        std::mem::take(&mut disks.shell().started)
    }

    #[test]
    fn a_private_write_waits_for_nothing_but_a_state_that_is_settled() {
        let mut disks = Disks::new(Hands::default(), 2).with_private(vec![1]);
        for disk in [0, 1] {
            disks.accept(&write(disk, 0), Gate::Held).unwrap();
        }
        assert_eq!(started(&mut disks, Writes::Settling), []);
        assert_eq!(started(&mut disks, Writes::NotNow), [(1, 0)], "no lease, no ack");
        assert_eq!(disks.shell().begun, 0);
        disks.release(&write(0, 0)).unwrap();
        assert_eq!(started(&mut disks, Writes::Settling), []);
        assert_eq!(started(&mut disks, Writes::NotNow), []);
        assert_eq!(started(&mut disks, Writes::Until(7)), [(0, 0)]);
        assert!(disks.shell().begun > 0);
    }

    #[test]
    fn an_overlapping_private_write_waits_for_the_end_of_the_first_and_for_no_ack() {
        let mut disks = Disks::new(Hands::default(), 2).with_private(vec![1]);
        for disk in [0, 1] {
            disks.accept(&write(disk, 0), Gate::Open).unwrap();
            disks.accept(&write(disk, 1), Gate::Open).unwrap();
        }
        assert_eq!(started(&mut disks, Writes::Freely), [(0, 0), (1, 0)]);
        disks.finished(0, 0).unwrap();
        disks.finished(1, 0).unwrap();
        assert_eq!(started(&mut disks, Writes::Freely), [(1, 1)]);
        disks.acked(1, 0).unwrap();
        disks.acked(0, 0).unwrap();
        assert_eq!(started(&mut disks, Writes::Freely), [(0, 1)]);
        let (unfinished, _) = disks.into_unfinished();
        let unfinished: Vec<_> = unfinished.iter().map(|request| (request.disk, request.id)).collect();
        assert_eq!(unfinished, [(1, 1)], "those of shared disks are the backup's too");
    }
}
