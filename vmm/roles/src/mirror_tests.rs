//! Private disks brought level while the guest writes to them: the primary's core, plan and look at its writes, a backup's
//! copy full of garbage, and every order in which their steps can come, by seed. Faults planted in the shell must show.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use ftvm_schema::entry::{Digest, ExitSeq, Generation, Incarnation, Mark, OutputSeq, Position};
use ftvm_schema::request::{DiskOp, DiskRequest};
use logging_channel::message::{DiskReads, Message};
use shared_disk::mirror::{EXTENT, Written, extent_len};
use shared_disk::plan::Gate;

use super::clone::Blocks;
use super::disks::{DiskShell, Disks};
use super::disks::{UnderWay, Writes};
use super::primary::{Primary, PrimaryAction};
use super::terms::Terms;
use ftvm_hypervisor::sequence::Sequence;

const SECTOR: u64 = 512;
/// Three extents and a short one.
const SIZE: u64 = 3 * EXTENT + 5 * SECTOR;
const BACKUP: Incarnation = Incarnation(9);
const SEEDS: u64 = 400;
/// Writes that the guest has unfinished at most.
const UNFINISHED: usize = 6;

/// What each sector holds: the write that it came from.
type Content = Vec<u64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plant {
    Nothing,
    /// A write is noted when it starts.
    NotedAtStart,
    /// Writes are not noted while a round runs.
    NotNoted,
    /// The last blocks are copied after the state was saved.
    BlocksAfterState,
    /// Writes go on while the state is settled and saved.
    WritesWhileSettling,
    /// The backup does not carry out what the state says is unfinished.
    UnfinishedForgotten,
}

fn sectors(bytes: u64) -> usize {
    usize::try_from(bytes / SECTOR).unwrap()
}

/// The sectors that a write has yet to put on the disk, and its last.
#[derive(Debug)]
struct Landing {
    request: DiskRequest,
    left: VecDeque<usize>,
}

#[derive(Debug)]
struct Shell {
    written: Written,
    in_flight: Vec<Landing>,
    plant: Plant,
    copying: bool,
}

impl DiskShell for Shell {
    type Error = std::convert::Infallible;

    fn write_begins(&mut self) {
        panic!("a private write needs no lease guard");
    }

    fn writes(&self) -> usize {
        self.written.under_way()
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
        let (offset, len) = range(&request);
        self.written.begins();
        if self.plant == Plant::NotedAtStart {
            self.written.over(0, offset, len);
            self.written.begins();
        }
        let left = (sectors(offset)..sectors(offset + len)).collect();
        self.in_flight.push(Landing { request, left });
        Ok(())
    }

    fn under_way(&self) -> Vec<UnderWay> {
        Vec::new()
    }
}

fn range(request: &DiskRequest) -> (u64, u64) {
    match &request.op {
        DiskOp::Write { offset, data } => (*offset, data.len() as u64),
        other => panic!("{other:?}"),
    }
}

/// What a write puts into its sectors.
fn put(content: &mut Content, request: &DiskRequest) {
    let (offset, len) = range(request);
    content[sectors(offset)..sectors(offset + len)].fill(request.id + 1);
}

/// A primary with a guest that writes, and a backup that joins.
#[derive(Debug)]
struct World {
    rng: Sequence,
    plant: Plant,
    core: Primary,
    disks: Disks<Shell>,
    disk: Content,
    /// As the guest would have it: every write it made, in its order.
    meant: Content,
    copy: Content,
    /// Made, and the guest was not told that they are finished.
    unfinished: BTreeMap<u64, DiskRequest>,
    /// Those of them that have landed.
    landed: Vec<u64>,
    next_id: u64,
    /// Extents of the present round to be copied; `None` between rounds.
    round: Option<Vec<u64>>,
    /// Copied and not written by the backup.
    on_the_way: VecDeque<(u64, Content)>,
    owed: VecDeque<PrimaryAction>,
    granted: bool,
    late: bool,
}

impl World {
    fn new(seed: u64, plant: Plant) -> Self {
        let terms = Terms {
            me: Incarnation(7),
            guest: 1,
            generation: Generation(1),
            detection_ns: 500_000_000,
            lease_ns: 300_000_000,
            patience_ns: 0,
            disk_reads: DiskReads::Log,
        };
        let written = Written::new(BTreeMap::from([(0, SIZE)]));
        let shell = Shell {
            written,
            in_flight: Vec::new(),
            plant,
            copying: false,
        };
        World {
            rng: Sequence::new(seed),
            plant,
            core: Primary::new(terms).with_private_disks(1),
            disks: Disks::new(shell, 1).with_private(vec![0]),
            disk: vec![0; sectors(SIZE)],
            meant: vec![0; sectors(SIZE)],
            copy: vec![u64::MAX; sectors(SIZE)],
            unfinished: BTreeMap::new(),
            landed: Vec::new(),
            next_id: 0,
            round: None,
            on_the_way: VecDeque::new(),
            owed: VecDeque::new(),
            granted: false,
            late: false,
        }
    }

    /// The guest writes. From the grant on, the backup's guest does so too.
    fn write(&mut self) {
        let start = self.rng.below(SIZE / SECTOR);
        let longest = (SIZE / SECTOR - start).min(200);
        let len = (1 + self.rng.below(longest)) * SECTOR;
        let op = DiskOp::Write {
            offset: start * SECTOR,
            data: Arc::new(vec![0; usize::try_from(len).unwrap()]),
        };
        let request = DiskRequest {
            disk: 0,
            id: self.next_id,
            op,
        };
        self.next_id += 1;
        self.disks.accept(&request, Gate::Held).unwrap();
        put(&mut self.meant, &request);
        if self.granted {
            put(&mut self.copy, &request);
        }
        self.unfinished.insert(request.id, request);
    }

    fn start(&mut self) {
        let writes = self.core.may_write(0);
        let plant = self.plant;
        self.disks.shell().copying = self.round.is_some();
        let writes = move || match (plant, writes) {
            (Plant::WritesWhileSettling, Writes::Settling) => Writes::Freely,
            (_, writes) => writes,
        };
        self.disks.start_ready(writes).unwrap();
    }

    /// A sector of a write in flight reaches the disk; with its last, the write is over, and the guest may be told.
    fn land(&mut self) {
        let shell = self.disks.shell();
        if shell.in_flight.is_empty() {
            return;
        }
        let index = usize::try_from(self.rng.below(shell.in_flight.len() as u64)).unwrap();
        let landing = &mut shell.in_flight[index];
        let together = if self.rng.below(2) == 0 {
            landing.left.len() as u64
        } else {
            1 + self.rng.below(landing.left.len() as u64)
        };
        for sector in landing.left.drain(..usize::try_from(together).unwrap()) {
            self.disk[sector] = landing.request.id + 1;
        }
        if landing.left.is_empty() {
            let request = shell.in_flight.swap_remove(index).request;
            let (offset, len) = range(&request);
            let len = match self.plant {
                Plant::NotedAtStart => 0,
                Plant::NotNoted if shell.copying => 0,
                _ => len,
            };
            shell.written.over(0, offset, len);
            self.landed.push(request.id);
        }
    }

    /// The guest hears of the end of a write that has landed; until then the write is in a state record.
    fn tell(&mut self) {
        if self.landed.is_empty() {
            return;
        }
        let index = usize::try_from(self.rng.below(self.landed.len() as u64)).unwrap();
        let id = self.landed.swap_remove(index);
        self.disks.finished(0, id).unwrap();
        self.unfinished.remove(&id);
    }

    /// The thread that copies, and the backup that writes.
    fn copy(&mut self) {
        if let Some(round) = &mut self.round
            && let Some(number) = round.pop()
        {
            let first = sectors(number * EXTENT);
            let content = self.disk[first..first + extent_len(SIZE, number) / 512].to_vec();
            self.on_the_way.push_back((number, content));
        }
    }

    fn arrive(&mut self) {
        if let Some((number, content)) = self.on_the_way.pop_front() {
            let first = sectors(number * EXTENT);
            self.copy[first..first + content.len()].copy_from_slice(&content);
        } else if self.round.as_ref().is_some_and(Vec::is_empty) {
            self.round = None;
            if !std::mem::take(&mut self.late) {
                let bytes = EXTENT << self.rng.below(10);
                self.call(|core, actions| core.blocks_sent(0, BACKUP, bytes, actions));
            }
        }
    }

    fn call(&mut self, call: impl FnOnce(&mut Primary, &mut Vec<PrimaryAction>)) {
        let mut actions = Vec::new();
        call(&mut self.core, &mut actions);
        self.owed.extend(actions);
    }

    /// The oldest thing that the core wants done.
    fn act(&mut self) {
        match self.owed.pop_front() {
            Some(PrimaryAction::SendBlocks { blocks, .. }) => self.begin_round(blocks),
            Some(PrimaryAction::TakeDirty) => self.call(|core, actions| core.dirty(0, vec![], actions)),
            Some(PrimaryAction::SendPages { .. }) => {
                self.call(|core, actions| core.pages_sent(0, BACKUP, 0, 0, actions))
            }
            Some(PrimaryAction::SaveState) => self.save(),
            _ => {}
        }
    }

    fn begin_round(&mut self, blocks: Blocks) {
        let settling = self.core.may_write(0) == Writes::Settling;
        if settling && self.plant == Plant::BlocksAfterState {
            self.late = true;
            self.call(|core, actions| core.blocks_sent(0, BACKUP, 0, actions));
        }
        let written = &mut self.disks.shell().written;
        let extents = match blocks {
            Blocks::All => written.first_look(),
            Blocks::Written => written.look(),
        };
        self.round = Some(extents.iter().map(|(_, number)| number).collect());
    }

    /// The state: what is unfinished in it, the backup carries out.
    fn save(&mut self) {
        let mark = Mark {
            at: Position { exit: ExitSeq(1), k: 0 },
            digest: Digest::default(),
            outputs: OutputSeq(0),
            sent_ns: 0,
            registers: None,
            memory_hash: None,
        };
        let mut actions = Vec::new();
        self.core.state_saved(0, b"state", mark, 0, &mut actions);
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, PrimaryAction::Send(Message::Grant(_))))
        );
        self.granted = true;
        if self.plant != Plant::UnfinishedForgotten {
            for request in self.unfinished.values() {
                put(&mut self.copy, request);
            }
        }
    }

    fn settle(&mut self) {
        let writes = self.disks.writes();
        self.call(|core, actions| core.settled(0, writes, actions));
    }

    fn turn(&mut self) {
        match self.rng.below(12) {
            0 if self.unfinished.len() < UNFINISHED => self.write(),
            1..=2 => self.start(),
            3..=5 => self.land(),
            6 => self.copy(),
            7 => self.arrive(),
            8..=9 => self.act(),
            10 => self.settle(),
            _ => self.tell(),
        }
    }

    /// Plays a join, some writes after it, and the end; whether both copies are what the guest meant.
    fn level(mut self) -> bool {
        for _ in 0..self.rng.below(40) {
            self.turn();
        }
        self.call(|core, actions| core.joined(0, BACKUP, actions));
        let mut turns = 0;
        while !self.granted {
            self.turn();
            turns += 1;
            assert!(turns < 1_000_000, "the join never ends: {:?}", self.core);
        }
        for _ in 0..self.rng.below(200) {
            self.turn();
        }
        // A clean end: everything lands, in the plan's order.
        while self.round.is_some() {
            self.copy();
            self.arrive();
        }
        while !self.unfinished.is_empty() {
            self.start();
            self.land();
            self.tell();
        }
        self.disk == self.meant && self.copy == self.meant
    }
}

/// Whether copies differ with this plant for any seed.
fn shows(plant: Plant) -> bool {
    (0..SEEDS).any(|seed| !World::new(seed, plant).level())
}

#[test]
fn a_copy_is_level_whatever_is_written_while_it_is_made() {
    for seed in 0..SEEDS {
        assert!(World::new(seed, Plant::Nothing).level(), "seed {seed}");
    }
}

#[test]
fn every_planted_fault_shows() {
    for plant in [
        Plant::NotedAtStart,
        Plant::NotNoted,
        Plant::BlocksAfterState,
        Plant::WritesWhileSettling,
        Plant::UnfinishedForgotten,
    ] {
        assert!(shows(plant), "{plant:?}");
    }
}
