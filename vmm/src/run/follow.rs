//! The backup's shell: one task that hears the primary, the vCPU thread, the storage and the clock, asks the pure core
//! (`roles::backup`) what to do, and does it, until it goes live or ends.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Generation, Incarnation, LogEntry, Position};
use logging_channel::clock::boottime_ns;
use logging_channel::message::Heartbeat;
use logging_channel::transport::TcpFrames;
use shared_disk::arbiter::{Arbiter, Outcome};
use tokio::sync::mpsc;

use super::clone::PageSource;
use super::control::{Desk, LastFailover, Role};
use super::events::Reporter;
use super::health::Probe;
use super::heartbeat::Heartbeats;
use super::link::{Connection, LinkEvent, at_once, claim, link_events};
use super::vcpu::{Life, live};
use crate::failure::Failure;
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::Machine;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_roles::backup::{Action, Backup, only_the_last_ack};
use ftvm_roles::copies::Copies;
use ftvm_roles::event::{Event, Protection};
use ftvm_roles::following::{Following, Horizon, Progress};
use ftvm_roles::operation::Unprotected;
use ftvm_roles::replay::DiskReader;

/// How long the last messages to the primary may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// To the vCPU thread of a backup, in order.
#[derive(Debug)]
pub enum ToFollower {
    /// Pages of RAM, ahead of the state.
    Pages { numbers: Vec<u64>, content: Vec<u8> },
    /// Blocks of a private disk, ahead of the state.
    Blocks {
        disk: u8,
        numbers: Vec<u64>,
        content: Vec<u8>,
    },
    /// Make them stable.
    FlushBlocks,
    /// The state to start from.
    Load(Vec<u8>),
    /// Log entries, and when they arrived: from the latest clock among them on, time is this host's.
    Entries(Vec<LogEntry>, Instant),
    /// Say when everything before this is executed.
    Drain,
    /// Live, with this to live on.
    GoLive(Box<Life>),
}

/// From the vCPU thread of a backup.
#[derive(Debug)]
pub enum FromFollower {
    Progress(Progress),
    /// Blocks are written, or stable.
    BlocksWritten,
    Drained,
    /// At the horizon: what the new life must do first.
    AtHorizon(Box<Horizon>),
}

/// A backup at work.
#[derive(Debug)]
pub struct Follow {
    pub core: Backup,
    pub me: Incarnation,
    pub owner: Incarnation,
    pub detection: Duration,
    pub reporter: Reporter,
    pub arbiter: Arc<dyn Arbiter>,
    pub heartbeats: Heartbeats,
    pub heard: mpsc::Receiver<Heartbeat>,
    pub desk: Desk,
    pub boot: BootCell,
    pub probe: Probe,
}

/// How following ended.
#[derive(Debug)]
pub enum Followed {
    /// This backup is to end; whether it has asked for the next generation and not heard that it lost.
    Ended { code: u8, claimed: bool },
    /// This side is to go live under a generation.
    GoLive(Generation, Box<Follow>),
}

/// The vCPU thread of a backup, and the way to it.
#[derive(Debug)]
pub struct Follower {
    pub orders: crossbeam_channel::Sender<ToFollower>,
    pub reports: mpsc::UnboundedReceiver<FromFollower>,
    pub thread: JoinHandle<()>,
    /// For the backup after this one.
    pub pages: PageSource,
}

/// Starts the vCPU thread of a backup.
///
/// # Errors
/// If the host has no thread to give.
pub fn start_follower<C: Cpu + 'static>(
    machine: Machine<C>,
    copies: Box<dyn Copies + Send>,
    disks: impl DiskReader + Send + 'static,
) -> Result<Follower, Failure> {
    // Unbounded here, bounded by what the inbox admits (roles::backup) and, beyond, by the primary's own bounds.
    let (orders, received) = crossbeam_channel::unbounded();
    let pages = PageSource::new(machine.memory().clone());
    let (told, reports) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new().name("vcpu".to_owned());
    let thread = thread
        .spawn(move || follow(machine, copies, disks, &received, &told))
        .map_err(Failure::new)?;
    Ok(Follower {
        orders,
        reports,
        thread,
        pages,
    })
}

fn follow<C: Cpu>(
    machine: Machine<C>,
    copies: Box<dyn Copies + Send>,
    mut disks: impl DiskReader,
    orders: &crossbeam_channel::Receiver<ToFollower>,
    reports: &mpsc::UnboundedSender<FromFollower>,
) {
    let mut following = Following::new(machine, Instant::now(), Instant::now).with_copies(copies);
    for order in orders {
        let report = match order {
            ToFollower::Pages { numbers, content } => FromFollower::Progress(following.pages(numbers, content)),
            ToFollower::Blocks { disk, numbers, content } => written(following.blocks(disk, &numbers, &content)),
            ToFollower::FlushBlocks => written(following.flush_blocks()),
            ToFollower::Load(record) => FromFollower::Progress(following.load(&record)),
            ToFollower::Entries(entries, arrived) => {
                FromFollower::Progress(following.execute(entries, arrived, &mut disks))
            }
            ToFollower::Drain => FromFollower::Drained,
            ToFollower::GoLive(mut life) => {
                let (machine, horizon, clock) = following.into_live();
                drop(disks);
                life.clock = clock;
                let _ = reports.send(FromFollower::AtHorizon(Box::new(horizon)));
                return live(machine, *life);
            }
        };
        // If the link is gone, so is the process.
        if reports.send(report).is_err() {
            return;
        }
    }
}

fn written(result: Result<(), Progress>) -> FromFollower {
    result.map_or_else(FromFollower::Progress, |()| FromFollower::BlocksWritten)
}

impl Follow {
    /// Follows until this side goes live or ends.
    pub async fn run(mut self, frames: TcpFrames, follower: &mut Follower) -> Followed {
        let (link, mut events) = link_events();
        let connection = Connection::start(frames, &link);
        let mut tick = tokio::time::interval(self.detection / 8);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut generation = self.core.generation();
        let mut claimed = false;
        self.heartbeats.set_generation(generation);
        self.say(Event::Following {
            generation: generation.0,
        });
        loop {
            let mut actions = Vec::new();
            let wakes_at = self.core.wakes_at();
            let due = async {
                match wakes_at {
                    Some(at) => tokio::time::sleep(Duration::from_nanos(at.saturating_sub(boottime_ns()))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => for event in at_once(event, &mut events) {
                    claimed &= !matches!(event, LinkEvent::Claimed(Outcome::Lost { .. }));
                    self.link_event(event, &mut actions);
                },
                report = follower.reports.recv() => self.report(report, &mut actions),
                Some(health) = self.probe.next() => self.core.health(health, &mut actions),
                Some(heartbeat) = self.heard.recv() => {
                    self.core.heartbeat(boottime_ns(), &heartbeat, &mut actions);
                }
                () = due => self.core.due(boottime_ns(), &mut actions),
                _ = tick.tick() => {
                    // Whatever arrived while this process slept is evidence, and comes before the verdict (PROTOCOL 15).
                    while let Ok(event) = events.try_recv() {
                        self.link_event(event, &mut actions);
                    }
                    self.core.tick(boottime_ns(), &mut actions);
                    if let Some(health) = self.probe.silent() {
                        self.core.health(health, &mut actions);
                    }
                    self.show();
                    if self.core.may_speak() {
                        self.heartbeats.send().await;
                    }
                }
            }
            for action in only_the_last_ack(actions) {
                match action {
                    Action::Send(message) => connection.send(generation, message),
                    Action::Load(record) => order(follower, ToFollower::Load(record)),
                    Action::LoadPages { numbers, content } => {
                        order(follower, ToFollower::Pages { numbers, content });
                    }
                    Action::LoadBlocks { disk, numbers, content } => {
                        let blocks = ToFollower::Blocks { disk, numbers, content };
                        order(follower, blocks);
                    }
                    Action::FlushBlocks => order(follower, ToFollower::FlushBlocks),
                    Action::Deliver(entries) => order(follower, ToFollower::Entries(entries, Instant::now())),
                    Action::Drain => order(follower, ToFollower::Drain),
                    Action::Claim(of) => {
                        claimed = true;
                        claim(&self.arbiter, of, self.owner, self.me, link.clone());
                    }
                    Action::Report(event) => self.say(event),
                    Action::KeepBoot(record) => {
                        tracing::debug!("holds the state that a reset starts from");
                        // A second one would be the same.
                        let _ = self.boot.set(record);
                    }
                    Action::GoLive {
                        generation: won,
                        took_ns,
                        planned,
                    } => {
                        generation = won;
                        self.desk.update(|status| {
                            status.last_failover = Some(LastFailover {
                                generation: won.0,
                                took_ns,
                                planned,
                            });
                        });
                        return Followed::GoLive(generation, Box::new(self));
                    }
                    Action::End { code, why } => {
                        connection.close(LAST_WORDS).await;
                        self.reporter.report(Event::Ending { code, why });
                        return Followed::Ended { code, claimed };
                    }
                }
            }
        }
    }

    /// Says what has happened. Whoever hears of it and asks for the status must see it there.
    fn say(&mut self, event: Event) {
        self.show();
        self.reporter.report(event);
    }

    /// What clients of the control socket see.
    fn show(&self) {
        let core = &self.core;
        self.desk.update(|status| {
            status.role = Role::Backup;
            status.generation = core.generation().0;
            status.why = match core.protection() {
                Protection::Protected => None,
                Protection::Starting => Some(Unprotected::Starting),
                Protection::Deciding => Some(Unprotected::Deciding),
                Protection::NotProtected => Some(Unprotected::NotRunning),
            };
            status.protected = status.why.is_none();
        });
    }

    fn link_event(&mut self, event: LinkEvent, actions: &mut Vec<Action>) {
        let now = boottime_ns();
        match event {
            LinkEvent::Message(generation, message) => self.core.message(now, generation, message, actions),
            LinkEvent::Closed(why) => self.core.closed(now, &why, actions),
            LinkEvent::Claimed(outcome) => self.core.claimed(now, &outcome, actions),
            LinkEvent::StorageSilent(why) => actions.push(Action::Report(Event::StorageUnreachable { why })),
            LinkEvent::Joined(_) | LinkEvent::PagesSent { .. } | LinkEvent::BlocksSent { .. } => {} // a backup has no door
        }
    }

    fn report(&mut self, report: Option<FromFollower>, actions: &mut Vec<Action>) {
        match report {
            Some(FromFollower::Progress(Progress::Executed(at))) => self.core.executed(boottime_ns(), at, actions),
            Some(FromFollower::BlocksWritten) => self.core.blocks_written(boottime_ns(), actions),
            Some(FromFollower::Drained) => self.core.drained(boottime_ns(), actions),
            Some(FromFollower::Progress(Progress::Diverged { at, what })) => self.core.diverged(at, &what, actions),
            Some(FromFollower::Progress(Progress::Ended(reason))) => self.core.guest_ended(&reason, actions),
            Some(FromFollower::AtHorizon(_)) => {} // only after GoLive, which is read elsewhere
            None => self
                .core
                .diverged(Position::default(), "the vCPU thread ended without a word", actions),
        }
    }
}

fn order(follower: &Follower, order: ToFollower) {
    // If the thread is gone, its report channel says so.
    let _ = follower.orders.send(order);
}
