//! A simulated primary: the link of production over a simulated world, with the guest's thread, disks and a thread that sends
//! pages beside it.

mod disks;
mod pages;
mod side;
mod vcpu;
mod world;

use std::time::Duration;

use ftvm_hypervisor::scripted::ScriptedCpu;
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::clock::LiveClock;
use ftvm_roles::event::Protection;
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::link::begin::Beginning;
use ftvm_roles::link::guest::{PairSink, Reins};
use ftvm_roles::link::primary::{PrimaryEvent, PrimaryLink};
use ftvm_roles::link::world::LinkEvent;
use ftvm_roles::live::{Live, LiveConfig, MarkPolicy};
use ftvm_roles::operation::Operation;
use ftvm_roles::primary::Primary;
use ftvm_roles::terms::Terms;
use ftvm_schema::entry::{DiskStatus, Generation};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::Heartbeat;
use shared_disk::arbiter::ClaimOutcome;

use super::checks::LEASE_GUARD;
use super::common::Common;
use super::env::{Env, Point, US, What};
use super::plants::Plant;
use disks::SimDisks;
use side::Side;
use vcpu::{Said, SimEvents, Vcpu};
use world::{SimError, SimWorld};

/// A primary at work.
#[derive(Debug)]
pub struct SimPrimary {
    link: PrimaryLink<SimDisks>,
    side: Side,
}

impl SimPrimary {
    /// A guest that is started, or goes live at a horizon.
    #[must_use]
    pub fn new(
        env: &mut Env,
        common: &mut Common,
        boot: BootCell,
        machine: Machine<ScriptedCpu>,
        clock: LiveClock,
        beginning: Beginning,
    ) -> Self {
        let terms = Terms {
            generation: common.generation,
            ..env.terms.pair(common.me)
        };
        let (said, reins) = (Said::default(), Reins::default());
        let sink = PairSink::new(said.clone(), reins.clone(), terms.disk_reads);
        let config = LiveConfig {
            patience: Duration::from_nanos(terms.patience_ns),
            marks: MarkPolicy::EveryFlush,
            checks: false,
            max_exits: None,
        };
        let kick = machine.cpu().scripted_kick();
        let outputs_made = machine.outputs().0;
        let now = env.instant(env.local(common.host));
        let vcpu = Vcpu {
            live: Live::new(machine, sink, SimEvents::default(), clock, config, now),
            kick,
            next: None,
            token: 0,
            said,
            reins,
        };
        let mut side = Side::new(vcpu, outputs_made);
        if let (Beginning::WentLive(horizon), Some(Plant::ReissueWithoutOrder)) = (&beginning, env.plant) {
            side.unordered = horizon.requests.clone();
        }
        let mut world = SimWorld {
            env,
            common,
            side: &mut side,
        };
        let link = PrimaryLink::begin(terms, boot, beginning, &mut world).expect("simulated disks open");
        env.after(US, common.id, What::Vcpu(0));
        env.after(env.terms.detection / 8, common.id, What::Tick);
        SimPrimary { link, side }
    }

    /// The decisions behind its link.
    #[must_use]
    pub fn core(&self) -> &Primary {
        self.link.core()
    }

    /// Whether a backup may join.
    #[must_use]
    pub fn may_join(&self) -> bool {
        self.side.may_join && self.link.over().is_none()
    }

    /// Whether the link task waits for its disks or for a system call.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.link.is_busy()
    }

    /// Whether the vCPU thread has said something that is listened to.
    pub fn has_batches(&mut self, env: &mut Env, common: &mut Common) -> bool {
        let side = &mut self.side;
        side.vcpu.said.waiting() > 0 && self.link.takes_more(&SimWorld { env, common, side })
    }

    /// The link does something, and what comes of it happens.
    fn with_link(
        &mut self,
        env: &mut Env,
        common: &mut Common,
        does: impl FnOnce(&mut PrimaryLink<SimDisks>, &mut SimWorld<'_>) -> Result<(), SimError>,
    ) {
        self.side.see_end(self.link.core());
        let mut world = SimWorld {
            env: &mut *env,
            common: &mut *common,
            side: &mut self.side,
        };
        let done = does(&mut self.link, &mut world);
        self.side.expect(env, common, done);
        self.side.begin_io(env, common, self.link.hands());
        if let Some((code, why)) = self.link.over()
            && common.ending.is_none()
        {
            common.end(env, code, why);
            if self.link.ends_cleanly() {
                env.checks.ends(env.now, common.id, self.side.outputs_made);
            }
        }
        common.wake(env, 0);
    }

    fn step(&mut self, env: &mut Env, common: &mut Common, event: PrimaryEvent) {
        self.with_link(env, common, |link, world| link.step(event, world));
    }

    /// The devices refuse every other host's writes.
    pub fn disks_reserved(&mut self, env: &mut Env, common: &mut Common) {
        env.reach(Point::Resume, common.id);
        self.side.disks_reserved = true;
        self.with_link(env, common, |link, world| link.disks_reserved(world));
        for request in std::mem::take(&mut self.side.unordered) {
            self.link.hands().start_unordered(request);
        }
        self.side.begin_io(env, common, self.link.hands());
    }

    /// The link has something: `burst` events of it at most are taken in one turn.
    pub fn link_event(&mut self, env: &mut Env, common: &mut Common, burst: u64) {
        let mut world = SimWorld {
            env: &mut *env,
            common: &mut *common,
            side: &mut self.side,
        };
        world.common.burst = burst;
        if let Some(event) = world.next_planted() {
            self.step(env, common, PrimaryEvent::Link(event));
        }
    }

    /// The guest has said something.
    pub fn guest_says(&mut self, env: &mut Env, common: &mut Common) {
        if let Some(message) = self.side.next_said(env, common, self.link.core()) {
            self.step(env, common, PrimaryEvent::Guest(message));
        }
    }

    /// A heartbeat has come; what one planted bug makes of it.
    pub fn heard(&mut self, env: &mut Env, common: &mut Common, heartbeat: Heartbeat) {
        let Generation(theirs) = heartbeat.generation;
        self.step(env, common, PrimaryEvent::Heartbeat(heartbeat));
        let generation = self.core().generation().0;
        if env.plant == Some(Plant::Unsuspecting)
            && self.core().protection() == Protection::Deciding
            && theirs == generation
        {
            let won = LinkEvent::Claimed(ClaimOutcome::Won { generation });
            self.step(env, common, PrimaryEvent::Link(won));
        }
    }

    /// Time passes.
    pub fn tick(&mut self, env: &mut Env, common: &mut Common) {
        common.burst = u64::MAX;
        self.step(env, common, PrimaryEvent::Tick);
    }

    /// An operator asks for something.
    pub fn operate(&mut self, env: &mut Env, common: &mut Common, operation: Operation) {
        env.note(common.id, || format!("is asked for {}", operation.name()));
        self.side.tickets += 1;
        let ticket = self.side.tickets;
        self.step(env, common, PrimaryEvent::Operate { ticket, operation });
        env.reach(Point::Operate, common.id);
    }

    /// The system call of an output returns.
    pub fn call_over(&mut self, env: &mut Env, common: &mut Common) {
        if let Some(output) = self.side.late.pop_front() {
            self.side.lands(env, common, &output);
        } else if let Some(output) = self.side.call.take() {
            self.side.lands(env, common, &output);
            self.with_link(env, common, |link, world| link.call_over(world));
        }
    }

    /// A disk thread has finished a request.
    pub fn disk_done(&mut self, env: &mut Env, common: &mut Common, request: &DiskRequest, data: Vec<u8>) {
        self.link.hands().over(request);
        self.side.begin_io(env, common, self.link.hands());
        let event = HostEvent::DiskDone {
            disk: request.disk,
            id: request.id,
            status: DiskStatus::Ok,
            data,
        };
        self.side.vcpu.tell(env, common, event);
    }

    /// A request ends with an error, as this host does not reach the disk.
    pub fn disk_lost(&mut self, env: &mut Env, common: &mut Common, request: &DiskRequest) {
        self.link.hands().over(request);
        self.side.begin_io(env, common, self.link.hands());
        let failure = HostEvent::DiskDone {
            disk: request.disk,
            id: request.id,
            status: DiskStatus::IoError,
            data: Vec::new(),
        };
        self.side.failing = Some(request.id);
        let what = "lost".to_owned();
        let event = PrimaryEvent::DiskLost {
            disk: request.disk,
            what,
            failure: failure.clone(),
        };
        self.step(env, common, event);
        if self.side.failing.take().is_some() {
            env.count("withheld");
            env.checks.withheld.insert((common.id, request.id));
            if env.plant == Some(Plant::FailureTold) {
                self.side.told_early.insert(request.id);
                self.side.vcpu.tell(env, common, failure);
            }
        }
    }

    /// Something for the vCPU thread to look at.
    pub fn tell(&mut self, env: &mut Env, common: &Common, event: HostEvent) {
        self.side.vcpu.tell(env, common, event);
    }

    /// When a write that a kernel takes now is ended by the lease's timer.
    #[must_use]
    pub fn guarded_until(&mut self, env: &Env, common: &Common) -> Option<u64> {
        let armed = self.link.hands().armed?;
        Some(env.true_time(common.host, armed))
    }

    /// The lease's end has come, perhaps with a write in flight.
    pub fn guard_strikes(&mut self, env: &mut Env, common: &Common, deadline: u64) -> bool {
        let strikes = self.link.hands().armed == Some(deadline) && env.local(common.host) >= deadline;
        let deciding = self.core().protection() == Protection::Deciding;
        if strikes && !common.paused && !deciding && self.side.granted && self.side.lease_stands(env, common) {
            let what = format!(
                "process {} is ended by its fence although its lease was renewed",
                common.id
            );
            env.checks.fail(env.now, LEASE_GUARD, what);
        }
        strikes
    }

    /// The process ends in its own time.
    pub fn end(self, env: &mut Env, common: &mut Common) {
        let SimPrimary { link, mut side } = self;
        let mut world = SimWorld {
            env,
            common,
            side: &mut side,
        };
        let _ = link.end(&mut world);
    }
}
