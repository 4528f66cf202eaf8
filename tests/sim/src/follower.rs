//! The backup's shell, as `run::follow` is: the same cores, driven by simulated time and sockets.

use std::collections::VecDeque;

use ftvm_hypervisor::scripted::ScriptedCpu;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::backup::{Action, Backup};
use ftvm_roles::following::{Following, Progress};
use ftvm_schema::entry::{Generation, Incarnation, LogEntry};
use logging_channel::message::{Ack, Health, Message};

use super::checks::NO_DIVERGENCE;
use super::common::{Common, LinkEvent};
use super::env::{Blow, Env, Point, What};
use super::plants::Plant;

/// To the vCPU thread.
#[derive(Debug)]
enum Order {
    Pages { numbers: Vec<u64>, content: Vec<u8> },
    Load(Vec<u8>),
    Entries(Vec<LogEntry>),
    Drain,
}

/// From the vCPU thread.
#[derive(Debug)]
pub enum Report {
    Progress(Progress),
    Drained,
}

/// A backup at work.
#[derive(Debug)]
pub struct Follower {
    core: Backup,
    owner: Incarnation,
    pub following: Following<ScriptedCpu>,
    orders: VecDeque<Order>,
    executing: bool,
    pub reports: VecDeque<Report>,
    timer: Option<u64>,
    /// The last ack, which two planted bugs embellish.
    acked: Ack,
    pub live: Option<Generation>,
    pub over: bool,
    /// What a reset starts from.
    pub boot: BootCell,
}

impl Follower {
    /// A backup that has passed the handshake.
    #[must_use]
    pub fn new(env: &mut Env, common: &Common, core: Backup, owner: Incarnation) -> Self {
        let boot = BootCell::default();
        let mut machine = env.guest.machine();
        machine.set_boot(boot.clone());
        let now = env.instant(env.local(common.host));
        env.after(env.terms.detection / 8, common.id, What::Tick);
        Follower {
            core,
            owner,
            following: Following::new(machine, now, std::time::Instant::now),
            orders: VecDeque::new(),
            executing: false,
            reports: VecDeque::new(),
            timer: None,
            acked: Ack::default(),
            live: None,
            over: false,
            boot,
        }
    }

    /// Whether it may still go live by itself.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        !self.over && self.acked.frame > 0
    }

    /// The vCPU thread takes its next order.
    pub fn execute(&mut self, env: &mut Env, common: &mut Common) {
        self.executing = false;
        let now = env.instant(env.local(common.host));
        let report = match self.orders.pop_front() {
            Some(Order::Pages { numbers, content }) => Report::Progress(self.following.pages(numbers, content)),
            Some(Order::Load(record)) => Report::Progress(self.following.load(&record)),
            Some(Order::Entries(entries)) => Report::Progress(self.following.execute(entries, now, &mut &env.image)),
            Some(Order::Drain) => Report::Drained,
            None => return,
        };
        // What a side finds on the disk when the other has won the test-and-set and lives on alone reaches nobody.
        let wanted = env.register.generation == common.generation.0 || env.register.owner == common.me.0;
        if let Report::Progress(Progress::Diverged { at, what }) = &report
            && wanted
        {
            let what = format!("process {} diverges at exit {}.{}: {what}", common.id, at.exit.0, at.k);
            env.checks.fail(env.now, NO_DIVERGENCE, what);
        }
        self.reports.push_back(report);
        self.begin(env, common);
        common.wake(env, 0);
    }

    fn order(&mut self, env: &mut Env, common: &Common, order: Order) {
        self.orders.push_back(order);
        self.begin(env, common);
    }

    fn begin(&mut self, env: &mut Env, common: &Common) {
        if !self.executing && !self.orders.is_empty() {
            self.executing = true;
            let time = env.rng.delay(env.terms.execute.0, env.terms.execute.1);
            env.after(time, common.id, What::Execute);
        }
    }

    /// The vCPU thread has said something.
    pub fn report(&mut self, env: &mut Env, common: &mut Common) {
        let mut actions = Vec::new();
        let now = env.local(common.host);
        match self.reports.pop_front() {
            Some(Report::Progress(Progress::Executed(at))) => self.core.executed(now, at, &mut actions),
            Some(Report::Progress(Progress::Diverged { at, what })) => self.core.diverged(at, &what, &mut actions),
            Some(Report::Progress(Progress::Ended(reason))) => self.core.guest_ended(&reason, &mut actions),
            Some(Report::Drained) => self.core.drained(now, &mut actions),
            None => {}
        }
        self.act(env, common, actions);
    }

    /// The link has something.
    pub fn link_event(&mut self, env: &mut Env, common: &mut Common, event: LinkEvent, actions: &mut Vec<Action>) {
        let now = env.local(common.host);
        match event {
            LinkEvent::Message(_, generation, message) => {
                let Some(message) = self.planted(env, common, message) else {
                    return;
                };
                self.core.message(now, generation, message, actions);
            }
            LinkEvent::Closed(_, why) => self.core.closed(now, &why, actions),
            LinkEvent::Claimed(outcome) => {
                env.reach(Point::Won, common.id);
                self.core.claimed(now, &outcome, actions);
            }
            LinkEvent::Joined(..) | LinkEvent::PagesSent(..) | LinkEvent::Operate(_) => {}
        }
    }

    /// What two planted bugs make of a message.
    fn planted(&mut self, env: &mut Env, common: &mut Common, message: Message) -> Option<Message> {
        match (env.plant, message) {
            (Some(Plant::LifeAfterPowerOff), Message::Log { number, mut entries }) => {
                entries.retain(|entry| !matches!(entry, LogEntry::End { .. }));
                Some(Message::Log { number, entries })
            }
            (Some(Plant::LifeAfterPowerOff), Message::Bye) => None,
            (Some(Plant::ClaimAfterBye), Message::Dismiss) if self.core.may_speak() => {
                env.checks.dismissed.insert(common.id);
                common.send(env, self.core.generation(), &Message::Bye);
                None
            }
            (_, Message::Dismiss) => {
                if self.core.may_speak() {
                    env.checks.dismissed.insert(common.id);
                    env.count("dismissals");
                }
                Some(Message::Dismiss)
            }
            (Some(Plant::AckOfPartialCheckpoint), Message::Log { number, entries }) => {
                let opens = matches!(
                    entries.last(),
                    Some(LogEntry::Checkpoint { chunk, .. }) if !logging_channel::chunk::is_last(chunk)
                );
                if opens && self.core.may_speak() {
                    let ack = Ack {
                        frame: number + 1,
                        ..self.acked
                    };
                    common.send(env, self.core.generation(), &Message::Ack(ack));
                    self.tilt(env, common);
                }
                Some(Message::Log { number, entries })
            }
            (_, message) => Some(message),
        }
    }

    /// Bug 1: the first bytes of a frame have come.
    pub fn frame_begins(&mut self, env: &mut Env, common: &mut Common) {
        if self.acked.frame > 0 && self.core.may_speak() {
            let ack = Ack {
                frame: self.acked.frame + 1,
                ..self.acked
            };
            common.send(env, self.core.generation(), &Message::Ack(ack));
            self.tilt(env, common);
        }
    }

    /// Bugs 1 and 2 show only if the primary's host dies before the rest has come: it does, sometimes.
    fn tilt(&self, env: &mut Env, common: &Common) {
        if let Some(peer) = common.peer
            && env.rng.permille(200)
        {
            let delay = env.rng.between(0, 6 * env.net.delay.1);
            env.after(delay, peer, What::Strike(Blow::Crash));
        }
    }

    /// The tick: evidence first, then the verdict, then a heartbeat.
    pub fn tick(&mut self, env: &mut Env, common: &mut Common) {
        let mut actions = Vec::new();
        while let Some(event) = common.link.pop_front() {
            self.link_event(env, common, event, &mut actions);
        }
        self.core.tick(env.local(common.host), &mut actions);
        let health = Health {
            disks: vec![!env.disk_lost(common.host)],
            nics: Vec::new(),
        };
        self.core.health(health, &mut actions);
        if self.core.may_speak() {
            common.heartbeat(env);
        }
        self.act(env, common, actions);
    }

    /// The time for what the core wanted to be woken for has come, perhaps.
    pub fn due(&mut self, env: &mut Env, common: &mut Common) {
        self.timer = None;
        let mut actions = Vec::new();
        self.core.due(env.local(common.host), &mut actions);
        self.act(env, common, actions);
    }

    /// A heartbeat has come.
    pub fn heard(&mut self, env: &mut Env, common: &mut Common, heartbeat: &logging_channel::message::Heartbeat) {
        let mut actions = Vec::new();
        self.core.heartbeat(env.local(common.host), heartbeat, &mut actions);
        self.act(env, common, actions);
    }

    /// Does what the core says.
    pub fn act(&mut self, env: &mut Env, common: &mut Common, actions: Vec<Action>) {
        let generation = self.core.generation();
        for action in actions {
            match action {
                Action::Send(message) => {
                    if let Message::Ack(ack) = &message {
                        self.acked = *ack;
                        env.reach(Point::Ack, common.id);
                    }
                    common.send(env, generation, &message);
                }
                Action::LoadPages { numbers, content } => self.order(env, common, Order::Pages { numbers, content }),
                // The simulated guest's disk is shared.
                Action::LoadBlocks { .. } | Action::FlushBlocks => unreachable!("no private disks"),
                Action::Load(record) => self.order(env, common, Order::Load(record)),
                Action::Deliver(entries) => self.order(env, common, Order::Entries(entries)),
                Action::Drain => self.order(env, common, Order::Drain),
                Action::Claim(of) => common.claim(env, of, self.owner),
                Action::Report(event) => env.note(common.id, || format!("{event:?}")),
                Action::GoLive { generation, .. } => self.live = Some(generation),
                Action::KeepBoot(record) => {
                    let _ = self.boot.set(record);
                }
                Action::End { code, why } => {
                    self.over = true;
                    common.end(env, code, &why);
                }
            }
        }
        if let Some(at) = self.core.wakes_at()
            && self.timer != Some(at)
        {
            self.timer = Some(at);
            let at = env.true_time(common.host, at);
            env.at(at, common.id, What::Due);
        }
        common.wake(env, 0);
    }
}
