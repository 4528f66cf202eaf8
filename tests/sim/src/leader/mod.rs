//! The primary's shell, as `run::lead` is: the same cores, driven by simulated time and sockets.

mod operating;
mod out;
mod pages;
mod vcpu;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ftvm_hypervisor::scripted::ScriptedCpu;
use ftvm_machine::machine::Machine;
use ftvm_machine::output::{Emission, Output};
use ftvm_roles::clock::LiveClock;
use ftvm_roles::disks::{DiskEnd, DiskShell, Disks};
use ftvm_roles::event::Protection;
use ftvm_roles::following::Horizon;
use ftvm_roles::host_event::Control;
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::host_event::StopKind;
use ftvm_roles::live::{Live, LiveConfig, Marks};
use ftvm_roles::primary::{Action, Primary};
use ftvm_schema::entry::{Generation, LogEntry, Position};
use ftvm_schema::request::DiskRequest;
use logging_channel::message::Message;
use shared_disk::arbiter::Outcome;
use shared_disk::plan::Gate;
use vmm::run::vcpu::{FromGuest, GuestStream, pair_sink};

use super::checks::NO_FAILURE;
use super::common::{Common, LinkEvent};
use super::env::{Blow, Env, Point, US, What};
use super::plants::Plant;
use pages::Sending;
use vcpu::{SimEvents, Vcpu};

/// Disk threads and the fence.
#[derive(Debug, Default)]
pub struct SimDisks {
    pub writes: usize,
    pub armed: Option<u64>,
    started: Vec<DiskRequest>,
}

impl DiskShell for SimDisks {
    type Error = Infallible;

    fn write_begins(&mut self) {
        self.writes += 1;
    }

    fn writes(&self) -> usize {
        self.writes
    }

    fn write_given_up(&mut self) -> Result<(), Infallible> {
        self.writes = self.writes.saturating_sub(1);
        if self.writes == 0 {
            self.armed = None;
        }
        Ok(())
    }

    fn arm(&mut self, deadline_ns: u64) -> Result<(), Infallible> {
        if self.writes > 0 {
            self.armed = Some(deadline_ns);
        }
        Ok(())
    }

    fn disarm(&mut self) -> Result<(), Infallible> {
        self.armed = None;
        Ok(())
    }

    fn start(&mut self, request: DiskRequest) -> Result<(), Infallible> {
        self.started.push(request);
        Ok(())
    }
}

/// A primary at work.
#[derive(Debug)]
pub struct Leader {
    pub core: Primary,
    pub vcpu: Vcpu,
    stream: GuestStream,
    pub disks: Disks<SimDisks>,
    done: VecDeque<DiskEnd>,
    protection: Protection,
    listening: bool,
    /// The output whose system call is under way.
    call: Option<Output>,
    /// Outputs that bug 8 has counted as released and that are still on their way.
    late: VecDeque<Output>,
    late_until: u64,
    /// Outputs of the old life, to be emitted before anything else.
    resume: VecDeque<Output>,
    pub over: Option<(u8, String)>,
    /// Up to where the true lease reaches, and whether there is one to keep.
    echo: Option<u64>,
    granted: bool,
    newest_sent: u64,
    outputs_made: u64,
    fence_set: Option<u64>,
    sending: Option<Sending>,
    pub(super) tickets: u64,
    pub(super) withheld: Vec<HostEvent>,
    handed_over: bool,
}

impl Leader {
    /// A guest that is started, or goes live at a horizon.
    #[must_use]
    pub fn new(
        env: &mut Env,
        common: &mut Common,
        core: Primary,
        machine: Machine<ScriptedCpu>,
        clock: LiveClock,
        horizon: Option<Horizon>,
    ) -> Self {
        let (sink, stream) = pair_sink(env.terms.disk_reads);
        let config = LiveConfig {
            patience: Duration::from_nanos(env.terms.patience),
            marks: Marks::EveryFlush,
            checks: false,
            max_exits: None,
        };
        let kick = machine.cpu().scripted_kick();
        let outputs_made = machine.outputs().0;
        let now = env.instant(env.local(common.host));
        let live = Live::new(machine, sink, SimEvents::default(), clock, config, now);
        let mut leader = Leader {
            protection: core.protection(),
            core,
            vcpu: Vcpu {
                live,
                kick,
                next: None,
                token: 0,
            },
            stream,
            disks: Disks::new(SimDisks::default(), 1),
            done: VecDeque::new(),
            listening: true,
            call: None,
            late: VecDeque::new(),
            late_until: 0,
            resume: VecDeque::new(),
            over: None,
            echo: None,
            granted: false,
            newest_sent: 0,
            outputs_made,
            fence_set: None,
            sending: None,
            tickets: 0,
            withheld: Vec::new(),
            handed_over: false,
        };
        if let Some(horizon) = horizon {
            leader.resume(env, common, horizon);
        }
        env.after(US, common.id, What::Vcpu(0));
        env.after(env.terms.detection / 8, common.id, What::Tick);
        leader
    }

    /// As `run::protect::resume`: requests again, then outputs again.
    fn resume(&mut self, env: &mut Env, common: &mut Common, horizon: Horizon) {
        for request in horizon.requests {
            let unordered = env.plant == Some(Plant::ReissueWithoutOrder);
            let accepted = self.disks.accept(&request, Gate::Open);
            self.expect(env, common, accepted.map_err(|e| e.to_string()));
            if unordered {
                self.disks.shell().write_begins();
                self.disks.shell().started.push(request);
            }
        }
        let _ = self.disks.start_ready(|| ftvm_roles::primary::Writes::Freely);
        self.start_disks(env, common);
        self.resume = horizon.outputs.into();
        env.reach(Point::Resume, common.id);
        self.go_on(env, common);
    }

    fn expect(&mut self, env: &mut Env, common: &Common, result: Result<(), String>) {
        if let Err(error) = result {
            env.checks
                .fail(env.now, NO_FAILURE, format!("process {}: {error}", common.id));
        }
    }

    /// Whether the link task waits for a system call.
    #[must_use]
    pub fn is_in_call(&self) -> bool {
        self.call.is_some() || !self.resume.is_empty()
    }

    /// Whether the vCPU thread has said something that is listened to.
    #[must_use]
    pub fn has_batches(&self, now: u64) -> bool {
        self.listening && self.core.has_room(now) && self.stream.waiting() > 0
    }

    /// The guest has said something.
    pub fn guest_says(&mut self, env: &mut Env, common: &mut Common) {
        let Some(message) = self.stream.try_next() else {
            return;
        };
        let mut actions = Vec::new();
        let now = env.local(common.host);
        match message {
            FromGuest::Batch { entries, outputs, done } => {
                self.core.log(now, entries, &mut actions);
                for mut output in outputs {
                    if let Emission::Disk(request) = &output.emission {
                        let accepted = self.disks.accept(request, Gate::Held);
                        self.expect(env, common, accepted.map_err(|e| e.to_string()));
                    }
                    if output.emission.is_output() {
                        self.outputs_made = output.seq.0 + 1;
                        if self.handed_over && env.plant == Some(Plant::ReleaseAfterHandover) {
                            let generation = self.core.generation().0;
                            env.checks.release_begins(env.now, common.id, generation, true);
                            env.checks.leaves(env.now, common.id, &output);
                            continue;
                        }
                        if env.plant == Some(Plant::ReleaseWithoutMark) {
                            output.at = Position::default();
                        }
                        self.core.hold(output);
                    }
                }
                for end in done {
                    let finished = self.disks.finished(end.disk, end.id);
                    self.expect(env, common, finished.map_err(|e| e.to_string()));
                    self.done.push_back(end);
                }
            }
            FromGuest::Dirty(pages) => self.core.dirty(now, pages, &mut actions),
            FromGuest::State { record, mark, .. } => {
                while let Some(output) = self.next_release(env, common) {
                    self.land(env, common, &output);
                }
                self.core.state_saved(now, &record, mark, 0, &mut actions);
            }
            FromGuest::Obeyed(order) => self.core.obeyed(order, &mut actions),
            FromGuest::Ended(Ok(reason)) => {
                self.listening = false;
                env.note(common.id, || format!("the guest has ended: {reason:?}"));
                self.core.guest_ended(now, reason, &mut actions);
            }
            FromGuest::Ended(Err(why)) => self.expect(env, common, Err(why)),
        }
        self.finish_turn(env, common, actions);
    }

    /// The link has something.
    pub fn link_event(&mut self, env: &mut Env, common: &mut Common, event: LinkEvent, actions: &mut Vec<Action>) {
        let now = env.local(common.host);
        match event {
            LinkEvent::Message(conn, generation, message) if common.is_mine(conn) => {
                self.message(env, now, generation, message, actions);
                self.see_end();
            }
            LinkEvent::Closed(conn, why) if common.is_mine(conn) => {
                common.conn = None;
                self.core.closed(now, &why, actions);
                self.see_end();
            }
            LinkEvent::Message(..) | LinkEvent::Closed(..) => {}
            LinkEvent::Joined(conn, backup, peer) => {
                if self.core.may_join().is_ok() {
                    env.note(common.id, || format!("process {peer} joins"));
                    common.conn = Some((conn, 1));
                    common.peer = Some(peer);
                    common.peer_host = env.net.conns[conn].hosts[0];
                    self.core.joined(now, backup, actions);
                    env.reach(Point::Joined, common.id);
                } else {
                    env.net.finish(conn, 1);
                    env.pump(conn, 1);
                }
            }
            LinkEvent::Operate(operation) => self.operate(env, common, operation, actions),
            LinkEvent::PagesSent(to, pages) => self.core.pages_sent(env.local(common.host), to, pages, 0, actions),
            LinkEvent::Claimed(outcome) => self.claimed(env, common, &outcome, actions),
        }
    }

    fn message(
        &mut self,
        env: &mut Env,
        now: u64,
        generation: Generation,
        mut message: Message,
        actions: &mut Vec<Action>,
    ) {
        if let Message::Ack(ack) = &mut message {
            if self.granted && ack.frame > 0 {
                self.echo = self.echo.max(Some(ack.echo_ns));
            }
            if env.plant == Some(Plant::LeaseFromReceipt) && ack.frame > 0 {
                ack.echo_ns = self.newest_sent;
            }
        }
        self.core.message(now, generation, message, actions);
    }

    /// A backup that holds the guest's end never goes live: there is no lease to keep any more.
    fn see_end(&mut self) {
        if self.core.guest_end().is_some() && self.core.protection() == Protection::NotProtected {
            self.granted = false;
        }
    }

    fn claimed(&mut self, env: &mut Env, common: &mut Common, outcome: &Outcome, actions: &mut Vec<Action>) {
        let now = env.local(common.host);
        if matches!(outcome, Outcome::Won { .. }) {
            self.granted = false;
            env.reach(Point::Won, common.id);
        }
        self.settle_claim(env, common, now, outcome, actions);
    }

    /// The core hears that it won or lost.
    fn settle_claim(&mut self, env: &mut Env, common: &Common, now: u64, outcome: &Outcome, actions: &mut Vec<Action>) {
        self.core.claimed(now, outcome, actions);
        env.checks.moves_on(common.id, self.core.generation().0);
        if self.core.covered(Position::default()) {
            self.disks.release_all();
        }
    }

    /// A heartbeat has come; what bug 6 makes of it.
    pub fn heard(&mut self, env: &mut Env, common: &mut Common, heartbeat: &logging_channel::message::Heartbeat) {
        let mut actions = Vec::new();
        let now = env.local(common.host);
        self.core.heartbeat(now, heartbeat, &mut actions);
        if env.plant == Some(Plant::Unsuspecting)
            && self.core.protection() == Protection::Deciding
            && heartbeat.generation == self.core.generation()
        {
            let generation = self.core.generation().0;
            self.settle_claim(env, common, now, &Outcome::Won { generation }, &mut actions);
        }
        self.finish_turn(env, common, actions);
    }

    /// The tick: evidence first, then the verdict, then a heartbeat.
    pub fn tick(&mut self, env: &mut Env, common: &mut Common) {
        let mut actions = Vec::new();
        while let Some(event) = common.link.pop_front() {
            self.link_event(env, common, event, &mut actions);
        }
        let now = env.local(common.host);
        self.core.tick(now, &mut actions);
        common.generation = self.core.generation();
        if let Some(sent) = common.heartbeat(env) {
            self.newest_sent = self.newest_sent.max(sent);
            self.core.heartbeat_sent(sent);
        }
        self.finish_turn(env, common, actions);
    }

    /// Does what the core says, then lets out what may leave: the end of every turn of the link task.
    pub fn finish_turn(&mut self, env: &mut Env, common: &mut Common, actions: Vec<Action>) {
        self.act(env, common, actions);
        self.go_on(env, common);
    }

    fn act(&mut self, env: &mut Env, common: &mut Common, actions: Vec<Action>) {
        let starting = self.protection == Protection::Starting;
        for action in actions {
            match action {
                Action::Send(message) => {
                    self.sending(env, common, &message);
                    common.send(env, self.core.generation(), &message);
                    env.reach(Point::Send, common.id);
                }
                Action::Close => common.close(env),
                Action::TakeDirty => self.tell(env, common, HostEvent::Control(Control::TakeDirty)),
                Action::SendPages { to, pages } => self.send_pages(env, common, to, pages),
                // The simulated guest's disk is shared.
                Action::SendBlocks { .. } => unreachable!("no private disks"),
                Action::SaveState => self.tell(env, common, HostEvent::Control(Control::SaveState)),
                Action::Order(Control::Stand) if env.plant == Some(Plant::ReleaseAfterHandover) => {
                    self.core.obeyed(Control::Stand, &mut Vec::new());
                }
                Action::Order(order) => self.tell(env, common, HostEvent::Control(order)),
                Action::PowerOff => self.tell(env, common, HostEvent::Stop(StopKind::Operator)),
                Action::TellFailures => {
                    for failure in std::mem::take(&mut self.withheld) {
                        self.tell_failure(env, common, failure);
                    }
                }
                Action::Answer { answer, .. } => self.answered(env, common, &answer),
                Action::Die => env.after(0, common.id, What::Strike(Blow::Kill)),
                Action::Pace(idle) => self.stream.idle.store(idle, Ordering::Relaxed),
                Action::StopLogging => self.stream.logging.store(false, Ordering::Release),
                Action::Claim(generation) if env.plant == Some(Plant::LeavingWithoutClaim) && starting => {
                    let now = env.local(common.host);
                    let mut more = Vec::new();
                    let won = Outcome::Won {
                        generation: generation.0,
                    };
                    self.settle_claim(env, common, now, &won, &mut more);
                }
                Action::Claim(generation) => common.claim(env, generation, common.me),
                Action::Report(event) => env.note(common.id, || format!("{event:?}")),
                Action::End { code, why } => self.over = Some((code, why)),
            }
        }
        self.protection = self.core.protection();
    }

    fn sending(&mut self, env: &mut Env, common: &Common, message: &Message) {
        match message {
            Message::Handover => {
                self.handed_over = true;
                let own = env.checks.withheld.iter().filter(|(process, _)| *process == common.id);
                env.checks.to_be_tried = own.map(|(_, id)| *id).collect();
                env.count("handovers");
                env.reach(Point::Handover, common.id);
            }
            Message::Dismiss => env.reach(Point::Handover, common.id),
            Message::Grant(_) => {
                self.granted = true;
                self.echo = None;
                env.reach(Point::Grant, common.id);
            }
            Message::Log { entries, .. } => {
                for entry in entries {
                    match entry {
                        LogEntry::Mark(mark) => self.newest_sent = self.newest_sent.max(mark.sent_ns),
                        LogEntry::End { .. } => env.reach(Point::End, common.id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// The backup that would be told of the generation.
    #[must_use]
    pub fn may_join(&self) -> bool {
        self.core.may_join().is_ok() && self.over.is_none()
    }
}
