//! The primary's link: what is done, and in which order, when the backup, the guest, the disks, the storage, an operator or
//! the clock says something. A backup that has gone live goes on with the same.
//!
//! Every event is first handled and what the core decided about it carried out; then the turn is finished, in which
//! outputs leave.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ftvm_schema::entry::{ExitSeq, LogEntry, Mark, Position};
use logging_channel::message::{Health, Heartbeat, Message};
use shared_disk::arbiter::ClaimOutcome;
use shared_disk::plan::Gate;

use super::AT_ONCE;
use super::begin::LinkStage;
use super::guest::FromGuest;
use super::world::{ConnectionId, LinkEvent, PrimaryWorld};
use crate::disks::{DiskEnd, DiskShell, Disks};
use crate::event::{Event, Protection};
use crate::exit_code::ExitCode;
use crate::host_event::HostEvent;
use crate::operation::{Operation, Path};
use crate::primary::{FailedRequest, Primary, PrimaryAction};
use crate::terms::Terms;
use ftvm_machine::output::Output;

/// Bytes waiting to be written to the backup above which the vCPU stops: the large buffer of the paper (2.3). A state
/// record, which is queued whole, may exceed it.
pub(super) const OUTBOUND_BYTES: usize = 64 << 20;

/// RARP announcements after going live: with [`ANNOUNCE_EVERY`] they take about 1 s (PROTOCOL 22).
pub(super) const ANNOUNCEMENTS: u32 = 5;

/// Time between two announcements, while [`PrimaryLink::announces`].
pub const ANNOUNCE_EVERY: Duration = Duration::from_millis(200);

const _: () = assert!(
    matches!(ANNOUNCE_EVERY.saturating_mul(ANNOUNCEMENTS).as_millis(), 800..=1200),
    "announcements take about a second"
);

/// Time between two [`PrimaryEvent::Second`]s.
pub const SECOND: Duration = Duration::from_secs(1);

/// Something a primary's link is to look at.
#[derive(Debug)]
pub enum PrimaryEvent {
    Link(LinkEvent),
    Guest(FromGuest),
    /// The vCPU thread has ended without a word.
    GuestGone,
    Heartbeat(Heartbeat),
    /// An operator wants something; the answer names the ticket, which the shell gives out once.
    Operate {
        ticket: u64,
        operation: Operation,
    },
    /// A disk request failed because this host has lost the way to the disk: what the host said, and what the guest is to be
    /// told, if it is.
    DiskLost {
        disk: u8,
        what: String,
        failure: HostEvent,
    },
    /// What this host reaches.
    Health(Health),
    /// A disk's device has refused a write: another host has reserved it, and is live.
    Superseded,
    /// Time passes; at least every eighth of the detection time.
    Tick,
    /// A second has passed.
    Second,
    /// [`ANNOUNCE_EVERY`] has passed.
    Announce,
}

/// A primary at work.
#[derive(Debug)]
pub struct PrimaryLink<H> {
    pub(super) core: Primary,
    pub(super) terms: Terms,
    pub(super) stage: LinkStage,
    pub(super) disks: Disks<H>,
    pub(super) connection: Option<ConnectionId>,
    /// Disk requests that are finished: the guest knows, and the backup may not yet. At most one for each that was under way.
    pub(super) finished: VecDeque<DiskEnd>,
    /// The output whose system call is under way.
    pub(super) call: Option<Output>,
    /// The machine's state, saved for a joining backup: outputs from before it leave first.
    pub(super) saved: Option<Saved>,
    /// Whether the first output of this life is still to come, and is to be told of.
    pub(super) first_output: bool,
    pub(super) announcements: u32,
    pub(super) protection: Protection,
    pub(super) over: Option<(ExitCode, String)>,
    /// Where the log stands.
    pub(super) logged_to: ExitSeq,
    /// Bytes of log when the traffic was last reported.
    logged: u64,
    /// Whether the vCPU thread still has something to say.
    listening: bool,
    /// Operations without an answer.
    pub(super) asked: BTreeMap<u64, Operation>,
    /// Failures that the guest is not told of while it is being handed over. As many as it has requests under way.
    pub(super) withheld: Vec<HostEvent>,
}

#[derive(Debug)]
pub(super) struct Saved {
    pub record: Vec<u8>,
    pub mark: Mark,
    pub stopped: Duration,
}

impl<H: DiskShell> PrimaryLink<H> {
    pub(super) fn new(core: Primary, terms: Terms, stage: LinkStage, disks: Disks<H>) -> Self {
        PrimaryLink {
            protection: core.protection(),
            core,
            terms,
            stage,
            disks,
            connection: None,
            finished: VecDeque::new(),
            call: None,
            saved: None,
            first_output: false,
            announcements: 0,
            over: None,
            logged_to: ExitSeq(0),
            logged: 0,
            listening: true,
            asked: BTreeMap::new(),
            withheld: Vec::new(),
        }
    }

    /// The decisions behind this link.
    #[must_use]
    pub fn core(&self) -> &Primary {
        &self.core
    }

    /// The disks' hands.
    pub fn hands(&mut self) -> &mut H {
        self.disks.shell()
    }

    /// Exit code and reason once this process is to end.
    #[must_use]
    pub fn over(&self) -> Option<(ExitCode, &str)> {
        self.over.as_ref().map(|(code, why)| (*code, why.as_str()))
    }

    /// Whether the link does nothing else until its disks are reserved ([`PrimaryLink::disks_reserved`]), or an output's system
    /// call is over ([`PrimaryLink::call_over`]).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.call.is_some() || matches!(self.stage, LinkStage::Reserving(_))
    }

    /// Whether announcements are due every [`ANNOUNCE_EVERY`].
    #[must_use]
    pub fn announces(&self) -> bool {
        self.announcements > 0
    }

    /// Whether the vCPU thread is listened to; if not, its queue fills and it stops (PROTOCOL 9).
    pub fn takes_more<W: PrimaryWorld<Hands = H>>(&self, world: &W) -> bool {
        let queued = self.connection.map_or(0, |connection| world.queued(connection));
        matches!(self.stage, LinkStage::Leading)
            && self.listening
            && self.call.is_none()
            && self.core.has_room(world.now_ns())
            && queued < OUTBOUND_BYTES
            && self.disks.has_room()
    }

    /// Something has happened: handles it, carries out what the core decides, and finishes the turn. Events of the link that
    /// have come already are handled in the same turn.
    ///
    /// # Errors
    /// The guest cannot go on here.
    pub fn step<W: PrimaryWorld<Hands = H>>(&mut self, event: PrimaryEvent, world: &mut W) -> Result<(), W::Error> {
        let mut actions = Vec::new();
        match event {
            PrimaryEvent::Link(event) => {
                self.link_event(event, world)?;
                for _ in 1..AT_ONCE {
                    let Some(event) = world.next_event() else { break };
                    self.link_event(event, world)?;
                }
            }
            PrimaryEvent::Guest(message) => self.guest_says(message, world, &mut actions)?,
            PrimaryEvent::GuestGone => {
                self.over = Some((ExitCode::Error, "the vCPU thread ended without a word".to_owned()));
            }
            PrimaryEvent::Heartbeat(heartbeat) => self.core.heartbeat(world.now_ns(), &heartbeat, &mut actions),
            PrimaryEvent::Operate { ticket, operation } => {
                self.asked.insert(ticket, operation);
                self.core.operate(world.now_ns(), ticket, operation, &mut actions);
            }
            PrimaryEvent::DiskLost { disk, what, failure } => {
                match self
                    .core
                    .path_lost(world.now_ns(), Path::Disk(disk), &what, &mut actions)
                {
                    FailedRequest::Withheld => self.withheld.push(failure),
                    FailedRequest::Told => world.tell(failure)?,
                }
            }
            PrimaryEvent::Health(health) => {
                for (nic, _) in (0u8..).zip(&health.nics).filter(|(_, reached)| !**reached) {
                    let what = "its interface is gone or down";
                    self.core.path_lost(world.now_ns(), Path::Nic(nic), what, &mut actions);
                }
            }
            PrimaryEvent::Superseded => self.core.write_refused(&mut actions),
            PrimaryEvent::Tick => self.tick(world, &mut actions)?,
            PrimaryEvent::Second => self.second(world),
            PrimaryEvent::Announce => {
                self.announcements = self.announcements.saturating_sub(1);
                world.announce();
            }
        }
        self.act(actions, world)?;
        self.finish_turn(world)
    }

    /// Something about the link: its decisions are carried out before the next event is looked at.
    fn link_event<W: PrimaryWorld<Hands = H>>(&mut self, event: LinkEvent, world: &mut W) -> Result<(), W::Error> {
        let mut actions = Vec::new();
        let now = world.now_ns();
        match event {
            LinkEvent::Message {
                connection,
                generation,
                message,
            } if self.is_mine(connection) => {
                if let Message::BlocksWritten { incarnation, messages } = message {
                    world.blocks_written(incarnation, messages);
                }
                self.core.message(now, generation, message, &mut actions);
            }
            LinkEvent::Closed { connection, why } if self.is_mine(connection) => {
                self.connection = None;
                self.core.closed(now, &why, &mut actions);
            }
            // What an old connection still says is about a pair that is over.
            LinkEvent::Message { .. } | LinkEvent::Closed { .. } => {}
            LinkEvent::Joined { connection, backup } => {
                if matches!(self.stage, LinkStage::Leading) && self.core.may_join().is_ok() {
                    world.accept(connection);
                    self.connection = Some(connection);
                    self.core.joined(now, backup, &mut actions);
                } else {
                    world.refuse(connection);
                }
            }
            LinkEvent::PagesSent { to, pages, bytes } => self.core.pages_sent(now, to, pages, bytes, &mut actions),
            LinkEvent::BlocksSent { to, bytes } => self.core.blocks_sent(now, to, bytes, &mut actions),
            LinkEvent::Claimed(outcome) => self.claimed(&outcome, world, &mut actions),
            LinkEvent::StorageSilent(why) => actions.push(PrimaryAction::Report(Event::StorageUnreachable { why })),
        }
        self.act(actions, world)
    }

    fn is_mine(&self, connection: ConnectionId) -> bool {
        self.connection == Some(connection)
    }

    fn claimed<W: PrimaryWorld<Hands = H>>(
        &mut self,
        outcome: &ClaimOutcome,
        world: &mut W,
        actions: &mut Vec<PrimaryAction>,
    ) {
        self.core.claimed(world.now_ns(), outcome, actions);
        if matches!(outcome, ClaimOutcome::Won { .. }) {
            // Only now: as long as the backup might win, its copies could become the newest.
            self.mark_current(world);
        }
        if self.core.covered(Position::default()) {
            self.disks.release_all();
        }
    }

    /// Notes that this host has the newest copies. A failure does not matter as long as the guest lives: its clean end notes it
    /// again.
    fn mark_current<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) {
        if let Err(error) = world.mark_current(self.core.generation()) {
            tracing::warn!("{error}");
        }
    }

    fn guest_says<W: PrimaryWorld<Hands = H>>(
        &mut self,
        message: FromGuest,
        world: &mut W,
        actions: &mut Vec<PrimaryAction>,
    ) -> Result<(), W::Error> {
        let now = world.now_ns();
        match message {
            FromGuest::Batch {
                entries,
                outputs,
                finished,
            } => {
                let last = entries.iter().rev().find_map(|entry| match entry {
                    LogEntry::Mark(mark) => Some(mark.at.exit),
                    _ => None,
                });
                self.logged_to = last.unwrap_or(self.logged_to);
                self.core.log(now, entries, actions);
                for output in outputs {
                    self.take_over(&output.emission, Gate::Held, world)?;
                    if output.emission.is_output() {
                        self.core.hold(output);
                    }
                }
                for end in finished {
                    self.disks.finished(end.disk, end.id)?;
                    self.finished.push_back(end);
                }
            }
            FromGuest::Dirty(pages) => self.core.dirty(now, pages, actions),
            FromGuest::State { record, mark, stopped } => self.saved = Some(Saved { record, mark, stopped }),
            FromGuest::Obeyed(order) => self.core.obeyed(order, actions),
            FromGuest::Ended(Ok(reason)) => {
                self.listening = false;
                self.core.guest_ended(now, reason, actions);
            }
            FromGuest::Ended(Err(why)) => self.over = Some((ExitCode::Error, why.to_string())),
        }
        Ok(())
    }

    /// Time passes. Whatever arrived while this process slept is evidence, and comes before the verdict (PROTOCOL 15).
    fn tick<W: PrimaryWorld<Hands = H>>(
        &mut self,
        world: &mut W,
        actions: &mut Vec<PrimaryAction>,
    ) -> Result<(), W::Error> {
        while let Some(event) = world.next_event() {
            self.link_event(event, world)?;
        }
        self.core.tick(world.now_ns(), actions);
        let under_way = self.disks.under_way();
        self.core.disks_under_way(world.now_ns(), &under_way, actions);
        if let Some(sent_ns) = world.heartbeat(self.core.generation()) {
            self.core.heartbeat_sent(sent_ns);
        }
        Ok(())
    }

    /// What the log costs, and how far a clone is.
    fn second<W: PrimaryWorld<Hands = H>>(&mut self, world: &mut W) {
        let logged = self.connection.map_or(0, |connection| world.logged(connection));
        let bytes = logged.saturating_sub(std::mem::replace(&mut self.logged, logged));
        world.show(&self.core, self.logged_to, Some(bytes));
        let event = match (self.connection, self.protection) {
            (Some(_), Protection::Protected) => self.core.cost(world.now_ns()).map(|cost| Event::Traffic {
                log_bytes: logged,
                exits: self.logged_to.0,
                frames: cost.frames,
                checkpoints: cost.checkpoints,
                checkpoint_bytes: cost.checkpoint_bytes,
                lag_ns: cost.lag_ns,
                idle_permille: cost.idle_permille,
            }),
            (Some(_), Protection::Starting) => world.copying(),
            _ => None,
        };
        if let Some(event) = event {
            world.report(event);
        }
    }
}
