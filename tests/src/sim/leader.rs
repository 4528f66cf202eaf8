//! The primary's shell, as `run::lead` is: the same cores, driven by simulated time and sockets.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use logging_channel::entry::{Generation, Incarnation, LogEntry, Position};
use logging_channel::message::{MAX_PAGES, Message};
use shared_disk::arbiter::Outcome;
use shared_disk::plan::Gate;
use shared_disk::request::{DiskOp, DiskRequest};
use vmm::backends::{Control, HostEvent};
use vmm::hypervisor::scripted::{ScriptedCpu, ScriptedKick};
use vmm::machine::Machine;
use vmm::machine::pages::{Zeros, copy_pages};
use vmm::output::{Emission, Output};
use vmm::roles::clock::LiveClock;
use vmm::roles::clone::Selection;
use vmm::roles::disks::{DiskEnd, DiskShell, Disks};
use vmm::roles::event::Protection;
use vmm::roles::following::Horizon;
use vmm::roles::live::{Events, Live, LiveConfig, Marks, Next, pause};
use vmm::roles::primary::{Action, Primary};
use vmm::run::vcpu::{FromGuest, GuestStream, PairSink, pair_sink};

use super::checks::NO_FAILURE;
use super::env::{Env, Point, US, What};
use super::plants::Plant;
use super::process::{Common, LinkEvent};

/// Batches that may wait for the link before the vCPU stops; the production queue blocks at 256.
const BATCHES: usize = 200;

/// Longest stretch of simulated time that the vCPU runs in one go: the period of the patience monitor.
const SLICE: u64 = 2_500 * US;

/// Host events with the time of their arrival.
#[derive(Debug, Default)]
pub struct SimEvents(VecDeque<(Instant, HostEvent)>);

impl Events for SimEvents {
    fn try_recv(&mut self) -> Option<HostEvent> {
        self.0.pop_front().map(|(_, event)| event)
    }

    fn oldest_pending(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at)
    }
}

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

/// The vCPU thread of a live machine.
#[derive(Debug)]
pub struct Vcpu {
    live: Live<ScriptedCpu, PairSink, SimEvents>,
    kick: Arc<ScriptedKick>,
    next: Option<Next>,
    /// Events for the thread that are older than its last order are void.
    token: u64,
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
}

/// Pages on their way to a joining backup.
#[derive(Debug)]
struct Sending {
    to: Incarnation,
    pages: Vec<u64>,
    zeros: Zeros,
    sent: u64,
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
        };
        if let Some(horizon) = horizon {
            leader.resume(env, common, horizon);
        }
        env.after(US, common.id, What::Vcpu(0));
        env.after(env.terms.detection / 8, common.id, What::Tick);
        leader
    }

    /// As `run::pair::resume`: requests again, then outputs again.
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
        let _ = self.disks.start_ready(|| vmm::roles::primary::Writes::Freely);
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
        self.listening && self.core.has_room(now) && !self.stream.batches.is_empty()
    }

    // ---- the vCPU thread ----

    /// Something for the vCPU thread to look at.
    pub fn tell(&mut self, env: &mut Env, common: &Common, event: HostEvent) {
        let now = env.instant(env.local(common.host));
        self.vcpu.live.events().0.push_back((now, event));
        if matches!(self.vcpu.next, Some(Next::Wait(_))) {
            self.vcpu.token += 1;
            env.after(US, common.id, What::Vcpu(self.vcpu.token));
        }
    }

    /// The vCPU thread runs for a while.
    pub fn run_vcpu(&mut self, env: &mut Env, common: &mut Common, token: u64) {
        if token != self.vcpu.token || matches!(self.vcpu.next, Some(Next::Ended(_))) {
            return;
        }
        if self.stream.batches.len() >= BATCHES {
            return env.after(US * 500, common.id, What::Vcpu(token));
        }
        let begin = env.local(common.host);
        let time = Cell::new(begin);
        let base = env.base;
        let now = || base + Duration::from_nanos(time.get());
        let result = self.slice(env, &time, &now);
        let next = match result {
            Ok(next) => next,
            Err(error) => return self.expect(env, common, Err(error.to_string())),
        };
        let idle = self.stream.idle.load(Ordering::Relaxed);
        let ran = Duration::from_nanos(time.get() - begin);
        let spent = u64::try_from((ran + pause(ran, idle)).as_nanos()).unwrap_or(u64::MAX);
        match &next {
            Next::Run => env.after(spent.max(US), common.id, What::Vcpu(token)),
            Next::Wait(deadline) => {
                if let Some(deadline) = deadline {
                    let local = u64::try_from((*deadline - base).as_nanos()).unwrap_or(u64::MAX);
                    let at = env.true_time(common.host, local).max(env.now + spent);
                    env.at(at, common.id, What::Vcpu(token));
                }
            }
            Next::Ended(reason) => {
                let finished = self.vcpu.live.finish(reason);
                self.expect(env, common, finished.map_err(|e| e.to_string()));
                self.vcpu.live.sink().ended(Ok(reason.clone()));
            }
        }
        self.vcpu.next = Some(next);
        common.wake(env, spent);
    }

    fn slice(
        &mut self,
        env: &mut Env,
        time: &Cell<u64>,
        now: &dyn Fn() -> Instant,
    ) -> Result<Next, vmm::machine::MachineError> {
        let end = time.get() + env.rng.between(SLICE / 10, SLICE);
        let vcpu = &mut self.vcpu;
        let mut next = match vcpu.next.take() {
            None => vcpu.live.begin(now)?,
            Some(Next::Wait(_)) => vcpu.live.woken(None, now)?,
            Some(next) => next,
        };
        while next == Next::Run && time.get() < end && self.stream.batches.len() < BATCHES {
            let units = if vcpu.live.kick_due(now()) {
                env.rng.between(0, 3)
            } else {
                (end - time.get()) / env.terms.unit + 1
            };
            // A kick takes a moment to arrive, and the guest makes an exit meanwhile or does not.
            vcpu.kick.kick_after(units.max(1));
            let stepped = Cell::new(false);
            let (unit, exit) = (env.terms.unit, env.terms.exit);
            let kick = Arc::clone(&vcpu.kick);
            let began = time.get();
            let after = || {
                if !stepped.replace(true) {
                    let left = kick.left().unwrap_or(0);
                    time.set(began + (units.max(1) - left.min(units.max(1))) * unit + exit);
                }
                now()
            };
            next = vcpu.live.step(&after)?;
            let _ = after();
        }
        Ok(next)
    }

    // ---- the link task ----

    /// The guest has said something.
    pub fn guest_says(&mut self, env: &mut Env, common: &mut Common) {
        let Ok(message) = self.stream.batches.try_recv() else {
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
                    self.core.joined(now, backup, actions);
                    env.reach(Point::Joined, common.id);
                } else {
                    env.net.finish(conn, 1);
                    env.pump(conn, 1);
                }
            }
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
                Action::SaveState => self.tell(env, common, HostEvent::Control(Control::SaveState)),
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

    /// The thread that sends pages: it copies some, waits, copies more; the guest runs on.
    fn send_pages(&mut self, env: &mut Env, common: &Common, to: Incarnation, pages: Selection) {
        let (pages, zeros) = match pages {
            Selection::All => ((0..env.guest.pages()).collect(), Zeros::LeftOut),
            Selection::These(pages) => (pages, Zeros::Taken),
        };
        self.sending = Some(Sending {
            to,
            pages,
            zeros,
            sent: 0,
        });
        env.after(US, common.id, What::SendPages);
    }

    /// It sends some of them.
    pub fn send_some(&mut self, env: &mut Env, common: &mut Common) {
        let Some(sending) = &mut self.sending else { return };
        let some = usize::try_from(env.rng.between(1, MAX_PAGES as u64)).expect("small");
        let rest = sending.pages.split_off(some.min(sending.pages.len()));
        let some = std::mem::replace(&mut sending.pages, rest);
        let copied = copy_pages(self.vcpu.live.machine().memory(), &some, sending.zeros);
        match copied {
            Ok((numbers, content)) if !numbers.is_empty() => {
                sending.sent += numbers.len() as u64;
                common.send(env, self.core.generation(), &Message::Pages { numbers, content });
                env.reach(Point::Send, common.id);
            }
            Ok(_) => {}
            Err(error) => return self.expect(env, common, Err(error.to_string())),
        }
        let Some(sending) = &self.sending else { return };
        if sending.pages.is_empty() {
            let event = LinkEvent::PagesSent(sending.to, sending.sent);
            self.sending = None;
            common.link.push_back(event);
            common.wake(env, 0);
        } else {
            let delay = env.rng.between(US, 500 * US);
            env.after(delay, common.id, What::SendPages);
        }
    }

    fn sending(&mut self, env: &mut Env, common: &Common, message: &Message) {
        match message {
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

    // ---- the way out ----

    fn lease_stands(&self, env: &Env, common: &Common) -> bool {
        let now = env.local(common.host);
        !self.granted || self.echo.is_some_and(|echo| now < echo + env.terms.lease)
    }

    fn next_release(&mut self, env: &mut Env, common: &Common) -> Option<Output> {
        let output = self.core.next_release(env.local(common.host))?;
        let lease = self.lease_stands(env, common);
        let generation = self.core.generation().0;
        env.checks.release_begins(env.now, common.id, generation, lease);
        env.reach(Point::Check, common.id);
        Some(output)
    }

    /// Releases what may leave until a system call takes its time; then what the end of a turn does besides.
    fn go_on(&mut self, env: &mut Env, common: &mut Common) {
        if self.call.is_some() {
            return;
        }
        while let Some(output) = self.resume.pop_front() {
            if matches!(output.emission, Emission::Disk(_)) {
                env.checks.leaves(env.now, common.id, &output);
            } else {
                return self.call(env, common, output);
            }
        }
        let writes = self.core.may_write(env.local(common.host));
        let _ = self.disks.extend_fence(writes);
        self.start_disks(env, common);
        while self.over.is_none()
            && let Some(output) = self.next_release(env, common)
        {
            if env.plant == Some(Plant::ReleasedAtSubmission) {
                self.submit(env, common, output);
            } else if let Emission::Disk(_) = &output.emission {
                self.land(env, common, &output);
            } else {
                return self.call(env, common, output);
            }
        }
        self.end_of_turn(env, common);
    }

    /// Bug 8: the output is on its way, and the log may say that it has left.
    fn submit(&mut self, env: &mut Env, common: &Common, output: Output) {
        self.core.released(output.seq);
        let time = env.rng.between(env.terms.call.0, env.terms.call.1);
        self.late_until = self.late_until.max(env.now + time);
        self.late.push_back(output);
        env.at(self.late_until, common.id, What::CallOver);
    }

    fn call(&mut self, env: &mut Env, common: &Common, output: Output) {
        self.call = Some(output);
        let time = env.rng.delay(env.terms.call.0, env.terms.call.1);
        env.after(time, common.id, What::CallOver);
    }

    /// The system call returns.
    pub fn call_over(&mut self, env: &mut Env, common: &mut Common) {
        if let Some(output) = self.late.pop_front() {
            self.land(env, common, &output);
        } else if let Some(output) = self.call.take() {
            self.land(env, common, &output);
            self.go_on(env, common);
        }
    }

    fn land(&mut self, env: &mut Env, common: &Common, output: &Output) {
        if let Emission::Disk(request) = &output.emission {
            let released = self.disks.release(request);
            self.expect(env, common, released.map_err(|e| e.to_string()));
        }
        env.checks.leaves(env.now, common.id, output);
        self.core.released(output.seq);
        env.reach(Point::Landed, common.id);
    }

    fn end_of_turn(&mut self, env: &mut Env, common: &mut Common) {
        while let Some(end) = self.done.front().copied()
            && (self.core.knows(&end) || env.plant == Some(Plant::WriteBeforeRead) && self.core.covered(end.at))
        {
            self.done.pop_front();
            let acked = self.disks.acked(end.disk, end.id);
            self.expect(env, common, acked.map_err(|e| e.to_string()));
        }
        if self.disks.has_ready() {
            let local = env.local(common.host);
            let core = &self.core;
            let _ = self.disks.start_ready(|| core.may_write(local));
            self.start_disks(env, common);
        }
        if self.over.is_none() {
            let mut actions = Vec::new();
            let writes = self.disks.writes();
            self.core.settled(env.local(common.host), writes, &mut actions);
            self.act(env, common, actions);
        }
        if let Some((code, why)) = &self.over {
            common.end(env, *code, why);
            if *code != vmm::roles::event::EXIT_LOST {
                env.checks.ends(env.now, common.id, self.outputs_made);
            }
        }
        common.wake(env, 0);
    }

    /// What the disk shell has been told becomes events.
    fn start_disks(&mut self, env: &mut Env, common: &Common) {
        let shell = self.disks.shell();
        for request in std::mem::take(&mut shell.started) {
            let started = env.image.started(&request);
            if let Err(what) = started {
                env.checks.fail(env.now, super::checks::SAME_BYTES, what);
            }
            if matches!(request.op, DiskOp::Write { .. }) {
                let lease = self.lease_stands(env, common);
                let generation = self.core.generation().0;
                env.checks.release_begins(env.now, common.id, generation, lease);
            }
            env.reach(Point::DiskStart, common.id);
            let delay = env.rng.delay(US, env.terms.disk.0);
            env.after(delay, common.id, What::Submit(request));
        }
        let armed = self.disks.shell().armed;
        if armed != self.fence_set {
            self.fence_set = armed;
            if let Some(deadline) = armed {
                let at = env.true_time(common.host, deadline);
                env.at(at, common.id, What::Fence(deadline));
            }
            let until = armed.map(|deadline| env.true_time(common.host, deadline));
            for ((process, _), write) in &mut env.kernel {
                if *process == common.id {
                    write.until = until;
                }
            }
        }
    }

    /// When a write that a kernel takes now is fenced.
    #[must_use]
    pub fn fenced_at(&mut self, env: &Env, common: &Common) -> Option<u64> {
        let armed = self.disks.shell().armed?;
        Some(env.true_time(common.host, armed))
    }

    /// A disk thread has finished a request.
    pub fn disk_done(&mut self, env: &mut Env, common: &Common, request: &DiskRequest, data: Vec<u8>) {
        if matches!(request.op, DiskOp::Write { .. }) {
            let _ = self.disks.shell().write_given_up();
            self.start_disks(env, common);
        }
        let event = HostEvent::DiskDone {
            disk: request.disk,
            id: request.id,
            status: logging_channel::entry::DiskStatus::Ok,
            data,
        };
        self.tell(env, common, event);
    }

    /// The lease's end has come with a write in flight.
    pub fn fence_strikes(&mut self, env: &mut Env, common: &Common, deadline: u64) -> bool {
        let strikes = self.disks.shell().armed == Some(deadline) && env.local(common.host) >= deadline;
        let deciding = self.core.protection() == Protection::Deciding;
        if strikes && !common.paused && !deciding && self.lease_stands(env, common) && self.granted {
            let what = format!(
                "process {} is ended by its fence although its lease was renewed",
                common.id
            );
            env.checks.fail(env.now, super::checks::FENCE, what);
        }
        strikes
    }

    /// The backup that would be told of the generation.
    #[must_use]
    pub fn may_join(&self) -> bool {
        self.core.may_join().is_ok() && self.over.is_none()
    }
}
