//! What all processes of a simulation share: time, chance, network, storage, the outside.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use ftvm_roles::operation::Operation;
use ftvm_schema::entry::{Generation, Incarnation};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::DiskReads;
use shared_disk::arbiter::ClaimOutcome;

use super::checks::Checks;
use super::guest::Guest;
use super::network::{Arrival, Network, ProcId};
use super::plants::Plant;
use super::rng::Rng;
use super::storage::{Register, SharedImage};

pub const US: u64 = 1_000;
pub const MS: u64 = 1_000_000;

/// What is fixed for a run: the terms of its pairs, and what its hosts and their guest are like.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub guest: u128,
    pub detection: u64,
    pub lease: u64,
    pub patience: u64,
    pub disk_reads: DiskReads,
    /// Cost of an exit and of a unit of computing.
    pub exit: u64,
    pub unit: u64,
    /// Latency of the disk, and of the storage's register.
    pub disk: (u64, u64),
    pub storage: (u64, u64),
    /// How long the release of an output takes.
    pub call: (u64, u64),
    /// How long a backup takes to execute a frame.
    pub execute: (u64, u64),
    /// Bytes that a backup has not executed above which it takes nothing more in.
    pub unexecuted: usize,
}

impl Terms {
    /// What the pair has agreed on, as `me` sees it, before anybody has won a generation.
    #[must_use]
    pub fn pair(&self, me: Incarnation) -> ftvm_roles::terms::Terms {
        ftvm_roles::terms::Terms {
            me,
            guest: self.guest,
            generation: Generation(0),
            detection_ns: self.detection,
            lease_ns: self.lease,
            patience_ns: self.patience,
            disk_reads: self.disk_reads,
        }
    }
}

/// A host's clock.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub offset: u64,
    /// Parts per million that it runs fast.
    pub drift: u64,
    pub up: bool,
}

/// A place in the protocol at which a fault may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    Send,
    Ack,
    Grant,
    Joined,
    Check,
    Landed,
    DiskStart,
    DiskLanded,
    Claim,
    Won,
    GoLive,
    Resume,
    End,
    Operate,
    Handover,
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    Kill,
    Crash,
    Pause(u64),
    /// Its host does not reach the disk for so long.
    LoseDisk(u64),
    /// Its host cannot reach the others for so long.
    Cut(u64),
}

/// A fault at the n-th time that a point is reached.
#[derive(Clone, Copy, Debug)]
pub struct Trigger {
    pub point: Point,
    pub left: u64,
    pub blow: Blow,
}

/// Something that happens to a process, or for it.
#[derive(Debug)]
pub enum What {
    Turn,
    Vcpu(u64),
    Execute,
    Tick,
    Due,
    CallOver,
    Arrives(Arrival),
    Closed {
        conn: usize,
        why: &'static str,
    },
    Datagram(Vec<u8>),
    Claim {
        generation: u64,
        owner: u128,
    },
    Answer(Option<ClaimOutcome>),
    ClaimAgain,
    SendPages,
    Submit(DiskRequest),
    Land(DiskRequest),
    Done {
        request: DiskRequest,
        data: Vec<u8>,
    },
    LeaseGuard(u64),
    /// The devices refuse every other host's writes.
    DisksReserved,
    Knock {
        from: ProcId,
    },
    Welcome {
        conn: usize,
        generation: Generation,
        owner: Incarnation,
    },
    Joined {
        conn: usize,
        backup: Incarnation,
    },
    KnockAgain,
    Exit,
    EndGuest,
    Typed,
    Strike(Blow),
    Resume,
    Operator,
    Operate(Operation),
    DiskLost(DiskRequest),
    Quiet,
}

#[derive(Debug)]
pub struct Timed {
    pub at: u64,
    seq: u64,
    pub to: ProcId,
    pub what: What,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// A write that a kernel has taken.
#[derive(Clone, Copy, Debug)]
pub struct InKernel {
    /// True time after which it does not land any more: its process is, or would have been, ended by the fence.
    pub until: Option<u64>,
}

/// The shared part of a world.
#[derive(Debug)]
pub struct Env {
    pub now: u64,
    seq: u64,
    heap: BinaryHeap<Reverse<Timed>>,
    pub rng: Rng,
    pub terms: Terms,
    pub plant: Option<Plant>,
    pub guest: Guest,
    pub hosts: Vec<Host>,
    pub net: Network,
    pub register: Register,
    /// The storage does not answer between these times.
    pub outages: Vec<(u64, u64)>,
    /// Hosts that do not reach the disk, and until when.
    pub lost_disks: Vec<(usize, u64)>,
    pub image: SharedImage,
    /// Writes in kernels, by process and request.
    pub kernel: BTreeMap<(ProcId, u64), InKernel>,
    pub checks: Checks,
    pub base: Instant,
    pub timeline: Option<Vec<String>>,
    pub triggers: Vec<Trigger>,
    pub quiet: bool,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Env {
    /// A world in which nothing has happened.
    #[must_use]
    pub fn new(rng: Rng, terms: Terms, guest: Guest, hosts: Vec<Host>, owner: u128) -> Self {
        Env {
            now: 0,
            seq: 0,
            heap: BinaryHeap::new(),
            rng,
            terms,
            plant: None,
            guest,
            hosts,
            net: Network::default(),
            register: Register::started(owner),
            outages: Vec::new(),
            lost_disks: Vec::new(),
            image: SharedImage::default(),
            kernel: BTreeMap::new(),
            checks: Checks::default(),
            base: Instant::now(),
            timeline: None,
            triggers: Vec::new(),
            quiet: false,
            counts: BTreeMap::new(),
        }
    }

    /// Something happens to `to` at true time `at`.
    pub fn at(&mut self, at: u64, to: ProcId, what: What) {
        self.seq += 1;
        let at = at.max(self.now);
        let seq = self.seq;
        self.heap.push(Reverse(Timed { at, seq, to, what }));
    }

    /// Something happens to `to` after `delay`.
    pub fn after(&mut self, delay: u64, to: ProcId, what: What) {
        self.at(self.now + delay, to, what);
    }

    /// The next thing that happens; time moves there.
    pub fn next(&mut self) -> Option<Timed> {
        let Reverse(timed) = self.heap.pop()?;
        self.now = timed.at;
        Some(timed)
    }

    /// What the clock of `host` shows at true time `at`.
    #[must_use]
    pub fn local_at(&self, host: usize, at: u64) -> u64 {
        let Host { offset, drift, .. } = self.hosts[host];
        offset + at + at / 1_000_000 * drift
    }

    /// What the clock of `host` shows now.
    #[must_use]
    pub fn local(&self, host: usize) -> u64 {
        self.local_at(host, self.now)
    }

    /// The first true time at which the clock of `host` shows at least `local`.
    #[must_use]
    pub fn true_time(&self, host: usize, local: u64) -> u64 {
        let Host { offset, drift, .. } = self.hosts[host];
        let elapsed = u128::from(local.saturating_sub(offset));
        let mut at = u64::try_from(elapsed * 1_000_000 / u128::from(1_000_000 + drift)).unwrap_or(u64::MAX);
        while self.local_at(host, at) < local {
            at += 1;
        }
        at
    }

    /// A local time as the vCPU loop takes it.
    #[must_use]
    pub fn instant(&self, local: u64) -> Instant {
        self.base + Duration::from_nanos(local)
    }

    /// A line for the timeline, if there is one.
    pub fn note(&mut self, who: ProcId, line: impl FnOnce() -> String) {
        if let Some(timeline) = &mut self.timeline {
            let (ms, us) = (self.now / MS, self.now / US % 1000);
            timeline.push(format!("{ms:>6}.{us:03} ms  p{who}  {}", line()));
        }
    }

    /// Counts something for the report.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The protocol has come to a point at which a fault may strike.
    pub fn reach(&mut self, point: Point, by: ProcId) {
        let now = self.now;
        let mut blows = Vec::new();
        for trigger in &mut self.triggers {
            if trigger.point == point && trigger.left > 0 {
                trigger.left -= 1;
                if trigger.left == 0 {
                    blows.push(trigger.blow);
                }
            }
        }
        if !self.quiet {
            for blow in blows {
                self.at(now, by, What::Strike(blow));
            }
        }
    }

    /// Sends what a connection's window allows.
    pub fn pump(&mut self, conn: usize, way: usize) {
        let receiver = self.net.conns[conn].ends[1 - way];
        for (at, arrival) in self.net.pump(conn, way, self.now, &mut self.rng) {
            self.at(at, receiver, What::Arrives(arrival));
        }
    }

    /// Whether a host does not reach the disk now.
    #[must_use]
    pub fn disk_lost(&self, host: usize) -> bool {
        self.lost_disks
            .iter()
            .any(|(lost, until)| *lost == host && self.now < *until)
    }

    /// Until when the storage does not answer, if it does not.
    #[must_use]
    pub fn outage(&self) -> Option<u64> {
        let covers = |(begins, ends): &&(u64, u64)| (*begins..*ends).contains(&self.now);
        self.outages.iter().filter(covers).map(|(_, ends)| *ends).max()
    }
}
