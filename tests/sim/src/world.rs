//! A run: a guest, two hosts, some faults, and then a quiet time in which everything must come right.

use std::collections::BTreeMap;

use ftvm_roles::link::backup::UNEXECUTED_BYTES;
use ftvm_roles::operation::Operation;
use ftvm_schema::entry::Incarnation;
use logging_channel::message::DiskReads;

use super::checks::{FLOW, Violation};
use super::env::{Blow, Env, Host, MS, Point, Terms, Timed, Trigger, US, What};
use super::guest::{Ending, Guest, GuestKind};
use super::network::{Partition, ProcId};
use super::plants::Plant;
use super::process::{Process, Role};
use super::rng::Rng;

/// Faults stop here.
const QUIET: u64 = 450 * MS;

/// Bound of invariant (vi): a join that gets stuck (10 s) and what follows it.
const FLOW_WITHIN: u64 = 13_000 * MS;

/// Outputs that must leave in the quiet time.
const ENOUGH: u64 = 12;

/// No run goes on for more events: one that does is a loop.
const MOST_EVENTS: u64 = 3_000_000;

/// Processes in a run, at most.
const MOST_PROCESSES: usize = 12;

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub plant: Option<Plant>,
    pub timeline: bool,
}

/// What came of a seed.
#[derive(Debug)]
pub struct Run {
    pub seed: u64,
    pub violation: Option<Violation>,
    pub timeline: Vec<String>,
    /// How often things happened that a run may have.
    pub counts: BTreeMap<&'static str, u64>,
    pub events: u64,
}

#[derive(Debug)]
struct World {
    env: Env,
    processes: Vec<Process>,
    /// When outputs must have flowed, and how many had left when the quiet time began.
    deadline: Option<(u64, u64)>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: Options) -> Run {
    let mut world = World::new(seed, options);
    let mut events = 0;
    while world.env.checks.violation.is_none() && events < MOST_EVENTS {
        let Some(timed) = world.env.next() else { break };
        events += 1;
        world.on(timed);
        if world.is_over() {
            break;
        }
    }
    let (fresh, repeats) = (world.env.checks.fresh, world.env.checks.repeats);
    world.env.counts.insert("outputs", fresh);
    world.env.counts.insert("repeats", repeats);
    Run {
        seed,
        violation: world.env.checks.violation.take(),
        timeline: world.env.timeline.take().unwrap_or_default(),
        counts: world.env.counts,
        events,
    }
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let large = match options.plant {
            Some(Plant::AckOfPartialCheckpoint) => 1000,
            // They take a hundred times longer than others.
            _ => 1,
        };
        let kind = GuestKind {
            large: rng.permille(large),
            ends: match options.plant {
                Some(Plant::LifeAfterPowerOff) => Ending::PowerOff,
                _ => rng.pick(&[
                    Ending::Never,
                    Ending::Never,
                    Ending::Never,
                    Ending::PowerOff,
                    Ending::TripleFault,
                ]),
            },
            length: match options.plant {
                Some(Plant::AckOfPartialCheckpoint) => rng.between(50, 150),
                _ => rng.between(100, 700),
            },
            window: rng.permille(300),
        };
        let guest = Guest::new(&kind, &mut rng);
        let detection = rng.pick(&[20 * MS, 40 * MS, 100 * MS]);
        let disk = rng.pick(&[MS, 5 * MS, detection * 2]);
        let terms = Terms {
            guest: 7,
            detection,
            lease: rng.between(detection / 4, detection * 998 / 1000),
            patience: if kind.large {
                20 * MS
            } else {
                rng.pick(&[4 * MS, 10 * MS])
            },
            exit: rng.between(10 * US, 60 * US),
            unit: 20 * US,
            disk: (50 * US, disk),
            storage: (100 * US, rng.pick(&[MS, 10 * MS])),
            call: (US, rng.pick(&[5 * US, 200 * US, 2 * MS])),
            execute: (5 * US, rng.pick(&[100 * US, 2 * MS])),
            unexecuted: rng.pick(&[UNEXECUTED_BYTES, UNEXECUTED_BYTES, UNEXECUTED_BYTES, 4 << 10]),
            disk_reads: match options.plant {
                Some(Plant::WriteBeforeRead) => DiskReads::Backup,
                _ => rng.pick(&[DiskReads::Log, DiskReads::Backup]),
            },
        };
        let host = |rng: &mut Rng| Host {
            offset: rng.between(1_000 * MS, 1_000_000 * MS),
            drift: rng.between(0, 1000),
            up: true,
        };
        let count = if rng.permille(400) { 3 } else { 2 };
        let hosts: Vec<_> = (0..count).map(|_| host(&mut rng)).collect();
        let first = incarnation(0);
        let mut env = Env::new(rng, terms, guest, hosts, first.0);
        env.plant = options.plant;
        env.timeline = options.timeline.then(Vec::new);
        env.net.delay = (20 * US, env.rng.pick(&[200 * US, MS, 5 * MS]));
        env.net.lost = env.rng.pick(&[0, 20, 300]);
        env.net.doubled = env.rng.pick(&[0, 50]);
        let mut world = World {
            env,
            processes: Vec::new(),
            deadline: None,
        };
        world.plan(options.plant);
        world.env.checks.won(0, 1, first.0);
        world.processes.push(Process::new(0, 0, first));
        world.processes[0].start_guest(&mut world.env);
        world.env.at(MS, 0, What::Operator);
        world.env.at(2 * MS, 0, What::Typed);
        world.env.at(QUIET, 0, What::Quiet);
        world
    }

    /// Draws the faults.
    fn plan(&mut self, plant: Option<Plant>) {
        let env = &mut self.env;
        let detection = env.terms.detection;
        for _ in 0..env.rng.between(0, 4) {
            let begins = env.rng.between(0, QUIET);
            let ends = (begins + env.rng.delay(MS, detection * 6)).min(QUIET);
            let (from, to) = pair_of(&mut env.rng, env.hosts.len());
            env.net.partitions.push(Partition { from, to, begins, ends });
            if env.rng.permille(600) {
                let (from, to) = (to, from);
                env.net.partitions.push(Partition { from, to, begins, ends });
            }
        }
        for _ in 0..env.rng.pick(&[0, 0, 1, 2]) {
            let begins = env.rng.between(0, QUIET);
            let ends = (begins + env.rng.delay(MS, 400 * MS)).min(QUIET);
            env.outages.push((begins, ends));
        }
        let points = [
            (Point::Send, 600),
            (Point::Ack, 600),
            (Point::Grant, 2),
            (Point::Joined, 2),
            (Point::Check, 200),
            (Point::Landed, 200),
            (Point::DiskStart, 60),
            (Point::DiskLanded, 60),
            (Point::Claim, 2),
            (Point::Won, 2),
            (Point::GoLive, 2),
            (Point::Resume, 2),
            (Point::End, 1),
            (Point::Operate, 3),
            (Point::Handover, 1),
        ];
        let blow = |rng: &mut Rng| match rng.between(0, 10) {
            10 => Blow::LoseDisk(rng.delay(MS, detection * 8)),
            0..3 => Blow::Kill,
            3..5 => Blow::Crash,
            5..8 => Blow::Pause(rng.delay(MS, detection * 8)),
            _ => Blow::Cut(rng.delay(MS, detection * 8)),
        };
        for _ in 0..env.rng.between(0, 3) {
            let (point, most) = env.rng.pick(&points);
            let left = env.rng.between(1, most);
            let blow = blow(&mut env.rng);
            env.triggers.push(Trigger { point, left, blow });
        }
        for _ in 0..env.rng.between(0, 3) {
            let at = env.rng.between(10 * MS, QUIET);
            let to = env.rng.index(4);
            let blow = blow(&mut env.rng);
            env.at(at, to, What::Strike(blow));
        }
        self.plan_operations(plant);
        let env = &mut self.env;
        if plant == Some(Plant::ReleasedAtSubmission) {
            env.terms.call.1 = 2 * MS;
        }
    }

    /// Draws what operators will ask for, and disks that are lost.
    fn plan_operations(&mut self, plant: Option<Plant>) {
        let env = &mut self.env;
        let tilted = match plant {
            Some(Plant::ReleaseAfterHandover) => Some(Operation::Failover),
            Some(Plant::ClaimAfterBye) => Some(Operation::RestartBackup),
            _ => None,
        };
        for _ in 0..env.rng.pick(&[0, 0, 1, 3, 6]) {
            let operation = match env.rng.between(0, 99) {
                0..30 => Operation::Failover,
                30..45 => Operation::RestartBackup,
                45..55 => Operation::SuspendProtection,
                55..65 => Operation::ResumeProtection,
                65..75 => Operation::Pause,
                75..87 => Operation::Resume,
                87..95 => Operation::Reset,
                95..98 => Operation::TestFailover,
                _ => Operation::PowerOff,
            };
            let at = env.rng.between(10 * MS, QUIET);
            env.at(at, 0, What::Operate(tilted.unwrap_or(operation)));
        }
        if plant == Some(Plant::FailureTold) || env.rng.permille(150) {
            let at = env.rng.between(30 * MS, QUIET);
            let time = env.rng.delay(5 * MS, 200 * MS);
            env.at(at, 0, What::Strike(Blow::LoseDisk(time)));
        }
    }

    fn on(&mut self, timed: Timed) {
        let Timed { to, what, .. } = timed;
        match what {
            What::Operator => self.operator(),
            What::Quiet => self.quieten(),
            What::Typed => {
                let delay = self.env.rng.delay(MS, 60 * MS);
                self.env.after(delay, 0, What::Typed);
                if let Some(primary) = self.processes.iter_mut().find(|p| matches!(p.role, Role::Leading(_))) {
                    primary.on(&mut self.env, What::Typed);
                }
            }
            What::Operate(operation) => {
                let primary: Vec<ProcId> = (0..self.processes.len())
                    .filter(|id| matches!(self.processes[*id].role, Role::Leading(_)))
                    .collect();
                if !primary.is_empty() {
                    let id = primary[self.env.rng.index(primary.len())];
                    self.processes[id].on(&mut self.env, What::Operate(operation));
                }
            }
            What::Strike(blow) => self.strike(to, blow),
            What::Knock { from } => self.knock(to, from),
            What::KnockAgain => self.look_for_primary(to),
            what => {
                if let Some(process) = self.processes.get_mut(to) {
                    process.on(&mut self.env, what);
                }
            }
        }
    }

    /// Starts a process on a host that has none, so that the guest is protected again.
    fn operator(&mut self) {
        let delay = self.env.rng.between(5 * MS, 150 * MS);
        self.env.after(delay, 0, What::Operator);
        self.let_go_on();
        let busy = |host: usize| self.processes.iter().any(|p| p.common.host == host && p.is_alive());
        let free = (0..self.env.hosts.len()).find(|host| !busy(*host) && self.env.hosts[*host].up);
        if let Some(host) = free
            && self.processes.len() < MOST_PROCESSES
            && !self.env.checks.has_ended()
        {
            let id = self.processes.len();
            self.processes.push(Process::new(id, host, incarnation(id)));
            self.env.note(id, || format!("starts on host {host}, to join"));
            self.look_for_primary(id);
        }
    }

    /// In the quiet time nobody leaves the guest paused.
    fn let_go_on(&mut self) {
        let quiet = self.env.quiet;
        for process in self.processes.iter_mut().filter(|_| quiet) {
            if matches!(&process.role, Role::Leading(primary) if primary.core().paused()) {
                process.on(&mut self.env, What::Operate(Operation::Resume));
            }
        }
    }

    fn look_for_primary(&mut self, id: ProcId) {
        let process = &self.processes[id];
        if !matches!(process.role, Role::Joining) || process.common.paused {
            return;
        }
        self.env.after(50 * MS, id, What::KnockAgain);
        let host = process.common.host;
        let other = self
            .processes
            .iter()
            .filter(|p| p.common.host != host && matches!(p.role, Role::Leading(_)))
            .max_by_key(|p| p.common.generation.0);
        if let Some(primary) = other
            && self.env.net.blocked(host, primary.common.host, self.env.now).is_none()
        {
            let delay = self.env.rng.delay(self.env.net.delay.0, self.env.net.delay.1);
            self.env.after(delay, primary.common.id, What::Knock { from: id });
        }
    }

    /// The handshake, in one round trip.
    fn knock(&mut self, to: ProcId, from: ProcId) {
        let primary = &mut self.processes[to];
        if !primary.is_open() || primary.common.paused || !matches!(self.processes[from].role, Role::Joining) {
            return;
        }
        let joiner = self.processes[from].common.host;
        let primary = &self.processes[to].common;
        let (hosts, generation, owner) = ([joiner, primary.host], primary.generation, primary.me);
        let conn = self.env.net.connect([from, to], hosts);
        self.processes[from].connected(conn, 0);
        self.processes[to].connected(conn, 1);
        let delay = self.env.net.delay;
        let there = self.env.rng.delay(delay.0, delay.1);
        self.env.after(
            there,
            from,
            What::Welcome {
                conn,
                generation,
                owner,
            },
        );
        let back = self.env.rng.delay(delay.0, delay.1);
        let backup = self.processes[from].common.me;
        self.env.after(there + back, to, What::Joined { conn, backup });
    }

    fn strike(&mut self, to: ProcId, blow: Blow) {
        let Some(process) = self.processes.get_mut(to).filter(|p| p.is_alive()) else {
            return;
        };
        if self.env.quiet {
            return;
        }
        self.env.note(to, || format!("is struck: {blow:?}"));
        match blow {
            Blow::Kill => {
                self.env.count("kills");
                process.die(&mut self.env, false);
            }
            Blow::Crash => {
                self.env.count("crashes");
                let host = process.common.host;
                for process in self
                    .processes
                    .iter_mut()
                    .filter(|p| p.common.host == host && p.is_alive())
                {
                    process.die(&mut self.env, true);
                }
            }
            Blow::Pause(time) => {
                self.env.count("pauses");
                process.pause();
                let until = (self.env.now + time).min(QUIET);
                self.env.at(until, to, What::Resume);
            }
            Blow::LoseDisk(time) => {
                self.env.count("lost-disks");
                let (host, until) = (process.common.host, (self.env.now + time).min(QUIET));
                self.env.lost_disks.push((host, until));
            }
            Blow::Cut(time) => {
                self.env.count("cuts");
                let ends = (self.env.now + time).min(QUIET);
                let begins = self.env.now;
                let host = self.processes[to].common.host;
                for other in (0..self.env.hosts.len()).filter(|other| *other != host) {
                    for (from, to) in [(host, other), (other, host)] {
                        self.env.net.partitions.push(Partition { from, to, begins, ends });
                    }
                }
            }
        }
    }

    /// From here on nothing fails.
    fn quieten(&mut self) {
        self.env.quiet = true;
        self.env.net.lost = 0;
        self.deadline = Some((self.env.now + FLOW_WITHIN, self.env.checks.fresh));
        self.env.note(0, || "the faults are over".to_owned());
    }

    /// Whether the run has shown what it can; checks invariant (vi).
    fn is_over(&mut self) -> bool {
        let Some((deadline, before)) = self.deadline else {
            return false;
        };
        let able = |p: &Process| match &p.role {
            Role::Leading(_) => true,
            Role::Following(backup) => backup.is_eligible(),
            Role::Joining | Role::Gone => false,
        };
        if !self.processes.iter().any(able) {
            return true;
        }
        if self.env.checks.fresh >= before + ENOUGH {
            return true;
        }
        if self.env.now >= deadline && !self.env.checks.has_ended() {
            let what = format!(
                "{} outputs have left since the faults were over",
                self.env.checks.fresh - before
            );
            self.env.checks.fail(self.env.now, FLOW, what);
        }
        self.env.now >= deadline
    }
}

/// One direction between two hosts.
fn pair_of(rng: &mut Rng, hosts: usize) -> (usize, usize) {
    let from = rng.index(hosts);
    let to = (from + 1 + rng.index(hosts - 1)) % hosts;
    (from, to)
}

/// Incarnations differ in more than their number.
fn incarnation(id: ProcId) -> Incarnation {
    Incarnation((id as u128 + 1) * 0x1_0000_0001)
}
