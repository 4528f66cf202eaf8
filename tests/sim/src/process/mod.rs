//! One process of the pair: what happens to it, and the turns of its link task.

mod reading;

use std::collections::VecDeque;

use ftvm_roles::clock::LiveClock;
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::link::world::LinkEvent;
use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::codec::{FrameEncoder, decode_heartbeat};
use shared_disk::arbiter::ClaimOutcome;

use super::backup::SimBackup;
use super::common::{Common, connection_id};
use super::env::{Env, MS, Point, US, What};
use super::network::{Arrival, ConnId, ProcId};
use super::primary::SimPrimary;

/// Heartbeats that wait at most, as in `vmm::link::heartbeats`.
const HEARD: usize = 16;

/// Pause between tries of the test-and-set that got no answer, as in `vmm::link::connection`.
const CLAIM_PAUSE: u64 = 200 * MS;

/// Events of its link that a process takes in one turn at most: few, as here they seldom wait.
const AT_ONCE: u64 = 8;

/// What a process does.
#[derive(Debug)]
pub enum Role {
    /// Looking for a primary.
    Joining,
    Leading(Box<SimPrimary>),
    Following(Box<SimBackup>),
    Gone,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    pub common: Common,
    pub role: Role,
    deferred: Vec<What>,
    /// All connections it ever had, for its death.
    conns: Vec<(ConnId, usize)>,
}

impl Process {
    /// A process on a host.
    #[must_use]
    pub fn new(id: ProcId, host: usize, me: Incarnation) -> Self {
        Process {
            common: Common {
                id,
                host,
                me,
                paused: false,
                link: VecDeque::new(),
                burst: 0,
                orders: VecDeque::new(),
                heard: VecDeque::new(),
                tick_due: false,
                time_due: false,
                awake: false,
                conn: None,
                peer: None,
                peer_host: host,
                generation: Generation(0),
                encoder: FrameEncoder::new(),
                number: 0,
                claiming: None,
                ending: None,
            },
            role: Role::Joining,
            deferred: Vec::new(),
            conns: Vec::new(),
        }
    }

    /// Starts the guest here.
    pub fn start_guest(&mut self, env: &mut Env) {
        let clock = LiveClock::starting(0, env.instant(env.local(self.common.host)));
        let boot = env.guest.boot();
        let mut machine = env.guest.machine();
        machine.set_boot(boot.clone());
        self.common.generation = Generation(1);
        let primary = SimPrimary::new(env, &mut self.common, boot, machine, clock, Beginning::Started);
        self.role = Role::Leading(Box::new(primary));
    }

    /// Whether it lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !matches!(self.role, Role::Gone)
    }

    /// Whether a backup may join here.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(&self.role, Role::Leading(primary) if primary.may_join())
    }

    /// A connection of this process.
    pub fn connected(&mut self, conn: ConnId, end: usize) {
        self.conns.push((conn, end));
    }

    /// Something happens.
    pub fn on(&mut self, env: &mut Env, what: What) {
        if !self.is_alive() {
            return self.after_death(env, what);
        }
        let regardless = matches!(
            what,
            What::Claim { .. }
                | What::Land(_)
                | What::LeaseGuard(_)
                | What::Arrives(_)
                | What::Resume
                | What::Strike(_)
        );
        if self.common.paused && !regardless {
            self.deferred.push(what);
            return;
        }
        let common = &mut self.common;
        match (what, &mut self.role) {
            (What::Turn, _) => self.turn(env),
            (What::Tick, role) => {
                common.tick_due = true;
                if !matches!(role, Role::Joining) && common.ending.is_none() {
                    let late = env.rng.delay(0, MS);
                    env.after(env.terms.detection / 8 + late, common.id, What::Tick);
                }
                common.wake(env, 0);
            }
            (What::Due, _) => {
                common.time_due = true;
                common.wake(env, 0);
            }
            (What::Vcpu(token), Role::Leading(primary)) => primary.run_vcpu(env, common, token),
            (What::Execute, Role::Following(backup)) => backup.execute(env, common),
            (What::SendPages, Role::Leading(primary)) => primary.send_some(env, common),
            (What::CallOver, Role::Leading(primary)) => primary.call_over(env, common),
            (What::DisksReserved, Role::Leading(primary)) => primary.disks_reserved(env, common),
            (What::Typed, Role::Leading(primary)) => {
                let bytes = vec![env.rng.between(1, 255).to_le_bytes()[0]];
                let port = ftvm_schema::entry::ConsolePort::Serial;
                primary.tell(env, common, ftvm_roles::host_event::HostEvent::Console { port, bytes });
            }
            (What::Operate(operation), Role::Leading(_)) => {
                common.orders.push_back(operation);
                common.wake(env, 0);
            }
            (What::DiskLost(request), Role::Leading(primary)) => primary.disk_lost(env, common, &request),
            (What::Arrives(arrival), _) => self.arrives(env, arrival),
            (What::Closed { conn, why }, _) => {
                let (connection, why) = (connection_id(conn), why.to_owned());
                common.link.push_back(LinkEvent::Closed { connection, why });
                common.wake(env, 0);
            }
            (What::Datagram(bytes), _) => {
                if let Ok(heartbeat) = decode_heartbeat(&bytes)
                    && common.heard.len() < HEARD
                {
                    common.heard.push_back(heartbeat);
                    common.wake(env, 0);
                }
            }
            (What::Claim { generation, owner }, _) => {
                run_claim(env, common.id, common.me, generation, owner);
            }
            (What::Answer(Some(outcome)), _) => {
                common.claiming = None;
                common.link.push_back(LinkEvent::Claimed(outcome));
                common.wake(env, 0);
            }
            (What::Answer(None), _) => env.after(CLAIM_PAUSE, common.id, What::ClaimAgain),
            (What::ClaimAgain, _) => common.ask(env),
            (What::Submit(request), Role::Leading(primary)) => {
                let until = primary.guarded_until(env, common);
                env.kernel
                    .insert((common.id, request.id), super::env::InKernel { until });
                let delay = env.rng.delay(10 * US, env.terms.disk.1);
                env.after(delay, common.id, What::Land(request));
            }
            (What::Land(request), _) => self.land(env, request),
            (What::Done { request, data }, Role::Leading(primary)) => {
                primary.disk_done(env, common, &request, data);
            }
            (What::LeaseGuard(deadline), Role::Leading(primary)) => {
                let strikes = primary.guard_strikes(env, common, deadline);
                if strikes {
                    env.note(common.id, || "is ended by its fence".to_owned());
                    env.count("fenced");
                    env.kernel.retain(|(process, _), _| *process != common.id);
                    self.die(env, false);
                }
            }
            (What::Joined { conn, backup }, Role::Leading(_)) => {
                let connection = connection_id(conn);
                common.link.push_back(LinkEvent::Joined { connection, backup });
                common.wake(env, 0);
            }
            (
                What::Welcome {
                    conn,
                    generation,
                    owner,
                },
                Role::Joining,
            ) => self.follow(env, conn, generation, owner),
            (What::Exit, _) => self.exit(env),
            (What::Resume, _) => self.resume(env),
            _ => {}
        }
    }

    /// What goes on in kernels and on the storage when the process is dead.
    fn after_death(&mut self, env: &mut Env, what: What) {
        match what {
            What::Claim { generation, owner } => run_claim(env, self.common.id, self.common.me, generation, owner),
            What::Land(request) => self.land(env, request),
            What::EndGuest => env.register.end(self.common.me.0),
            What::Arrives(Arrival::Bytes { conn, way, at, bytes }) => {
                env.net.arrive(conn, way, at, bytes);
                self.reset(env, conn, way);
            }
            _ => {}
        }
    }

    /// One turn of the link task's loop: something that is ready, picked by chance.
    fn turn(&mut self, env: &mut Env) {
        let common = &mut self.common;
        common.awake = false;
        if common.ending.is_some() {
            return;
        }
        match &mut self.role {
            Role::Leading(primary) => {
                if primary.is_busy() {
                    return;
                }
                let ready = [
                    !common.link.is_empty(),
                    primary.has_batches(env, common),
                    !common.heard.is_empty(),
                    common.tick_due,
                    !common.orders.is_empty(),
                ];
                match choose(env, &ready) {
                    Some(0) => {
                        let burst = env.rng.between(1, AT_ONCE);
                        primary.link_event(env, common, burst);
                    }
                    Some(1) => primary.guest_says(env, common),
                    Some(2) => {
                        if let Some(heartbeat) = common.heard.pop_front() {
                            primary.heard(env, common, heartbeat);
                        }
                    }
                    Some(3) => {
                        common.tick_due = false;
                        primary.tick(env, common);
                    }
                    Some(_) => {
                        if let Some(operation) = common.orders.pop_front() {
                            primary.operate(env, common, operation);
                        }
                    }
                    None => {}
                }
                if ready.iter().filter(|ready| **ready).count() > 1 {
                    common.wake(env, 0);
                }
            }
            Role::Following(backup) => {
                let ready = [
                    !common.link.is_empty() && backup.takes_more(),
                    backup.has_reports(),
                    !common.heard.is_empty(),
                    common.tick_due,
                    common.time_due,
                ];
                match choose(env, &ready) {
                    Some(0) => {
                        let burst = env.rng.between(1, AT_ONCE);
                        backup.link_event(env, common, burst);
                    }
                    Some(1) => backup.report(env, common),
                    Some(2) => {
                        if let Some(heartbeat) = common.heard.pop_front() {
                            backup.heard(env, common, heartbeat);
                        }
                    }
                    Some(3) => {
                        common.tick_due = false;
                        backup.tick(env, common);
                    }
                    Some(_) => {
                        common.time_due = false;
                        backup.due(env, common);
                    }
                    None => return,
                }
                if let Some(generation) = backup.goes_live() {
                    return self.go_live(env, generation);
                }
            }
            Role::Joining | Role::Gone => {}
        }
        self.read_on(env);
    }

    fn go_live(&mut self, env: &mut Env, generation: Generation) {
        let Role::Following(backup) = std::mem::replace(&mut self.role, Role::Joining) else {
            return;
        };
        let common = &mut self.common;
        common.conn = None;
        common.link.clear();
        common.generation = generation;
        let (following, boot) = backup.into_machine();
        let (machine, horizon, clock) = following.into_live();
        let made = horizon.outputs_made.0;
        env.checks
            .goes_live(env.now, common.id, generation.0, machine.at(), made, &horizon);
        env.note(common.id, || format!("goes live under generation {}", generation.0));
        env.count("went-live");
        env.reach(Point::GoLive, common.id);
        let beginning = Beginning::WentLive(Box::new(horizon));
        let primary = SimPrimary::new(env, &mut self.common, boot, machine, clock, beginning);
        self.role = Role::Leading(Box::new(primary));
    }

    fn follow(&mut self, env: &mut Env, conn: ConnId, generation: Generation, owner: Incarnation) {
        let common = &mut self.common;
        common.conn = Some((conn, 0));
        common.peer = Some(env.net.conns[conn].ends[1]);
        common.peer_host = env.net.conns[conn].hosts[1];
        common.generation = generation;
        let backup = SimBackup::new(env, common, owner, conn);
        self.role = Role::Following(Box::new(backup));
        self.read(env, conn, 1);
    }

    fn land(&mut self, env: &mut Env, request: ftvm_schema::request::DiskRequest) {
        let Some(write) = env.kernel.remove(&(self.common.id, request.id)) else {
            return; // ended by the fence before it landed
        };
        if write.until.is_some_and(|until| env.now >= until) {
            return;
        }
        if env.disk_lost(self.common.host) {
            return env.at(env.now, self.common.id, What::DiskLost(request));
        }
        let is_read = matches!(request.op, ftvm_schema::request::DiskOp::Read { .. });
        if is_read && !self.is_alive() {
            return;
        }
        env.reach(Point::DiskLanded, self.common.id);
        match env.image.land(&request) {
            Ok((_, data)) => env.at(env.now, self.common.id, What::Done { request, data }),
            // What a loser reads reaches nobody.
            Err(what) if is_read && env.checks.superseded(self.common.id, self.common.generation.0) => {
                env.note(self.common.id, || what);
            }
            Err(what) => {
                let what = format!("process {}: {what}", self.common.id);
                env.checks.fail(env.now, super::checks::DISK, what);
            }
        }
    }

    /// Stops every thread of the process; its sockets, timers and the storage go on.
    pub fn pause(&mut self) {
        self.common.paused = true;
    }

    fn resume(&mut self, env: &mut Env) {
        if !std::mem::take(&mut self.common.paused) {
            return;
        }
        env.note(self.common.id, || "runs again".to_owned());
        for what in std::mem::take(&mut self.deferred) {
            let delay = env.rng.delay(0, 200 * US);
            env.after(delay, self.common.id, what);
        }
        for (conn, end) in self.conns.clone() {
            self.read(env, conn, 1 - end);
        }
    }

    /// The process is gone at once.
    pub fn die(&mut self, env: &mut Env, with_host: bool) {
        self.role = Role::Gone;
        self.common.paused = false;
        for (conn, end) in std::mem::take(&mut self.conns) {
            if with_host {
                env.net.crash(conn, end, &mut env.rng);
            } else {
                env.net.abandon(conn, end);
                env.pump(conn, end);
            }
        }
    }

    fn exit(&mut self, env: &mut Env) {
        if let Role::Leading(primary) = std::mem::replace(&mut self.role, Role::Gone) {
            primary.end(env, &mut self.common);
        }
        self.die(env, false);
    }
}

/// The storage executes a claim, or hangs until its outage is over; its answer may be lost.
fn run_claim(env: &mut Env, process: ProcId, me: Incarnation, generation: u64, owner: u128) {
    if let Some(until) = env.outage() {
        let delay = env.rng.between(0, 5 * MS);
        return env.at(until + delay, process, What::Claim { generation, owner });
    }
    let outcome = env.register.claim(generation, owner, me.0, env.plant);
    if let ClaimOutcome::Won { generation } = outcome {
        env.checks.won(env.now, generation, me.0);
    }
    let lost = !env.quiet && env.rng.permille(200);
    let delay = env.rng.delay(env.terms.storage.0, env.terms.storage.1);
    env.after(delay, process, What::Answer((!lost).then_some(outcome)));
}

/// One of what is ready, as `select!` picks.
fn choose(env: &mut Env, ready: &[bool]) -> Option<usize> {
    let ready: Vec<usize> = (0..ready.len()).filter(|index| ready[*index]).collect();
    (!ready.is_empty()).then(|| ready[env.rng.index(ready.len())])
}
