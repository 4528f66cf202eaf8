use std::sync::Arc;

use super::*;
use crate::SECTOR;

pub(super) fn read(id: u64, sectors: Range<u64>) -> DiskRequest {
    let len = u32::try_from((sectors.end - sectors.start) * SECTOR).unwrap();
    DiskRequest {
        disk: 0,
        id,
        op: DiskOp::Read {
            offset: sectors.start * SECTOR,
            len,
        },
    }
}

/// Each sector of a write carries the request's id plus one, so that nothing written equals an empty disk.
pub(super) fn write(id: u64, sectors: Range<u64>) -> DiskRequest {
    let sector = (id + 1).to_le_bytes().repeat(64);
    let data = sector.repeat(usize::try_from(sectors.end - sectors.start).unwrap());
    DiskRequest {
        disk: 0,
        id,
        op: DiskOp::Write {
            offset: sectors.start * SECTOR,
            data: Arc::new(data),
        },
    }
}

pub(super) fn flush(id: u64) -> DiskRequest {
    DiskRequest {
        disk: 0,
        id,
        op: DiskOp::Flush,
    }
}

/// A plan, and the ids that each call started.
struct Bench {
    plan: DiskPlan,
    started: Vec<DiskRequest>,
}

impl Bench {
    fn new() -> Self {
        Bench {
            plan: DiskPlan::new(PlanLimits::default()),
            started: Vec::new(),
        }
    }

    fn ids(&mut self, result: Result<(), PlanError>) -> Vec<u64> {
        result.unwrap();
        self.started.drain(..).map(|request| request.id).collect()
    }

    fn submit(&mut self, request: DiskRequest, gate: Gate) -> Vec<u64> {
        let result = self.plan.submit(request, gate, &mut self.started);
        self.ids(result)
    }

    fn release(&mut self, id: u64) -> Vec<u64> {
        let result = self.plan.release(id, &mut self.started);
        self.ids(result)
    }

    fn finished(&mut self, id: u64) -> Vec<u64> {
        let result = self.plan.finished(id, &mut self.started);
        self.ids(result)
    }

    fn acked(&mut self, id: u64) -> Vec<u64> {
        let result = self.plan.acked(id, &mut self.started);
        self.ids(result)
    }
}

const NONE: Vec<u64> = Vec::new();

#[test]
fn a_held_write_waits_for_its_release_and_a_read_for_the_write() {
    let mut bench = Bench::new();
    assert_eq!(bench.submit(write(0, 0..2), Gate::Held), NONE);
    assert_eq!(bench.submit(read(1, 1..3), Gate::Open), NONE);
    assert_eq!(
        bench.submit(read(2, 2..3), Gate::Open),
        [2],
        "a neighbour does not wait"
    );
    assert_eq!(bench.release(0), [0]);
    assert_eq!(bench.release(0), NONE);
    assert_eq!(bench.finished(0), [1], "a read needs no ack");
}

#[test]
fn a_write_waits_until_an_overlapping_completion_is_acked() {
    for first in [read(0, 4..6), write(0, 4..6)] {
        let mut bench = Bench::new();
        assert_eq!(bench.submit(first, Gate::Open), [0]);
        assert_eq!(bench.submit(write(1, 5..7), Gate::Held), NONE);
        assert_eq!(bench.submit(write(2, 6..7), Gate::Open), NONE, "overlaps 1");
        assert_eq!(bench.submit(write(3, 7..8), Gate::Open), [3]);
        assert_eq!(bench.release(1), NONE);
        assert_eq!(bench.finished(0), NONE);
        assert_eq!(bench.acked(0), [1]);
        assert_eq!(bench.finished(1), NONE);
        assert_eq!(bench.acked(1), [2]);
    }
}

#[test]
fn a_flush_waits_for_the_writes_before_it_only() {
    let mut bench = Bench::new();
    assert_eq!(bench.submit(flush(0), Gate::Open), [0]);
    assert_eq!(bench.submit(write(1, 0..1), Gate::Held), NONE);
    assert_eq!(bench.submit(read(2, 5..6), Gate::Open), [2]);
    assert_eq!(bench.submit(flush(3), Gate::Held), NONE);
    assert_eq!(
        bench.submit(write(4, 8..9), Gate::Open),
        [4],
        "a write does not wait for a flush"
    );
    assert_eq!(bench.release(3), NONE);
    assert_eq!(bench.release(1), [1]);
    assert_eq!(bench.finished(4), NONE);
    assert_eq!(bench.finished(1), [3], "not for the read, nor for an ack");
}

#[test]
fn a_new_plan_issues_again_in_the_guests_order_what_the_log_did_not_finish() {
    let mut bench = Bench::new();
    // The log holds the ends of 0 and 4.
    assert_eq!(bench.submit(read(1, 0..1), Gate::Open), [1]);
    assert_eq!(bench.submit(write(2, 0..1), Gate::Open), NONE);
    assert_eq!(bench.submit(write(3, 4..5), Gate::Open), [3]);
    assert_eq!(bench.submit(flush(5), Gate::Open), NONE);
    assert_eq!(bench.finished(1), NONE);
    assert_eq!(bench.acked(1), [2]);
    assert_eq!(bench.finished(3), NONE);
    assert_eq!(bench.finished(2), [5]);
    assert_eq!(
        bench.plan.acked(4, &mut bench.started),
        Err(PlanError::Unknown { id: 4 })
    );
}

#[test]
fn a_primary_alone_goes_on_where_it_was() {
    let mut bench = Bench::new();
    assert_eq!(bench.submit(read(0, 0..1), Gate::Open), [0]);
    assert_eq!(bench.submit(write(1, 0..1), Gate::Held), NONE);
    assert_eq!(bench.submit(write(2, 3..4), Gate::Held), NONE);
    assert_eq!(bench.submit(read(3, 7..8), Gate::Open), [3]);
    assert_eq!(bench.finished(0), NONE);
    bench.plan.release_all(&mut bench.started);
    assert_eq!(
        bench.ids(Ok(())),
        [2],
        "1 waits for the ack of 0, 3 is not started twice"
    );
    assert_eq!(bench.acked(0), [1]);
}

#[test]
fn a_request_is_pending_until_it_is_acked() {
    let mut bench = Bench::new();
    let requests = [write(0, 0..1), write(1, 1..2), flush(2), read(3, 0..1)];
    for request in requests.clone() {
        bench.submit(request, Gate::Open);
    }
    bench.finished(0);
    bench.finished(1);
    bench.acked(0);
    let pending: Vec<DiskRequest> = bench.plan.pending().cloned().collect();
    assert_eq!(pending, requests[1..]);
}

#[test]
fn bounds_hold_on_both_sides() {
    let limits = PlanLimits {
        requests: 3,
        bytes: 4 * SECTOR,
    };
    let mut plan = DiskPlan::new(limits);
    let mut started = Vec::new();
    assert!(plan.has_room(1, 4 * SECTOR) && !plan.has_room(1, 4 * SECTOR + 1));
    let too_large = PlanError::TooLarge {
        id: 0,
        bytes: 5 * SECTOR,
        limit: 4 * SECTOR,
    };
    assert_eq!(plan.submit(write(0, 0..5), Gate::Open, &mut started), Err(too_large));
    plan.submit(write(0, 0..3), Gate::Open, &mut started).unwrap();
    let full = PlanError::Full {
        requests: 1,
        bytes: 3 * SECTOR,
        limits,
    };
    assert_eq!(plan.submit(read(1, 0..2), Gate::Open, &mut started), Err(full));
    assert_eq!(
        full.to_string(),
        "too much disk I/O is outstanding: 1 requests with 1536 bytes, limits 3 and 2048"
    );
    plan.submit(read(1, 8..9), Gate::Open, &mut started).unwrap();
    plan.submit(flush(2), Gate::Open, &mut started).unwrap();
    assert!(!plan.has_room(1, 0));
    assert!(matches!(
        plan.submit(flush(3), Gate::Open, &mut started),
        Err(PlanError::Full { requests: 3, .. })
    ));
    plan.finished(0, &mut started).unwrap();
    assert!(!plan.has_room(1, 0), "the request counts until it is acked");
    plan.acked(0, &mut started).unwrap();
    assert!(
        plan.has_room(1, 3 * SECTOR) && !plan.has_room(1, 3 * SECTOR + 1),
        "its bytes are free"
    );
}

#[test]
fn impossible_calls_are_refused_and_change_nothing() {
    let mut plan = DiskPlan::new(PlanLimits::default());
    let mut started = Vec::new();
    plan.submit(write(5, 0..1), Gate::Held, &mut started).unwrap();
    for id in [5, 4] {
        let again = plan.submit(flush(id), Gate::Open, &mut started);
        assert_eq!(again, Err(PlanError::OutOfOrder { id, last: 5 }));
    }
    let beyond = |offset| DiskRequest {
        disk: 0,
        id: 6,
        op: DiskOp::Read { offset, len: 512 },
    };
    assert_eq!(
        plan.submit(beyond(u64::MAX - 511), Gate::Held, &mut started),
        Err(PlanError::Extent { id: 6 })
    );
    plan.submit(beyond(u64::MAX - 512), Gate::Held, &mut started).unwrap();
    assert_eq!(plan.release(7, &mut started), Err(PlanError::Unknown { id: 7 }));
    assert_eq!(plan.finished(4, &mut started), Err(PlanError::Unknown { id: 4 }));
    assert_eq!(plan.acked(5, &mut started), Err(PlanError::Unfinished { id: 5 }));
    plan.finished(5, &mut started).unwrap();
    assert_eq!(plan.finished(5, &mut started), Err(PlanError::Finished { id: 5 }));
    plan.acked(5, &mut started).unwrap();
    assert_eq!(plan.acked(5, &mut started), Err(PlanError::Unknown { id: 5 }));
    assert_eq!(started, []);
}
