//! The backup's link: what is done, and in which order, when the primary, the vCPU thread, the storage or the clock says
//! something, until this side goes live or ends.

use std::collections::VecDeque;

use ftvm_schema::entry::{Generation, Incarnation, LogEntry, Position};
use logging_channel::codec::data_bytes;
use logging_channel::message::{Health, Heartbeat};
use shared_disk::arbiter::ClaimOutcome;

use super::AT_ONCE;
use super::world::{BackupWorld, ConnectionId, LinkEvent};
use crate::backup::{Backup, BackupAction, only_the_last_ack};
use crate::event::Event;
use crate::exit_code::ExitCode;
use crate::following::{FollowOrder, FollowReport, Progress};
use crate::terms::Terms;

/// Bytes of log and of pages that the vCPU thread has been given and has not executed, above which a backup takes nothing
/// more in (PROTOCOL 9). One message's worth, or a micro-checkpoint, may exceed it. A state record does not count, and what
/// private disks are to hold has a bound of its own ([`BLOCKS_UNDER_WAY`](logging_channel::message::BLOCKS_UNDER_WAY)).
pub const UNEXECUTED_BYTES: usize = 64 << 20;

/// Something a backup's link is to look at.
#[derive(Debug)]
pub enum BackupEvent {
    Link(LinkEvent),
    /// The vCPU thread's answer to its oldest order.
    Followed(FollowReport),
    /// It has ended without a word.
    ThreadGone,
    Heartbeat(Heartbeat),
    /// What this host reaches.
    Health(Health),
    /// The time of [`BackupLink::wakes_at`] has come.
    Due,
    /// Time passes; at least every eighth of the detection time.
    Tick,
}

/// How following ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// This backup is to end. Where it has asked for the next generation and not heard that it lost, the process must end too:
    /// the storage may be asked as long as that lives, and a late win would end the primary that it stands by for next.
    Ended { code: ExitCode, why: String, claimed: bool },
    /// This side is to go live under a generation; nanoseconds since it asked for that, and whether the primary wanted it.
    GoLive {
        generation: Generation,
        took_ns: u64,
        planned: bool,
    },
}

/// A backup at work.
#[derive(Debug)]
pub struct BackupLink {
    core: Backup,
    connection: ConnectionId,
    /// The primary: the owner of the generation.
    owner: Incarnation,
    /// Bytes of each order that the vCPU thread has not answered, the oldest first, and their sum.
    orders: VecDeque<usize>,
    unexecuted: usize,
    most_unexecuted: usize,
    claimed: bool,
    over: Option<Followed>,
}

impl BackupLink {
    /// A backup that has passed the handshake with `owner`, the primary, on this connection.
    pub fn begin<W: BackupWorld>(terms: Terms, owner: Incarnation, connection: ConnectionId, world: &mut W) -> Self {
        let mut link = BackupLink {
            core: Backup::new(terms, world.now_ns()),
            connection,
            owner,
            orders: VecDeque::new(),
            unexecuted: 0,
            most_unexecuted: UNEXECUTED_BYTES,
            claimed: false,
            over: None,
        };
        let Generation(generation) = terms.generation;
        link.report(Event::Following { generation }, world);
        link
    }

    /// With another bound than [`UNEXECUTED_BYTES`].
    #[must_use]
    pub fn with_bound(mut self, bytes: usize) -> Self {
        self.most_unexecuted = bytes;
        self
    }

    /// The decisions behind this link.
    #[must_use]
    pub fn core(&self) -> &Backup {
        &self.core
    }

    /// How following ended, once it has: nothing more is to be done with this link.
    #[must_use]
    pub fn over(&self) -> Option<&Followed> {
        self.over.as_ref()
    }

    /// When [`BackupEvent::Due`] is to come, in nanoseconds of the world's clock.
    #[must_use]
    pub fn wakes_at(&self) -> Option<u64> {
        self.core.wakes_at()
    }

    /// Whether events of the link are taken. If not, they stay where they are: the socket is not read, its buffers fill, and
    /// TCP has the primary wait. What the primary says to a side that has asked for the next generation is thrown away, and
    /// fills nothing.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.has_room(self.unexecuted)
    }

    /// Something has happened. Events of the link that have come already, and are taken, are handled in the same turn.
    pub fn step<W: BackupWorld>(&mut self, event: BackupEvent, world: &mut W) {
        let mut actions = Vec::new();
        match event {
            BackupEvent::Link(event) => {
                self.link_event(event, world, &mut actions);
                self.take_in(AT_ONCE - 1, world, &mut actions);
            }
            BackupEvent::Followed(report) => self.followed(report, world, &mut actions),
            BackupEvent::ThreadGone => {
                let what = "the vCPU thread ended without a word";
                self.core.diverged(Position::default(), what, &mut actions);
            }
            BackupEvent::Heartbeat(heartbeat) => self.core.heartbeat(world.now_ns(), &heartbeat, &mut actions),
            BackupEvent::Health(health) => self.core.health(health, &mut actions),
            BackupEvent::Due => self.core.due(world.now_ns(), &mut actions),
            BackupEvent::Tick => self.tick(world, &mut actions),
        }
        self.act(only_the_last_ack(actions), world);
    }

    /// Takes in what has come already; whether more would be taken.
    fn take_in<W: BackupWorld>(&mut self, most: usize, world: &mut W, actions: &mut Vec<BackupAction>) -> bool {
        let mut unexecuted = self.unexecuted + actions.iter().map(weight).sum::<usize>();
        for _ in 0..most {
            if !self.has_room(unexecuted) {
                break;
            }
            let Some(event) = world.next_event() else { break };
            let before = actions.len();
            self.link_event(event, world, actions);
            unexecuted += actions[before..].iter().map(weight).sum::<usize>();
        }
        self.has_room(unexecuted)
    }

    fn has_room(&self, unexecuted: usize) -> bool {
        unexecuted < self.most_unexecuted || !self.core.listens()
    }

    fn link_event<W: BackupWorld>(&mut self, event: LinkEvent, world: &mut W, actions: &mut Vec<BackupAction>) {
        let now = world.now_ns();
        match event {
            LinkEvent::Message {
                connection,
                generation,
                message,
            } if connection == self.connection => self.core.message(now, generation, message, actions),
            LinkEvent::Closed { connection, why } if connection == self.connection => {
                self.core.closed(now, &why, actions);
            }
            LinkEvent::Claimed(outcome) => {
                self.claimed &= !matches!(outcome, ClaimOutcome::Lost { .. });
                self.core.claimed(now, &outcome, actions);
            }
            LinkEvent::StorageSilent(why) => actions.push(BackupAction::Report(Event::StorageUnreachable { why })),
            // What an old connection still says, and what only a primary is told.
            LinkEvent::Message { .. }
            | LinkEvent::Closed { .. }
            | LinkEvent::Joined { .. }
            | LinkEvent::PagesSent { .. }
            | LinkEvent::BlocksSent { .. } => {}
        }
    }

    fn followed<W: BackupWorld>(&mut self, report: FollowReport, world: &W, actions: &mut Vec<BackupAction>) {
        self.unexecuted -= self.orders.pop_front().unwrap_or(0);
        let now = world.now_ns();
        match report {
            FollowReport::Progress(Progress::Executed(at)) => self.core.executed(now, at, actions),
            FollowReport::Progress(Progress::Diverged { at, what }) => self.core.diverged(at, &what, actions),
            FollowReport::Progress(Progress::Ended(reason)) => self.core.guest_ended(&reason, actions),
            FollowReport::BlocksWritten => self.core.blocks_written(now, actions),
            FollowReport::Drained => self.core.drained(now, actions),
        }
    }

    /// Time passes. Whatever arrived while this process slept is evidence, and comes before the verdict (PROTOCOL 15).
    fn tick<W: BackupWorld>(&mut self, world: &mut W, actions: &mut Vec<BackupAction>) {
        if !self.take_in(usize::MAX, world, actions) {
            self.core.takes_nothing_in(world.now_ns());
        }
        self.core.tick(world.now_ns(), actions);
        if let Some(health) = world.silent_health() {
            self.core.health(health, actions);
        }
        world.show(&self.core);
        if self.core.may_speak() {
            world.heartbeat(self.core.generation());
        }
    }

    fn act<W: BackupWorld>(&mut self, actions: Vec<BackupAction>, world: &mut W) {
        for action in actions {
            let bytes = weight(&action);
            match action {
                BackupAction::Send(message) => world.send(self.connection, self.core.generation(), message),
                BackupAction::LoadPages { numbers, content } => {
                    self.order(FollowOrder::Pages { numbers, content }, bytes, world);
                }
                BackupAction::LoadBlocks { disk, numbers, content } => {
                    self.order(FollowOrder::Blocks { disk, numbers, content }, bytes, world);
                }
                BackupAction::FlushBlocks => self.order(FollowOrder::FlushBlocks, bytes, world),
                BackupAction::Load(record) => self.order(FollowOrder::Load(record), bytes, world),
                BackupAction::Deliver(entries) => self.order(FollowOrder::Entries(entries), bytes, world),
                BackupAction::Drain => self.order(FollowOrder::Drain, bytes, world),
                BackupAction::Claim(of) => {
                    self.claimed = true;
                    world.claim(of, self.owner);
                }
                BackupAction::Report(event) => self.report(event, world),
                BackupAction::KeepBoot(record) => world.keep_boot(record),
                BackupAction::GoLive {
                    generation,
                    took_ns,
                    planned,
                } => {
                    self.over = Some(Followed::GoLive {
                        generation,
                        took_ns,
                        planned,
                    });
                    return;
                }
                BackupAction::End { code, why } => {
                    world.close(self.connection);
                    let claimed = self.claimed;
                    self.over = Some(Followed::Ended { code, why, claimed });
                    return;
                }
            }
        }
    }

    fn order<W: BackupWorld>(&mut self, order: FollowOrder, bytes: usize, world: &mut W) {
        self.orders.push_back(bytes);
        self.unexecuted += bytes;
        world.order(order);
    }

    /// Says what has happened. Whoever hears of it and asks for the status must see it there.
    fn report<W: BackupWorld>(&mut self, event: Event, world: &mut W) {
        world.show(&self.core);
        world.report(event);
    }
}

/// Bytes of what an order to the vCPU thread carries, as [`UNEXECUTED_BYTES`] counts them.
fn weight(action: &BackupAction) -> usize {
    let in_memory = |entry: &LogEntry| size_of::<LogEntry>() + data_bytes(entry);
    match action {
        BackupAction::LoadPages { content, .. } => content.len(),
        BackupAction::Deliver(entries) => entries.iter().map(in_memory).sum(),
        _ => 0,
    }
}
