//! In which order requests may touch the disk (PROTOCOL 8; the paper's section 3.2).
//!
//! A guest may have many requests under way, and a real disk carries them out in any order. Where two touch the same
//! blocks, that order would be an input that nobody logged; and after a failover, when everything unfinished is issued
//! again, it could be another one. So requests that overlap touch the disk in the order in which the guest made them:
//!
//! - a read starts when no earlier overlapping write is unfinished;
//! - a write starts when every earlier overlapping request is finished *and* the backup has acked that: the backup would
//!   otherwise issue such a request again after this write had landed, and a read would then find what was written later;
//! - a flush starts when every earlier write is finished;
//! - a request whose gate is [`Gate::Held`] starts only when it is released as well (the output rule).
//!
//! A plan belongs to a live guest's disk, and to no backup: a backup issues no requests to shared disks, and one that
//! goes live makes a new plan and submits to it what the log did not finish. The plan does no I/O itself. Each call
//! appends the requests that may start now, in their order, to a vector of the caller's. A side that has no backup says
//! [`DiskPlan::acked`] as soon as it has told the guest.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use ftvm_schema::request::{DiskOp, DiskRequest};
use thiserror::Error;

/// Whether a request may start as far as the output rule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Not before [`DiskPlan::release`]: writes and flushes of a guest that has a backup.
    Held,
    /// At once: reads, and everything of a guest without a backup.
    Open,
}

/// How much of one disk may be outstanding: submitted and not acked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Number of requests.
    pub requests: usize,
    /// Bytes that they read or write together.
    pub bytes: u64,
}

impl Default for PlanLimits {
    /// 1024 requests, four times what a virtqueue of 256 holds, and 64 MiB, which a fast disk moves in some 50 ms.
    fn default() -> Self {
        PlanLimits {
            requests: 1024,
            bytes: 64 << 20,
        }
    }
}

/// Why a call was refused; the plan is unchanged then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// The bounds are reached: the guest must wait until requests finish and are acked (PROTOCOL 9).
    #[error(
        "too much disk I/O is outstanding: {requests} requests with {bytes} bytes, limits {} and {}",
        limits.requests, limits.bytes
    )]
    Full {
        /// Outstanding requests.
        requests: usize,
        /// Outstanding bytes, without those of the refused request.
        bytes: u64,
        /// The bounds.
        limits: PlanLimits,
    },
    /// One request with more bytes than the bound, which could never be accepted: the guest's device must refuse it.
    #[error("disk request {id} moves {bytes} bytes, limit {limit}")]
    TooLarge {
        /// The refused request.
        id: u64,
        /// What it moves.
        bytes: u64,
        /// [`PlanLimits::bytes`].
        limit: u64,
    },
    /// Ids must grow.
    #[error("disk request {id} came after request {last}: requests must be numbered upwards")]
    OutOfOrder {
        /// The refused request.
        id: u64,
        /// The last one accepted.
        last: u64,
    },
    /// Offset and length reach beyond what a disk can have.
    #[error("disk request {id} ends beyond 2^64 bytes")]
    Extent {
        /// The refused request.
        id: u64,
    },
    /// No such request is outstanding: never made, or acked already.
    #[error("disk request {id} is not outstanding")]
    Unknown {
        /// The id asked for.
        id: u64,
    },
    /// A request cannot finish twice.
    #[error("disk request {id} has finished before")]
    Finished {
        /// The id asked for.
        id: u64,
    },
    /// A completion cannot be acked before there is one.
    #[error("disk request {id} is acked but has not finished")]
    Unfinished {
        /// The id asked for.
        id: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestKind {
    Read,
    Write,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestStage {
    Waiting,
    Started,
    Finished,
}

/// How far an earlier request must have come to hold a later one back no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Finished,
    /// Acked, and so finished as well.
    Acked,
}

#[derive(Clone, Debug)]
struct PlannedRequest {
    request: DiskRequest,
    kind: RequestKind,
    /// The bytes of the disk that it touches; empty for a flush.
    extent: Range<u64>,
    gate: Gate,
    stage: RequestStage,
    /// How many earlier requests hold this one back.
    blockers: usize,
}

impl PlannedRequest {
    fn new(request: DiskRequest, gate: Gate) -> Option<Self> {
        let (kind, offset, len) = match &request.op {
            DiskOp::Read { offset, len } => (RequestKind::Read, *offset, u64::from(*len)),
            DiskOp::Write { offset, data } => (RequestKind::Write, *offset, u64::try_from(data.len()).ok()?),
            DiskOp::Flush => (RequestKind::Flush, 0, 0),
        };
        let extent = offset..offset.checked_add(len)?;
        Some(PlannedRequest {
            request,
            kind,
            extent,
            gate,
            stage: RequestStage::Waiting,
            blockers: 0,
        })
    }

    fn bytes(&self) -> u64 {
        self.extent.end - self.extent.start
    }

    fn overlaps(&self, other: &PlannedRequest) -> bool {
        self.extent.start.max(other.extent.start) < self.extent.end.min(other.extent.end)
    }

    /// Until when this request, which is not acked, holds back `later`; `None` if it does not, or does no more.
    fn holds_back(&self, later: &PlannedRequest) -> Option<Until> {
        let is_write = self.kind == RequestKind::Write;
        let until = match later.kind {
            RequestKind::Read => (is_write && self.overlaps(later)).then_some(Until::Finished)?,
            RequestKind::Write => self.overlaps(later).then_some(Until::Acked)?,
            RequestKind::Flush => is_write.then_some(Until::Finished)?,
        };
        (until == Until::Acked || self.stage != RequestStage::Finished).then_some(until)
    }

    /// Starts the request if it has not started and nothing stands in its way.
    fn start(&mut self, started: &mut Vec<DiskRequest>) {
        if (self.gate, self.blockers, self.stage) == (Gate::Open, 0, RequestStage::Waiting) {
            started.push(self.request.clone());
            self.stage = RequestStage::Started;
        }
    }
}

/// The outstanding requests of one disk.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    limits: PlanLimits,
    entries: BTreeMap<u64, PlannedRequest>,
    /// Bytes that all entries move together.
    bytes: u64,
    /// The id of the last request that was accepted.
    last: Option<u64>,
}

impl DiskPlan {
    /// An empty plan.
    #[must_use]
    pub fn new(limits: PlanLimits) -> Self {
        DiskPlan {
            limits,
            entries: BTreeMap::new(),
            bytes: 0,
            last: None,
        }
    }

    /// Accepts the guest's next request, and starts it if it may start. Ids grow, but need not follow each other: a
    /// side that goes live begins with the requests that the log left unfinished.
    ///
    /// # Errors
    /// [`PlanError::Full`], [`PlanError::TooLarge`], [`PlanError::OutOfOrder`] or [`PlanError::Extent`].
    pub fn submit(
        &mut self,
        request: DiskRequest,
        gate: Gate,
        started: &mut Vec<DiskRequest>,
    ) -> Result<(), PlanError> {
        let id = request.id;
        if let Some(last) = self.last.filter(|last| *last >= id) {
            return Err(PlanError::OutOfOrder { id, last });
        }
        let entry = PlannedRequest::new(request, gate).ok_or(PlanError::Extent { id })?;
        let (requests, bytes, limits) = (self.entries.len(), self.bytes, self.limits);
        if entry.bytes() > limits.bytes {
            return Err(PlanError::TooLarge {
                id,
                bytes: entry.bytes(),
                limit: limits.bytes,
            });
        }
        if requests >= limits.requests || entry.bytes() > limits.bytes.saturating_sub(bytes) {
            return Err(PlanError::Full {
                requests,
                bytes,
                limits,
            });
        }
        self.insert(id, entry, started);
        self.last = Some(id);
        Ok(())
    }

    /// The output rule lets request `id` go. Harmless if it was released before or never held.
    ///
    /// # Errors
    /// [`PlanError::Unknown`].
    pub fn release(&mut self, id: u64, started: &mut Vec<DiskRequest>) -> Result<(), PlanError> {
        let entry = self.entries.get_mut(&id).ok_or(PlanError::Unknown { id })?;
        entry.gate = Gate::Open;
        entry.start(started);
        Ok(())
    }

    /// The I/O of request `id` is over, whatever its status, and the guest has been told.
    ///
    /// # Errors
    /// [`PlanError::Unknown`] or [`PlanError::Finished`].
    pub fn finished(&mut self, id: u64, started: &mut Vec<DiskRequest>) -> Result<(), PlanError> {
        let entry = self.entries.get_mut(&id).ok_or(PlanError::Unknown { id })?;
        if entry.stage == RequestStage::Finished {
            return Err(PlanError::Finished { id });
        }
        let unfinished = entry.clone();
        entry.stage = RequestStage::Finished;
        self.unblock(id, &unfinished, Until::Finished, started);
        Ok(())
    }

    /// The backup has acked that request `id` is finished, so that it will not issue it again; or there is no backup.
    ///
    /// # Errors
    /// [`PlanError::Unknown`] or [`PlanError::Unfinished`].
    pub fn acked(&mut self, id: u64, started: &mut Vec<DiskRequest>) -> Result<(), PlanError> {
        let entry = self.entries.get(&id).ok_or(PlanError::Unknown { id })?;
        if entry.stage != RequestStage::Finished {
            return Err(PlanError::Unfinished { id });
        }
        let entry = self.entries.remove(&id).ok_or(PlanError::Unknown { id })?;
        self.bytes -= entry.bytes();
        self.unblock(id, &entry, Until::Acked, started);
        Ok(())
    }

    /// The primary has won the test-and-set and goes on alone: every request is released. For requests that are
    /// finished and whose acks will never come, the caller says [`DiskPlan::acked`] besides.
    pub fn release_all(&mut self, started: &mut Vec<DiskRequest>) {
        for entry in self.entries.values_mut() {
            entry.gate = Gate::Open;
            entry.start(started);
        }
    }

    /// The requests that are not acked, in the guest's order.
    pub fn pending(&self) -> impl Iterator<Item = &DiskRequest> {
        self.entries.values().map(|entry| &entry.request)
    }

    /// Whether `requests` more requests that move `bytes` bytes together would be accepted now.
    #[must_use]
    pub fn has_room(&self, requests: usize, bytes: u64) -> bool {
        requests <= self.limits.requests.saturating_sub(self.entries.len())
            && bytes <= self.limits.bytes.saturating_sub(self.bytes)
    }

    /// Adds an entry behind all others, and counts those that hold it back.
    fn insert(&mut self, id: u64, mut entry: PlannedRequest, started: &mut Vec<DiskRequest>) {
        let blockers = self
            .entries
            .values()
            .filter(|earlier| earlier.holds_back(&entry).is_some());
        entry.blockers = blockers.count();
        entry.start(started);
        self.bytes += entry.bytes();
        self.entries.insert(id, entry);
    }

    /// Request `id`, which was `earlier` a moment ago, has now come as far as `until`: starts what waited only for
    /// that.
    fn unblock(&mut self, id: u64, earlier: &PlannedRequest, until: Until, started: &mut Vec<DiskRequest>) {
        for (_, later) in self.entries.range_mut((Bound::Excluded(id), Bound::Unbounded)) {
            if earlier.holds_back(later) == Some(until) {
                later.blockers -= 1;
                later.start(started);
            }
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "plan_model_tests.rs"]
mod model_tests;
