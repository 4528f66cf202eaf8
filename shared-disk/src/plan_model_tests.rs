//! The plan against a naive model: every call, and every failover, with the disk that results.

use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{flush, read, write};
use super::*;
use crate::SECTOR;

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
    plan: DiskPlan,
    model: Model,
    disk: Disk,
    /// Whether a write reaches the disk when it starts or when it returns.
    lands_early: Vec<bool>,
}

impl Host {
    fn new(disk: Disk) -> Self {
        Host {
            plan: DiskPlan::new(PlanLimits::default()),
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

        // The backup's new plan gets what the log did not finish; of the others the model knows that they are over.
        let mut backup = Host::new(disk);
        for (_, id) in known.iter().filter(|(is_request, _)| *is_request) {
            let request = primary.model.requests[index(*id)].clone();
            if known.contains(&(false, *id)) {
                backup.lands_early.push(false);
                backup.model.requests.push(request);
                backup.model.progress.push(Progress { open: true, started: true, finished: true, acked: true });
            } else {
                backup.submit(request, Gate::Open, false)?;
            }
        }
        backup.drain(&choices)?;
    }
}
