//! A simulated backup: the link of production over a simulated world, with the vCPU thread beside it. Planted bugs are changes
//! to what passes between them.

use std::collections::VecDeque;

use ftvm_hypervisor::scripted::ScriptedCpu;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::backup::Backup;
use ftvm_roles::event::Event;
use ftvm_roles::following::{FollowOrder, FollowReport, Following, Progress};
use ftvm_roles::link::backup::{BackupEvent, BackupLink, Followed};
use ftvm_roles::link::world::{BackupWorld, ConnectionId, LinkEvent, World};
use ftvm_roles::terms::Terms;
use ftvm_schema::entry::{Generation, Incarnation, LogEntry};
use logging_channel::codec::data_bytes;
use logging_channel::message::{Ack, Health, Heartbeat, Message};

use super::checks::{NO_DIVERGENCE, NO_FAILURE, TAKEN_IN};
use super::common::{Common, connection_id};
use super::env::{Blow, Env, Point, What};
use super::network::ConnId;
use super::plants::Plant;

/// A backup at work.
#[derive(Debug)]
pub struct SimBackup {
    link: BackupLink,
    side: Side,
}

/// What it has beside its link.
#[derive(Debug)]
struct Side {
    following: Following<ScriptedCpu>,
    orders: VecDeque<FollowOrder>,
    executing: bool,
    reports: VecDeque<FollowReport>,
    /// Bytes of log and pages ordered, the oldest first, until the link has heard that they are executed.
    unexecuted: VecDeque<usize>,
    timer: Option<u64>,
    /// The last ack, which two planted bugs embellish.
    acked: Ack,
    /// Whether the link may still speak for its generation.
    speaks: bool,
    /// Whether the primary has dismissed it.
    asked_to_leave: bool,
    /// What a reset starts from.
    boot: BootCell,
}

/// What a step of the link sees.
struct SimWorld<'a> {
    env: &'a mut Env,
    common: &'a mut Common,
    side: &'a mut Side,
}

impl SimBackup {
    /// A backup that has passed the handshake.
    #[must_use]
    pub fn new(env: &mut Env, common: &mut Common, owner: Incarnation, conn: ConnId) -> Self {
        let boot = BootCell::default();
        let mut machine = env.guest.machine();
        machine.set_boot(boot.clone());
        let now = env.instant(env.local(common.host));
        env.after(env.terms.detection / 8, common.id, What::Tick);
        let mut side = Side {
            following: Following::new(machine, now, std::time::Instant::now),
            orders: VecDeque::new(),
            executing: false,
            reports: VecDeque::new(),
            unexecuted: VecDeque::new(),
            timer: None,
            acked: Ack::default(),
            speaks: true,
            asked_to_leave: false,
            boot,
        };
        let terms = Terms {
            generation: common.generation,
            ..env.terms.pair(common.me)
        };
        let bound = env.terms.unexecuted;
        let mut world = SimWorld {
            env,
            common,
            side: &mut side,
        };
        let link = BackupLink::begin(terms, owner, connection_id(conn), &mut world).with_bound(bound);
        SimBackup { link, side }
    }

    /// Whether it may still go live by itself.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        !matches!(self.link.over(), Some(Followed::Ended { .. })) && self.side.acked.frame > 0
    }

    /// Whether events of the link are taken.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.link.takes_more()
    }

    /// Whether the vCPU thread has said something.
    #[must_use]
    pub fn has_reports(&self) -> bool {
        !self.side.reports.is_empty()
    }

    /// The generation under which this side is to go live, once it is.
    #[must_use]
    pub fn goes_live(&self) -> Option<Generation> {
        match self.link.over() {
            Some(Followed::GoLive { generation, .. }) => Some(*generation),
            _ => None,
        }
    }

    /// The machine, to live on with, and what a reset starts from.
    #[must_use]
    pub fn into_machine(self) -> (Following<ScriptedCpu>, BootCell) {
        (self.side.following, self.side.boot)
    }

    /// The link does something, and what comes of it happens.
    fn step(&mut self, env: &mut Env, common: &mut Common, event: BackupEvent) {
        let mut world = SimWorld {
            env: &mut *env,
            common: &mut *common,
            side: &mut self.side,
        };
        self.link.step(event, &mut world);
        self.side.speaks = self.link.core().may_speak();
        if let Some(Followed::Ended { code, why, .. }) = self.link.over() {
            common.end(env, *code, why);
        }
        if let Some(at) = self.link.wakes_at()
            && self.side.timer != Some(at)
        {
            self.side.timer = Some(at);
            let at = env.true_time(common.host, at);
            env.at(at, common.id, What::Due);
        }
        let idle = !self.side.executing && self.side.orders.is_empty() && self.side.reports.is_empty();
        if idle && !self.link.takes_more() {
            let what = format!("process {} takes nothing in, and has nothing to execute", common.id);
            env.checks.fail(env.now, TAKEN_IN, what);
        }
        common.wake(env, 0);
    }

    /// The vCPU thread takes its next order.
    pub fn execute(&mut self, env: &mut Env, common: &mut Common) {
        let side = &mut self.side;
        side.executing = false;
        let now = env.instant(env.local(common.host));
        let Some(order) = side.orders.pop_front() else { return };
        let report = side.following.obey(order, now, &mut &env.image);
        // What a side finds on the disk when the other has won the test-and-set and lives on alone reaches nobody.
        let wanted = env.register.generation == common.generation.0 || env.register.owner == common.me.0;
        if let FollowReport::Progress(Progress::Diverged { at, what }) = &report
            && wanted
        {
            let what = format!("process {} diverges at exit {}.{}: {what}", common.id, at.exit.0, at.k);
            env.checks.fail(env.now, NO_DIVERGENCE, what);
        }
        side.reports.push_back(report);
        side.begin(env, common);
        common.wake(env, 0);
    }

    /// The vCPU thread has said something.
    pub fn report(&mut self, env: &mut Env, common: &mut Common) {
        if let Some(report) = self.side.reports.pop_front() {
            self.side.unexecuted.pop_front();
            self.step(env, common, BackupEvent::Followed(report));
        }
    }

    /// The link has something: `burst` events of it at most are taken in one turn.
    pub fn link_event(&mut self, env: &mut Env, common: &mut Common, burst: u64) {
        common.burst = burst;
        let mut world = SimWorld {
            env: &mut *env,
            common: &mut *common,
            side: &mut self.side,
        };
        if let Some(event) = world.next_event() {
            self.step(env, common, BackupEvent::Link(event));
        }
    }

    /// A planted bug: the first bytes of a frame have come.
    pub fn frame_begins(&mut self, env: &mut Env, common: &mut Common) {
        let side = &self.side;
        if side.acked.frame > 0 && side.speaks {
            let ack = Ack {
                frame: side.acked.frame + 1,
                ..side.acked
            };
            common.send(env, self.link.core().generation(), &Message::Ack(ack));
            tilt(env, common);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, env: &mut Env, common: &mut Common) {
        common.burst = u64::MAX;
        self.step(env, common, BackupEvent::Tick);
    }

    /// The time for what the link wanted to be woken for has come, perhaps.
    pub fn due(&mut self, env: &mut Env, common: &mut Common) {
        self.side.timer = None;
        self.step(env, common, BackupEvent::Due);
    }

    /// A heartbeat has come.
    pub fn heard(&mut self, env: &mut Env, common: &mut Common, heartbeat: Heartbeat) {
        self.step(env, common, BackupEvent::Heartbeat(heartbeat));
    }
}

/// Acks that come too early show only if the primary's host dies before the rest has come: it does, sometimes.
fn tilt(env: &mut Env, common: &Common) {
    if let Some(peer) = common.peer
        && env.rng.permille(200)
    {
        let delay = env.rng.between(0, 6 * env.net.delay.1);
        env.after(delay, peer, What::Strike(Blow::Crash));
    }
}

impl Side {
    fn begin(&mut self, env: &mut Env, common: &Common) {
        if !self.executing && !self.orders.is_empty() {
            self.executing = true;
            let time = env.rng.delay(env.terms.execute.0, env.terms.execute.1);
            env.after(time, common.id, What::Execute);
        }
    }
}

impl SimWorld<'_> {
    /// What planted bugs make of a message, if anything is left of it.
    fn planted(&mut self, generation: Generation, message: Message) -> Option<Message> {
        let SimWorld { env, common, side } = self;
        match (env.plant, message) {
            (Some(Plant::LifeAfterPowerOff), Message::Log { number, mut entries }) => {
                entries.retain(|entry| !matches!(entry, LogEntry::End { .. }));
                Some(Message::Log { number, entries })
            }
            (Some(Plant::LifeAfterPowerOff), Message::Bye) => None,
            (Some(Plant::ClaimAfterBye), Message::Dismiss) if side.speaks => {
                env.checks.dismissed.insert(common.id);
                common.send(env, generation, &Message::Bye);
                None
            }
            (_, Message::Dismiss) => {
                side.asked_to_leave = true;
                Some(Message::Dismiss)
            }
            (Some(Plant::AckOfPartialCheckpoint), Message::Log { number, entries }) => {
                let opens = matches!(
                    entries.last(),
                    Some(LogEntry::Checkpoint { chunk, .. }) if !logging_channel::chunk::is_last(chunk)
                );
                if opens && side.speaks {
                    let ack = Ack {
                        frame: number + 1,
                        ..side.acked
                    };
                    common.send(env, generation, &Message::Ack(ack));
                    tilt(env, common);
                }
                Some(Message::Log { number, entries })
            }
            (_, message) => Some(message),
        }
    }

    /// A message is being taken in.
    fn check_room(&mut self) {
        let held: usize = self.side.unexecuted.iter().sum();
        if held >= self.env.terms.unexecuted && self.side.speaks {
            let what = format!(
                "process {} takes a message in with {held} bytes to execute",
                self.common.id
            );
            self.env.checks.fail(self.env.now, TAKEN_IN, what);
        }
    }
}

impl World for SimWorld<'_> {
    fn now_ns(&self) -> u64 {
        self.env.local(self.common.host)
    }

    fn next_event(&mut self) -> Option<LinkEvent> {
        loop {
            match self.common.next_event()? {
                LinkEvent::Message {
                    connection,
                    generation,
                    message,
                } => {
                    self.check_room();
                    if let Some(message) = self.planted(generation, message) {
                        return Some(LinkEvent::Message {
                            connection,
                            generation,
                            message,
                        });
                    }
                }
                event => {
                    if matches!(event, LinkEvent::Claimed(_)) {
                        self.env.reach(Point::Won, self.common.id);
                    }
                    return Some(event);
                }
            }
        }
    }

    fn send(&mut self, connection: ConnectionId, generation: Generation, message: Message) {
        if self.common.is_mine(connection) {
            if let Message::Ack(ack) = &message {
                self.side.acked = *ack;
                self.env.reach(Point::Ack, self.common.id);
            }
            // Its last word, and not the question, is what counts: a backup that has suspected meanwhile does not answer.
            if matches!(message, Message::Bye)
                && self.side.asked_to_leave
                && self.env.checks.dismissed.insert(self.common.id)
            {
                self.env.count("dismissals");
            }
            self.common.send(self.env, generation, &message);
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        if self.common.is_mine(connection) {
            self.common.close(self.env);
        }
    }

    fn heartbeat(&mut self, generation: Generation) -> Option<u64> {
        self.common.heartbeat(self.env, generation)
    }

    fn claim(&mut self, of: Generation, owner: Incarnation) {
        self.common.claim(self.env, of, owner);
    }

    fn report(&mut self, event: Event) {
        if let Event::Suspected { reason } = &event
            && reason.starts_with("the log does not continue")
        {
            self.env.checks.fail(self.env.now, NO_FAILURE, reason.clone());
        }
        self.env.note(self.common.id, || format!("{event:?}"));
    }
}

impl BackupWorld for SimWorld<'_> {
    fn order(&mut self, order: FollowOrder) {
        self.side.unexecuted.push_back(match &order {
            FollowOrder::Pages { content, .. } => content.len(),
            FollowOrder::Entries(entries) => {
                let sizes = entries.iter().map(|entry| size_of::<LogEntry>() + data_bytes(entry));
                sizes.sum()
            }
            _ => 0,
        });
        self.side.orders.push_back(order);
        self.side.begin(self.env, self.common);
    }

    fn keep_boot(&mut self, record: Vec<u8>) {
        let _ = self.side.boot.set(record);
    }

    fn silent_health(&mut self) -> Option<Health> {
        Some(Health {
            disks: vec![!self.env.disk_lost(self.common.host)],
            nics: Vec::new(),
        })
    }

    fn show(&mut self, _core: &Backup) {}
}
