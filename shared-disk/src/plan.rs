//! In which order requests may touch the disk (PROTOCOL 8; the paper's section 3.2).
//!
//! A guest may have many requests under way, and a real disk finishes them in any order. Where two touch the same
//! blocks that order would be an input nobody logged, and after a failover, when everything unfinished is issued again,
//! it could be another one. So overlapping requests are put in the order in which the guest made them, on both sides:
//!
//! - a read starts when no earlier overlapping write is unfinished;
//! - a write starts when every earlier overlapping request is finished *and* the backup has acked its completion: it
//!   would otherwise issue such a request again after the write had landed, and a read would then find what was written
//!   after it;
//! - a flush starts when every earlier write is finished;
//! - a request whose gate is [`Gate::Held`] starts only when it is released as well (the output rule).
//!
//! The plan does no I/O: each call appends the requests that may start now, in their order, to a vector of the caller.
//! One plan serves one disk. A side without a backup says [`Plan::acked`] when it has applied the completion.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use thiserror::Error;

use ftvm_schema::request::{DiskOp, DiskRequest};

/// Whether a request may start as far as the output rule is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Not before [`Plan::release`]: writes and flushes of a protected primary, everything on a backup.
    Held,
    /// At once: reads of a primary, everything of a side without a backup.
    Open,
}

/// How much may be outstanding, that is, not acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests.
    pub requests: usize,
    /// Bytes to read or write.
    pub bytes: u64,
}

impl Default for Limits {
    /// Four full virtqueues of 256, and what a fast disk moves in some 50 ms.
    fn default() -> Self {
        Limits {
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
        limits: Limits,
    },
    /// It alone is above the bound and would never be accepted: the device must not offer requests of this size.
    #[error("disk request {id} moves {bytes} bytes, limit {limit}")]
    TooLarge {
        /// The refused request.
        id: u64,
        /// What it moves.
        bytes: u64,
        /// [`Limits::bytes`].
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
enum Kind {
    Read,
    Write,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Started,
    Finished,
}

/// When an earlier request stops holding a later one back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Finished,
    /// Acked requests have finished.
    Acked,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Kept until it is acked: a state record for a new backup needs it (PROTOCOL 17).
    request: DiskRequest,
    kind: Kind,
    extent: Range<u64>,
    gate: Gate,
    stage: Stage,
    /// Earlier requests that hold this one back.
    blockers: usize,
}

impl Entry {
    fn new(request: DiskRequest, gate: Gate) -> Option<Self> {
        let (kind, offset, len) = match &request.op {
            DiskOp::Read { offset, len } => (Kind::Read, *offset, u64::from(*len)),
            DiskOp::Write { offset, data } => (Kind::Write, *offset, u64::try_from(data.len()).ok()?),
            DiskOp::Flush => (Kind::Flush, 0, 0),
        };
        let extent = offset..offset.checked_add(len)?;
        Some(Entry {
            request,
            kind,
            extent,
            gate,
            stage: Stage::Waiting,
            blockers: 0,
        })
    }

    fn bytes(&self) -> u64 {
        self.extent.end - self.extent.start
    }

    fn overlaps(&self, other: &Entry) -> bool {
        self.extent.start.max(other.extent.start) < self.extent.end.min(other.extent.end)
    }

    /// How long this request, not acked yet, holds back `later`, if at all.
    fn holds_back(&self, later: &Entry) -> Option<Until> {
        let is_write = self.kind == Kind::Write;
        let until = match later.kind {
            Kind::Read => (is_write && self.overlaps(later)).then_some(Until::Finished)?,
            Kind::Write => self.overlaps(later).then_some(Until::Acked)?,
            Kind::Flush => is_write.then_some(Until::Finished)?,
        };
        (until == Until::Acked || self.stage != Stage::Finished).then_some(until)
    }

    /// Starts the request if nothing stands in its way.
    fn start(&mut self, started: &mut Vec<DiskRequest>) {
        if (self.gate, self.blockers, self.stage) == (Gate::Open, 0, Stage::Waiting) {
            started.push(self.request.clone());
            self.stage = Stage::Started;
        }
    }
}

/// The outstanding requests of one disk.
#[derive(Clone, Debug)]
pub struct Plan {
    limits: Limits,
    entries: BTreeMap<u64, Entry>,
    /// Of all entries.
    bytes: u64,
    last: Option<u64>,
}

impl Plan {
    /// An empty plan.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Plan {
            limits,
            entries: BTreeMap::new(),
            bytes: 0,
            last: None,
        }
    }

    /// Accepts the guest's next request and starts it if it may. Ids grow, gaps are allowed: a clone begins with
    /// what is pending.
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
        let entry = Entry::new(request, gate).ok_or(PlanError::Extent { id })?;
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

    /// The output rule lets request `id` go. Repeating it, or releasing what was never held, is harmless.
    ///
    /// # Errors
    /// [`PlanError::Unknown`].
    pub fn release(&mut self, id: u64, started: &mut Vec<DiskRequest>) -> Result<(), PlanError> {
        let entry = self.entries.get_mut(&id).ok_or(PlanError::Unknown { id })?;
        entry.gate = Gate::Open;
        entry.start(started);
        Ok(())
    }

    /// The I/O of request `id` returned, with whatever status; on a backup: its completion came in the log, where it
    /// need not have started.
    ///
    /// # Errors
    /// [`PlanError::Unknown`] or [`PlanError::Finished`].
    pub fn finished(&mut self, id: u64, started: &mut Vec<DiskRequest>) -> Result<(), PlanError> {
        let entry = self.entries.get_mut(&id).ok_or(PlanError::Unknown { id })?;
        if entry.stage == Stage::Finished {
            return Err(PlanError::Finished { id });
        }
        let unfinished = entry.clone();
        entry.stage = Stage::Finished;
        self.unblock(id, &unfinished, Until::Finished, started);
        Ok(())
    }

    /// The log entry with the completion of request `id` is acked by the backup. On a backup: it was received; without
    /// a backup: the completion was applied, so that [`Plan::pending`] is right when one joins.
    ///
    /// # Errors
    /// [`PlanError::Unknown`] or [`PlanError::Unfinished`].
    pub fn acked(&mut self, id: u64, started: &mut Vec<DiskRequest>) -> Result<(), PlanError> {
        let entry = self.entries.get(&id).ok_or(PlanError::Unknown { id })?;
        if entry.stage != Stage::Finished {
            return Err(PlanError::Unfinished { id });
        }
        let entry = self.entries.remove(&id).ok_or(PlanError::Unknown { id })?;
        self.bytes -= entry.bytes();
        self.unblock(id, &entry, Until::Acked, started);
        Ok(())
    }

    /// A primary has won the test-and-set and goes on alone: every request is released. The caller also says
    /// [`Plan::acked`] for each completion that was applied and never will be acked.
    pub fn release_all(&mut self, started: &mut Vec<DiskRequest>) {
        for entry in self.entries.values_mut() {
            entry.gate = Gate::Open;
            entry.start(started);
        }
    }

    /// A backup goes live: every request that has no completion in the log is issued again, in order, each waiting for
    /// those it overlaps (PROTOCOL 8). Nothing the plan has started before may run on this host: a backup does no I/O,
    /// whatever its plan starts.
    pub fn reissue(&mut self, started: &mut Vec<DiskRequest>) {
        let entries = std::mem::take(&mut self.entries);
        self.bytes = 0;
        for (id, mut entry) in entries.into_iter().filter(|(_, entry)| entry.stage != Stage::Finished) {
            (entry.stage, entry.gate) = (Stage::Waiting, Gate::Open);
            self.insert(id, entry, started);
        }
    }

    /// The requests whose completion is not acked, in order, with their data. While there is no backup these are the
    /// requests whose completion the guest has not seen: part of the state record (PROTOCOL 17), for the new backup to
    /// submit.
    pub fn pending(&self) -> impl Iterator<Item = &DiskRequest> {
        self.entries.values().map(|entry| &entry.request)
    }

    /// Whether `requests` more requests with `bytes` bytes together would be accepted now.
    #[must_use]
    pub fn has_room(&self, requests: usize, bytes: u64) -> bool {
        requests <= self.limits.requests.saturating_sub(self.entries.len())
            && bytes <= self.limits.bytes.saturating_sub(self.bytes)
    }

    /// Adds the last entry so far, counting those that hold it back.
    fn insert(&mut self, id: u64, mut entry: Entry, started: &mut Vec<DiskRequest>) {
        let blockers = self
            .entries
            .values()
            .filter(|earlier| earlier.holds_back(&entry).is_some());
        entry.blockers = blockers.count();
        entry.start(started);
        self.bytes += entry.bytes();
        self.entries.insert(id, entry);
    }

    /// Request `id`, as it was until now, has come as far as `until`: starts what waited for that only.
    fn unblock(&mut self, id: u64, earlier: &Entry, until: Until, started: &mut Vec<DiskRequest>) {
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
