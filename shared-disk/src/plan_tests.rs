use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const SECTOR: u64 = 512;

fn read(id: u64, sectors: Range<u64>) -> DiskRequest {
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
fn write(id: u64, sectors: Range<u64>) -> DiskRequest {
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

fn flush(id: u64) -> DiskRequest {
    DiskRequest {
        disk: 0,
        id,
        op: DiskOp::Flush,
    }
}

/// A plan, and the ids that each call started.
struct Bench {
    plan: Plan,
    started: Vec<DiskRequest>,
}

impl Bench {
    fn new() -> Self {
        Bench {
            plan: Plan::new(Limits::default()),
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
fn a_backup_starts_nothing_and_reissues_what_the_log_did_not_finish() {
    let mut bench = Bench::new();
    let requests = [
        write(0, 0..1),
        read(1, 0..1),
        write(2, 0..1),
        write(3, 4..5),
        read(4, 6..7),
        flush(5),
    ];
    for request in requests.clone() {
        assert_eq!(bench.submit(request, Gate::Held), NONE);
    }
    assert_eq!(bench.finished(0), NONE);
    assert_eq!(bench.acked(0), NONE);
    assert_eq!(bench.finished(4), NONE);
    bench.plan.reissue(&mut bench.started);
    assert_eq!(bench.started, [requests[1].clone(), requests[3].clone()]);
    assert_eq!(
        bench.plan.pending().map(|request| request.id).collect::<Vec<_>>(),
        [1, 2, 3, 5]
    );
    bench.started.clear();
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
fn what_a_backup_did_not_really_start_is_issued_again() {
    let mut bench = Bench::new();
    assert_eq!(bench.submit(read(0, 0..1), Gate::Open), [0]);
    bench.plan.reissue(&mut bench.started);
    assert_eq!(bench.ids(Ok(())), [0]);
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
fn a_new_backup_takes_over_what_the_guest_has_not_seen_finished() {
    let mut bench = Bench::new();
    let requests = [write(0, 0..1), write(1, 1..2), flush(2), read(3, 0..1)];
    for request in requests.clone() {
        bench.submit(request, Gate::Open);
    }
    bench.finished(0);
    bench.finished(1);
    bench.acked(0);
    // 1 has returned from the disk, but its completion still waits for an exit of the guest.
    let pending: Vec<DiskRequest> = bench.plan.pending().cloned().collect();
    assert_eq!(pending, requests[1..]);
    let mut backup = Bench::new();
    for request in pending {
        assert_eq!(backup.submit(request, Gate::Held), NONE);
    }
    backup.plan.reissue(&mut backup.started);
    assert_eq!(backup.ids(Ok(())), [1, 3]);
}

#[test]
fn bounds_hold_on_both_sides() {
    let limits = Limits {
        requests: 3,
        bytes: 4 * SECTOR,
    };
    let mut plan = Plan::new(limits);
    let mut started = Vec::new();
    assert!(plan.has_room(4 * SECTOR) && !plan.has_room(4 * SECTOR + 1));
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
    assert!(!plan.has_room(0));
    assert!(matches!(
        plan.submit(flush(3), Gate::Open, &mut started),
        Err(PlanError::Full { requests: 3, .. })
    ));
    plan.finished(0, &mut started).unwrap();
    assert!(!plan.has_room(0), "the request counts until it is acked");
    plan.acked(0, &mut started).unwrap();
    assert!(
        plan.has_room(3 * SECTOR) && !plan.has_room(3 * SECTOR + 1),
        "its bytes are free"
    );
}

#[test]
fn impossible_calls_are_refused_and_change_nothing() {
    let mut plan = Plan::new(Limits::default());
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

/// A disk of one id per sector; 0 is empty.
type Disk = Vec<u64>;
const SECTORS: u64 = 8;

fn span(op: &DiskOp) -> Range<usize> {
    let (offset, len) = match op {
        DiskOp::Read { offset, len } => (*offset, usize::try_from(*len).unwrap()),
        DiskOp::Write { offset, data } => (*offset, data.len()),
        DiskOp::Flush => (0, 0),
    };
    let first = usize::try_from(offset / SECTOR).unwrap();
    first..first + len / 512
}

fn land(disk: &mut Disk, request: &DiskRequest) {
    if matches!(request.op, DiskOp::Write { .. }) {
        disk[span(&request.op)].fill(request.id + 1);
    }
}

/// What the disk holds after the writes among the first `count` requests, in sequence order.
fn in_sequence(requests: &[DiskRequest]) -> Disk {
    let mut disk = vec![0; usize::try_from(SECTORS).unwrap()];
    requests.iter().for_each(|request| land(&mut disk, request));
    disk
}

/// What one request has come to, in the naive model.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    open: bool,
    started: bool,
    finished: bool,
    acked: bool,
}

/// The rules as the protocol states them, looked up anew each time over the whole history.
#[derive(Default)]
struct Model {
    requests: Vec<DiskRequest>,
    progress: Vec<Progress>,
}

impl Model {
    fn may_start(&self, index: usize) -> bool {
        let op = &self.requests[index].op;
        let is_write = |op: &DiskOp| matches!(op, DiskOp::Write { .. });
        let earlier_allow = (0..index).all(|earlier| {
            let (other, state) = (&self.requests[earlier].op, self.progress[earlier]);
            let overlap = span(op).any(|sector| span(other).contains(&sector));
            match op {
                DiskOp::Read { .. } => !(overlap && is_write(other)) || state.finished,
                DiskOp::Write { .. } => !overlap || (state.finished && state.acked),
                DiskOp::Flush => !is_write(other) || state.finished,
            }
        });
        self.progress[index].open && !self.progress[index].started && earlier_allow
    }

    /// Marks what may start now as started and returns it.
    fn start(&mut self) -> Vec<DiskRequest> {
        let ready: Vec<usize> = (0..self.requests.len())
            .filter(|index| self.may_start(*index))
            .collect();
        ready.iter().for_each(|index| self.progress[*index].started = true);
        ready.into_iter().map(|index| self.requests[index].clone()).collect()
    }

    fn ids(&self, wanted: impl Fn(&Progress) -> bool) -> Vec<u64> {
        let chosen = self
            .requests
            .iter()
            .zip(&self.progress)
            .filter(|(_, progress)| wanted(progress));
        chosen.map(|(request, _)| request.id).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Submit {
        kind: u8,
        first: u64,
        len: u64,
        gate: Gate,
        lands_early: bool,
    },
    Release(Index),
    Finish(Index),
    Ack(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..7, 0..SECTORS, 1..4u64, prop_oneof![Just(Gate::Held), Just(Gate::Open)], any::<bool>())
            .prop_map(|(kind, first, len, gate, lands_early)| Step::Submit { kind, first, len, gate, lands_early }),
        3 => any::<Index>().prop_map(Step::Release),
        4 => any::<Index>().prop_map(Step::Finish),
        3 => any::<Index>().prop_map(Step::Ack),
    ]
}

fn request(id: u64, kind: u8, first: u64, len: u64) -> DiskRequest {
    let sectors = first..(first + len).min(SECTORS);
    match kind {
        0..3 => write(id, sectors),
        3..6 => read(id, sectors),
        _ => flush(id),
    }
}

fn index(id: u64) -> usize {
    usize::try_from(id).unwrap()
}

fn pick(ids: &[u64], choice: &Index) -> Option<u64> {
    (!ids.is_empty()).then(|| *choice.get(ids))
}

/// A host: plan, model and the disk they share, checked against each other at every call.
struct Host {
    plan: Plan,
    model: Model,
    disk: Disk,
    /// Whether a write reaches the disk when it starts or when it returns.
    lands_early: Vec<bool>,
}

impl Host {
    fn new(disk: Disk) -> Self {
        Host {
            plan: Plan::new(Limits::default()),
            model: Model::default(),
            disk,
            lands_early: Vec::new(),
        }
    }

    fn check(&mut self, started: &[DiskRequest]) -> Result<(), TestCaseError> {
        prop_assert_eq!(started, self.model.start());
        for request in started {
            if self.lands_early[index(request.id)] {
                land(&mut self.disk, request);
            }
            self.check_read(request)?;
        }
        Ok(())
    }

    /// A read brings what the writes before it in the guest's order left, whenever between start and return it is done.
    fn check_read(&self, request: &DiskRequest) -> Result<(), TestCaseError> {
        if let DiskOp::Read { .. } = request.op {
            let expected = &in_sequence(&self.model.requests[..index(request.id)])[span(&request.op)];
            prop_assert_eq!(&self.disk[span(&request.op)], expected, "read {}", request.id);
        }
        Ok(())
    }

    fn submit(&mut self, request: DiskRequest, gate: Gate, lands_early: bool) -> Result<(), TestCaseError> {
        self.lands_early.push(lands_early);
        self.model.progress.push(Progress {
            open: gate == Gate::Open,
            ..Progress::default()
        });
        self.model.requests.push(request.clone());
        let mut started = Vec::new();
        prop_assert_eq!(self.plan.submit(request, gate, &mut started), Ok(()));
        self.check(&started)
    }

    fn release(&mut self, id: u64) -> Result<(), TestCaseError> {
        self.model.progress[index(id)].open = true;
        let mut started = Vec::new();
        prop_assert_eq!(self.plan.release(id, &mut started), Ok(()));
        self.check(&started)
    }

    fn finish(&mut self, id: u64) -> Result<(), TestCaseError> {
        let request = self.model.requests[index(id)].clone();
        land(&mut self.disk, &request);
        self.check_read(&request)?;
        self.model.progress[index(id)].finished = true;
        let mut started = Vec::new();
        prop_assert_eq!(self.plan.finished(id, &mut started), Ok(()));
        self.check(&started)
    }

    fn ack(&mut self, id: u64) -> Result<(), TestCaseError> {
        self.model.progress[index(id)].acked = true;
        let mut started = Vec::new();
        prop_assert_eq!(self.plan.acked(id, &mut started), Ok(()));
        self.check(&started)
    }

    fn running(&self) -> Vec<u64> {
        self.model.ids(|state| state.started && !state.finished)
    }

    /// Releases, finishes and acks everything, in an order that `choices` shuffles.
    fn drain(&mut self, choices: &[Index]) -> Result<(), TestCaseError> {
        for id in self.model.ids(|state| !state.open) {
            self.release(id)?;
        }
        for turn in 0.. {
            for id in self.model.ids(|state| state.finished && !state.acked) {
                self.ack(id)?;
            }
            let Some(id) = pick(&self.running(), &choices[turn % choices.len()]) else {
                break;
            };
            self.finish(id)?;
        }
        prop_assert!(
            self.model.progress.iter().all(|state| state.finished),
            "deadlock: {:?}",
            self.plan
        );
        prop_assert_eq!(self.plan.entries.len(), 0);
        prop_assert_eq!(self.plan.bytes, 0);
        prop_assert_eq!(&self.disk, &in_sequence(&self.model.requests));
        Ok(())
    }
}

fn empty_disk() -> Disk {
    in_sequence(&[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Every call starts exactly what the rules allow; reads bring, and the disk ends with, what sequence order says.
    #[test]
    fn the_plan_follows_the_rules_and_never_locks_up(
        steps in proptest::collection::vec(step(), 1..80),
        choices in proptest::collection::vec(any::<Index>(), 1..20),
    ) {
        let mut host = Host::new(empty_disk());
        for step in steps {
            match step {
                Step::Submit { kind, first, len, gate, lands_early } => {
                    let id = u64::try_from(host.model.requests.len()).unwrap();
                    host.submit(request(id, kind, first, len), gate, lands_early)?;
                }
                Step::Release(choice) => {
                    if let Some(id) = pick(&host.model.ids(|state| !state.open), &choice) {
                        host.release(id)?;
                    }
                }
                Step::Finish(choice) => {
                    if let Some(id) = pick(&host.running(), &choice) {
                        host.finish(id)?;
                    }
                }
                Step::Ack(choice) => {
                    if let Some(id) = pick(&host.model.ids(|state| state.finished && !state.acked), &choice) {
                        host.ack(id)?;
                    }
                }
            }
        }
        host.drain(&choices)?;
    }

    /// The primary dies anywhere; the backup knows a prefix of the log that holds all that was acked. Whatever of the
    /// primary's I/O landed, the backup's reads and the final disk are those of sequence order (invariant iii).
    #[test]
    fn a_failover_anywhere_leaves_the_disk_in_sequence_order(
        steps in proptest::collection::vec(step(), 1..60),
        cut in any::<Index>(),
        landed in any::<u64>(),
        choices in proptest::collection::vec(any::<Index>(), 1..20),
    ) {
        let mut primary = Host::new(empty_disk());
        // The log: requests as the guest makes them (true), and completions (false), each with the request's id.
        let mut log: Vec<(bool, u64)> = Vec::new();
        let mut acked = 0;
        for step in steps {
            match step {
                Step::Submit { kind, first, len, lands_early, .. } => {
                    let id = u64::try_from(primary.model.requests.len()).unwrap();
                    let request = request(id, kind, first, len);
                    let gate = if matches!(request.op, DiskOp::Read { .. }) { Gate::Open } else { Gate::Held };
                    log.push((true, id));
                    primary.submit(request, gate, lands_early)?;
                }
                // Released is what lies before an acked mark.
                Step::Release(choice) => {
                    if let Some(id) = pick(&primary.model.ids(|state| !state.open), &choice) {
                        let place = log.iter().position(|entry| *entry == (true, id)).unwrap();
                        acked = acked.max(place + 1);
                        primary.release(id)?;
                    }
                }
                Step::Finish(choice) => {
                    if let Some(id) = pick(&primary.running(), &choice) {
                        log.push((false, id));
                        primary.finish(id)?;
                    }
                }
                Step::Ack(choice) => {
                    let upto = acked + choice.index(log.len() + 1 - acked);
                    acked = upto;
                }
            }
            for (_, id) in log[..acked].iter().filter(|(is_request, _)| !is_request) {
                if !primary.model.progress[index(*id)].acked {
                    primary.ack(*id)?;
                }
            }
        }
        let mut disk = primary.disk.clone();
        for id in primary.running().into_iter().filter(|id| landed >> (id % 64) & 1 == 1) {
            land(&mut disk, &primary.model.requests[index(id)]);
        }
        let known = &log[..acked + cut.index(log.len() + 1 - acked)];

        let mut backup = Host::new(disk);
        let mut ignored = Vec::new();
        for (is_request, id) in known {
            if *is_request {
                let request = primary.model.requests[index(*id)].clone();
                backup.submit(request, Gate::Held, false)?;
            } else {
                backup.model.progress[index(*id)] = Progress { open: true, started: true, finished: true, acked: true };
                prop_assert_eq!(backup.plan.finished(*id, &mut ignored), Ok(()));
                prop_assert_eq!(backup.plan.acked(*id, &mut ignored), Ok(()));
            }
        }
        prop_assert_eq!(ignored, []);
        backup.model.progress.iter_mut().for_each(|state| state.open = true);
        let mut started = Vec::new();
        backup.plan.reissue(&mut started);
        backup.check(&started)?;
        backup.drain(&choices)?;
    }
}
