use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::queue::{EventQueue, event_queue};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk in memory; its gate holds requests back.
#[derive(Debug)]
struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    gate: Gate,
}

#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set_closed(&self, closed: bool) {
        *self.closed.lock().expect("lock") = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().expect("lock");
        // Bounded, so that a test that fails with the gate closed ends.
        drop(
            self.opened
                .wait_timeout_while(closed, PATIENCE, |closed| *closed)
                .expect("lock"),
        );
    }
}

impl MemoryDisk {
    fn new(size: usize) -> Arc<MemoryDisk> {
        Arc::new(MemoryDisk {
            bytes: Mutex::new(vec![0; size]),
            gate: Gate::default(),
        })
    }
}

impl MemoryDisk {
    fn plain(&self, request: &DiskRequest) -> (DiskStatus, Vec<u8>) {
        self.gate.pass();
        let mut bytes = self.bytes.lock().expect("lock");
        let range = |offset: u64, len: usize| {
            usize::try_from(offset).expect("fits")..usize::try_from(offset).expect("fits") + len
        };
        match &request.op {
            DiskOp::Read { offset, len } => {
                let range = range(*offset, usize::try_from(*len).expect("fits"));
                bytes.get(range).map_or((DiskStatus::IoError, Vec::new()), |data| {
                    (DiskStatus::Ok, data.to_vec())
                })
            }
            DiskOp::Write { offset, data } => match bytes.get_mut(range(*offset, data.len())) {
                Some(place) => {
                    place.copy_from_slice(data);
                    (DiskStatus::Ok, Vec::new())
                }
                None => (DiskStatus::IoError, Vec::new()),
            },
            DiskOp::Flush => (DiskStatus::Ok, Vec::new()),
        }
    }
}

impl Disk for MemoryDisk {
    fn execute(&self, request: &DiskRequest) -> Ended {
        self.plain(request).into()
    }

    fn size(&self) -> u64 {
        self.bytes.lock().expect("lock").len() as u64
    }
}

/// A disk that does not do what [`Disk::execute`] promises.
#[derive(Debug)]
struct BrokenDisk(usize);

impl Disk for BrokenDisk {
    fn execute(&self, _: &DiskRequest) -> Ended {
        (DiskStatus::Ok, vec![0; self.0]).into()
    }

    fn size(&self) -> u64 {
        1 << 20
    }
}

fn request(disk: u8, id: u64, op: DiskOp) -> DiskRequest {
    DiskRequest { disk, id, op }
}

fn write(offset: u64, byte: u8) -> DiskOp {
    let data = Arc::new(vec![byte; 512]);
    DiskOp::Write { offset, data }
}

/// Nobody wants to know of lost disks: the guest is told.
fn nobody() -> Losses {
    Arc::new(|_, _, failure| Err(failure))
}

#[test]
fn what_a_thread_is_at_is_seen_from_outside() {
    let (sender, queue) = event_queue();
    let memory = MemoryDisk::new(4096);
    let disks: [Arc<dyn Disk>; 2] = [MemoryDisk::new(512), Arc::clone(&memory) as Arc<dyn Disk>];
    let pool = DiskPool::start(&disks, &sender, &nobody()).expect("starts");
    assert_eq!(pool.under_way(), []);
    memory.gate.set_closed(true);
    let begun = boottime_ns();
    pool.submit(request(1, 1, write(0, 7))).expect("accepted");
    pool.submit(request(1, 2, DiskOp::Flush)).expect("accepted");
    let limit = Instant::now() + PATIENCE;
    while pool.under_way().len() < 2 && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut under_way = pool.under_way();
    under_way.sort_by_key(|request| request.effect);
    assert_eq!(
        under_way.iter().map(|request| request.effect).collect::<Vec<_>>(),
        [LateEffect::Nothing, LateEffect::Lands]
    );
    assert!(
        under_way
            .iter()
            .all(|request| request.disk == 1 && (begun..=boottime_ns()).contains(&request.since_ns))
    );
    memory.gate.set_closed(false);
    for _ in 0..2 {
        queue.recv_deadline(Some(limit)).expect("ends");
    }
    assert_eq!(pool.under_way(), []);
}

/// A disk that this host has lost.
#[derive(Debug)]
struct LostDisk;

impl Disk for LostDisk {
    fn execute(&self, _: &DiskRequest) -> Ended {
        Ended {
            lost: Some("no such device".to_owned()),
            ..(DiskStatus::IoError, Vec::new()).into()
        }
    }

    fn size(&self) -> u64 {
        1 << 20
    }
}

#[test]
fn of_a_lost_disk_the_guest_hears_only_if_nobody_else_wants_to() {
    let (sender, queue) = event_queue();
    let disks: [Arc<dyn Disk>; 1] = [Arc::new(LostDisk)];
    let (told, losses) = crossbeam_channel::unbounded();
    let telling: Losses = Arc::new(move |disk, what, failure| {
        told.send((disk, what, failure)).expect("received");
        Ok(())
    });
    let pool = DiskPool::start(&disks, &sender, &telling).expect("starts");
    pool.submit(request(0, 3, DiskOp::Flush)).expect("accepted");
    let (disk, what, failure) = losses.recv_timeout(PATIENCE).expect("told");
    assert_eq!((disk, what.as_str()), (0, "no such device"));
    assert!(matches!(
        failure,
        HostEvent::DiskDone {
            id: 3,
            status: DiskStatus::IoError,
            ..
        }
    ));
    assert_eq!(queue.try_recv(), None);
    let pool = DiskPool::start(&disks, &sender, &nobody()).expect("starts");
    pool.submit(request(0, 4, DiskOp::Flush)).expect("accepted");
    assert_eq!(done(&queue), (0, 4, DiskStatus::IoError, Vec::new()));
}

fn done(queue: &EventQueue) -> (u8, u64, DiskStatus, Vec<u8>) {
    match queue.recv_deadline(Some(Instant::now() + PATIENCE)) {
        Some(HostEvent::DiskDone { disk, id, status, data }) => (disk, id, status, data),
        other => panic!("a finished request was expected, found {other:?}"),
    }
}

#[test]
fn requests_are_executed_and_answered() {
    let (sender, queue) = event_queue();
    let disks: [Arc<dyn Disk>; 2] = [MemoryDisk::new(4096), MemoryDisk::new(8192)];
    let pool = DiskPool::start(&disks, &sender, &nobody()).expect("starts");
    pool.submit(request(1, 7, write(512, 0xAB))).expect("accepted");
    assert_eq!(done(&queue), (1, 7, DiskStatus::Ok, Vec::new()));
    pool.submit(request(1, 8, DiskOp::Read { offset: 512, len: 512 }))
        .expect("accepted");
    assert_eq!(done(&queue), (1, 8, DiskStatus::Ok, vec![0xAB; 512]));
    pool.submit(request(0, 0, DiskOp::Read { offset: 512, len: 512 }))
        .expect("accepted");
    assert_eq!(
        done(&queue),
        (0, 0, DiskStatus::Ok, vec![0; 512]),
        "the other disk is another disk"
    );
    pool.submit(request(0, 1, DiskOp::Flush)).expect("accepted");
    assert_eq!(done(&queue), (0, 1, DiskStatus::Ok, Vec::new()));
    pool.submit(request(0, 2, DiskOp::Read { offset: 4096, len: 512 }))
        .expect("accepted");
    assert_eq!(done(&queue), (0, 2, DiskStatus::IoError, Vec::new()));
    assert_eq!(pool.in_flight(), 0);
}

#[test]
fn a_disk_that_breaks_its_contract_is_an_io_error() {
    let (sender, queue) = event_queue();
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(BrokenDisk(511)), Arc::new(BrokenDisk(1))];
    let pool = DiskPool::start(&disks, &sender, &nobody()).expect("starts");
    pool.submit(request(0, 0, DiskOp::Read { offset: 0, len: 512 }))
        .expect("accepted");
    assert_eq!(done(&queue), (0, 0, DiskStatus::IoError, Vec::new()));
    pool.submit(request(1, 1, DiskOp::Flush)).expect("accepted");
    assert_eq!(done(&queue), (1, 1, DiskStatus::IoError, Vec::new()));
}

#[test]
fn a_slow_request_does_not_hold_up_the_others() {
    let (sender, queue) = event_queue();
    let slow = MemoryDisk::new(4096);
    let disks: [Arc<dyn Disk>; 2] = [slow.clone(), MemoryDisk::new(4096)];
    let pool = DiskPool::start(&disks, &sender, &nobody()).expect("starts");
    slow.gate.set_closed(true);
    for id in 0..DISK_THREADS as u64 - 1 {
        pool.submit(request(0, id, DiskOp::Flush)).expect("accepted");
    }
    pool.submit(request(1, 99, DiskOp::Flush)).expect("accepted");
    assert_eq!(done(&queue).1, 99);
    slow.gate.set_closed(false);
    let rest: BTreeSet<u64> = (1..DISK_THREADS).map(|_| done(&queue).1).collect();
    assert_eq!(rest, (0..DISK_THREADS as u64 - 1).collect());
}

#[test]
fn requests_in_flight_are_bounded() {
    let (sender, queue) = event_queue();
    let disk = MemoryDisk::new(4096);
    let pool = DiskPool::start(&[disk.clone() as Arc<dyn Disk>], &sender, &nobody()).expect("starts");
    disk.gate.set_closed(true);
    for id in 0..MAX_IN_FLIGHT as u64 {
        pool.submit(request(0, id, DiskOp::Flush)).expect("accepted");
    }
    let refused = pool.submit(request(0, 5000, DiskOp::Flush));
    let in_flight = pool.in_flight();
    disk.gate.set_closed(false);
    assert!(matches!(refused, Err(DiskPoolError::Full { disk: 0, id: 5000 })));
    assert_eq!(in_flight, MAX_IN_FLIGHT);
    let all: BTreeSet<u64> = (0..MAX_IN_FLIGHT).map(|_| done(&queue).1).collect();
    assert_eq!(
        all.len(),
        MAX_IN_FLIGHT,
        "the refused request was not executed, all others once"
    );
    pool.submit(request(0, 5000, DiskOp::Flush)).expect("room again");
}

#[test]
fn a_disk_the_machine_does_not_have_is_refused() {
    let (sender, _queue) = event_queue();
    let pool = DiskPool::start(&[MemoryDisk::new(512) as Arc<dyn Disk>], &sender, &nobody()).expect("starts");
    let refused = pool.submit(request(1, 3, DiskOp::Flush));
    assert!(matches!(
        refused,
        Err(DiskPoolError::NoSuchDisk {
            disk: 1,
            id: 3,
            disks: 1
        })
    ));
}

#[test]
fn dropping_the_pool_waits_for_what_was_submitted() {
    let (sender, queue) = event_queue();
    let disk = MemoryDisk::new(64 * 512);
    let pool = DiskPool::start(&[disk.clone() as Arc<dyn Disk>], &sender, &nobody()).expect("starts");
    drop(queue);
    for id in 0..64 {
        pool.submit(request(0, id, write(id * 512, 0xCD))).expect("accepted");
    }
    drop(pool);
    assert!(disk.bytes.lock().expect("lock").iter().all(|byte| *byte == 0xCD));
}

/// A disk that another side has reserved for itself.
#[derive(Debug)]
struct SupersededDisk;

impl Disk for SupersededDisk {
    fn execute(&self, _: &DiskRequest) -> Ended {
        (DiskStatus::IoError, Vec::new()).into()
    }

    fn size(&self) -> u64 {
        4096
    }

    fn is_superseded(&self) -> bool {
        true
    }
}

#[test]
fn what_a_superseded_disk_answers_never_reaches_the_guest() {
    let (sender, queue) = event_queue();
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(SupersededDisk), MemoryDisk::new(4096)];
    let pool = DiskPool::start(&disks, &sender, &nobody()).expect("starts");
    pool.submit(request(0, 1, write(0, 1))).expect("accepted");
    pool.submit(request(1, 2, write(0, 1))).expect("accepted");
    assert_eq!(done(&queue), (1, 2, DiskStatus::Ok, Vec::new()));
    drop(pool);
    assert!(
        queue.recv_deadline(Some(Instant::now())).is_none(),
        "the pool has ended, and said no more"
    );
}
