//! The primary's decisions, pure: who may hear what the guest says, when the backup is lost, when to leave the pair.
//!
//! Time (CLOCK_BOOTTIME nanoseconds), messages and answers of the storage come in as arguments; what to do comes out as
//! [`PrimaryAction`]s, which the link ([`super::link`]) carries out. Each rule of PROTOCOL is named where it is kept.

mod action;
mod joining;
mod leaving;
mod operating;
mod pair;
mod refusal;
mod silence;

use std::collections::{BTreeMap, BTreeSet};

use ftvm_schema::entry::{EndReason, Generation, OutputSeq, Position};
use logging_channel::message::{Heartbeat, Message};

use super::disks::{DiskEnd, Known, LateEffect, Writes};
use super::event::{Cost, Event, Protection};
use super::operation::{Answer, Operation, Path};
use super::terms::{JOIN_SILENCE_NS, Terms};
use ftvm_machine::machine::intervention::BootCell;
use ftvm_machine::output::{HELD_BYTES, Output, OutputQueue};
use joining::{JoinStage, Joining};
use leaving::ClaimReason;
use operating::{HANDOVER_SILENCE, Joins, Leaving, StillOrder};
use pair::Pair;

pub(crate) use action::PrimaryAction;
pub(crate) use operating::FailedRequest;
pub use refusal::NotJoinable;
pub use silence::DISK_SILENCE;

/// The primary slows down when the backlog is above the detection time divided by this: 50 ms at 500 ms.
const SLOW_AT: u64 = 10;

/// The guest stands still while the backlog is above the detection time divided by this. The other half is left to the acks
/// that come late: at a whole detection time the backup counts as lost (PROTOCOL 15).
const STOP_AT: u64 = 2;

/// A mark that is unacked for longer than the detection time divided by this waits for more than the way to the backup and
/// back, which has to be shorter: its age then counts as backlog, so that the guest is slowed before its backup is taken for
/// lost.
const LONG_CHANNEL: u64 = 4;

/// A guest that has come from another host, or was to be handed over and was not, is not handed over because of a lost path
/// or a silent disk before this time.
const CALM: u64 = 60_000_000_000;

/// Bytes of one log frame beyond which the next entry begins another: a fraction of the largest frame, so that one large
/// entry always fits.
const FRAME_BYTES: usize = 1 << 20;

/// After a clean end the primary waits this long for the backup's ack of it, then ends all the same.
const END_WAIT: u64 = 2_000_000_000;

#[derive(Debug)]
enum Phase {
    /// The generation is mine alone; nobody else is eligible.
    Alone,
    /// A backup is joining; nothing has been granted yet.
    Joining(Joining),
    /// A backup is eligible, from the grant's first byte on.
    Paired(Box<Pair>),
    /// The backup may go live at any time; nothing is released under this generation any more (PROTOCOL 28).
    HandedOver { since: u64 },
    /// I have asked for the next generation; final (PROTOCOL 11).
    Claiming { since: u64, cause: ClaimReason },
    /// The process is about to end. [`Writes::Freely`] where nobody will carry the guest on: writes in flight may land at any
    /// time.
    Over { writes: Writes },
}

/// The primary of one guest.
#[derive(Debug)]
pub struct Primary {
    terms: Terms,
    generation: Generation,
    phase: Phase,
    held: OutputQueue,
    /// Every output before this one has left.
    released: OutputSeq,
    /// How the guest's life ended, if it has.
    ended: Option<EndReason>,
    /// Answers to [`PrimaryAction::TakeDirty`] that the vCPU thread still owes. Those of a join that was given up may come during
    /// the next one: each answer but the last is of no use.
    dirty_owed: u32,
    /// How many disks each host has a copy of: they are to be brought level too.
    private_disks: usize,
    joins: Joins,
    /// The operation under way, with the ticket that its answer names.
    asked: Option<(u64, Operation)>,
    paused: bool,
    still_order: StillOrder,
    boot: BootCell,
    divergences: u64,
    /// What this host no longer reaches.
    lost: BTreeSet<Path>,
    /// Disks that do not answer, and what may come of it.
    silent: BTreeMap<u8, LateEffect>,
    /// Until then it hands nothing over by itself: what is lost on both hosts would go to and fro.
    calm_until: u64,
}

impl Primary {
    /// A primary that owns its generation alone: just started, or just gone live.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Primary {
            terms,
            generation: terms.generation,
            phase: Phase::Alone,
            held: OutputQueue::default(),
            released: OutputSeq::default(),
            ended: None,
            dirty_owed: 0,
            private_disks: 0,
            joins: Joins::Open,
            asked: None,
            paused: false,
            still_order: StillOrder::None,
            boot: BootCell::default(),
            divergences: 0,
            lost: BTreeSet::new(),
            silent: BTreeMap::new(),
            calm_until: 0,
        }
    }

    /// The guest has just come from another host.
    pub(crate) fn came_over(&mut self, now: u64) {
        self.calm_until = now + CALM;
    }

    /// With the state to reset to, as soon as `boot` holds it, and a guest that is `paused` or not.
    #[must_use]
    pub fn with(self, boot: BootCell, paused: bool) -> Self {
        Primary { boot, paused, ..self }
    }

    /// Of a guest with so many disks of which each host has a copy of its own.
    #[must_use]
    pub(crate) fn with_private_disks(mut self, count: usize) -> Self {
        self.private_disks = count;
        self
    }

    /// The generation this side acts under.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether a backup may join now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_join(&self) -> Result<(), NotJoinable> {
        match &self.phase {
            Phase::Alone if self.ended.is_some() => Err(NotJoinable::GuestEnded),
            Phase::Alone if self.joins == Joins::Suspended => Err(NotJoinable::Suspended),
            Phase::Alone => match self.hanging_write() {
                Some(disk) => Err(NotJoinable::WriteHangs { disk }),
                None => Ok(()),
            },
            Phase::Over { .. } => Err(NotJoinable::GuestEnded),
            Phase::Joining(_) | Phase::Paired(_) => Err(NotJoinable::HasBackup),
            Phase::HandedOver { .. } => Err(NotJoinable::HandingOver),
            Phase::Claiming { .. } => Err(NotJoinable::Deciding),
        }
    }

    /// What the log has cost so far; `None` without a backup.
    #[must_use]
    pub fn cost(&self, now: u64) -> Option<Cost> {
        let Phase::Paired(pair) = &self.phase else { return None };
        Some(Cost {
            frames: pair.next_frame - 1,
            lag_ns: pair.tracker.execution_lag(now),
            idle_permille: pair.idle,
            ..pair.cost
        })
    }

    /// How protected the guest is.
    #[must_use]
    pub fn protection(&self) -> Protection {
        match &self.phase {
            Phase::Alone | Phase::Over { .. } => Protection::NotProtected,
            Phase::Joining(_) => Protection::Starting,
            Phase::Paired(pair) if !pair.level => Protection::Starting,
            Phase::Paired(pair) if pair.leaving == Leaving::Dismissed => Protection::NotProtected,
            Phase::Paired(_) => Protection::Protected,
            Phase::HandedOver { .. } | Phase::Claiming { .. } => Protection::Deciding,
        }
    }

    /// Whether the vCPU may go on producing (PROTOCOL 9): held outputs are bounded, and so is what the backup has received and
    /// not executed, namely by the detection time's worth of it.
    #[must_use]
    pub fn has_room(&self, now: u64) -> bool {
        let keeps_up = match &self.phase {
            Phase::Paired(pair) if pair.level => pair.backlog(now) < self.terms.detection_ns / STOP_AT,
            _ => true,
        };
        keeps_up && self.held.bytes() < HELD_BYTES
    }

    /// Outputs held back right now, and their bytes.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.held.len(), self.held.bytes())
    }

    /// How the guest's life ended, if it has.
    #[must_use]
    pub fn guest_end(&self) -> Option<&EndReason> {
        self.ended.as_ref()
    }

    /// Something leaves the guest: it waits here for its turn.
    pub fn hold(&mut self, output: Output) {
        self.held.push(output);
    }

    /// The guest's life is over; its last entries have been given to [`Primary::log`].
    pub(crate) fn guest_ended(&mut self, now: u64, reason: EndReason, actions: &mut Vec<PrimaryAction>) {
        self.ended = Some(reason);
        match &mut self.phase {
            Phase::Paired(pair) => pair.ended = pair.ended.or(Some(now)),
            Phase::Joining(_) => {
                actions.push(PrimaryAction::Close);
                self.phase = Phase::Alone;
            }
            Phase::Alone | Phase::HandedOver { .. } | Phase::Claiming { .. } | Phase::Over { .. } => {}
        }
        if self
            .asked
            .is_some_and(|(_, operation)| operation != Operation::PowerOff)
        {
            self.answer(Answer::failed("the guest has ended meanwhile"), actions);
        }
        self.check_end(now, actions);
    }

    /// Takes out the oldest held output, if it may leave at this moment. The caller reads the clock right before, and does
    /// nothing else between this and the system call (PROTOCOL 12).
    pub(crate) fn next_release(&mut self, now: u64) -> Option<Output> {
        match &self.phase {
            // While a backup is joining nothing is granted yet; from the state record on, its phase is `Paired`.
            Phase::Alone | Phase::Joining(_) => self.held.pop(),
            Phase::Paired(pair) if pair.lease.valid_at(now) => self.held.pop_covered(pair.tracker.covered()),
            Phase::Paired(_) | Phase::HandedOver { .. } | Phase::Claiming { .. } | Phase::Over { .. } => None,
        }
    }

    /// Whether a write whose turn has come may start at this moment (PROTOCOL 12, 14); one to a private disk may unless the
    /// answer is [`Writes::Settling`].
    #[must_use]
    pub(crate) fn may_write(&self, now: u64) -> Writes {
        match &self.phase {
            Phase::Alone => Writes::Freely,
            Phase::Joining(joining) if matches!(joining.stage, JoinStage::Blocks | JoinStage::Rounds) => Writes::Freely,
            Phase::Joining(_) => Writes::Settling,
            Phase::Paired(pair) if pair.lease.valid_at(now) => Writes::Until(pair.lease.ends_at()),
            Phase::Over { writes } => *writes,
            Phase::Paired(_) | Phase::HandedOver { .. } | Phase::Claiming { .. } => Writes::NotNow,
        }
    }

    /// The call that lets an output go has returned (PROTOCOL 7): a frame or console bytes have landed, a disk request is
    /// released to its plan. The log may say so.
    pub(crate) fn call_returned(&mut self, seq: OutputSeq) {
        self.released = self.released.max(OutputSeq(seq.0 + 1));
    }

    /// Whether what lies at or before `position` is acked, or needs no ack as there is no backup.
    #[must_use]
    pub fn covered(&self, position: Position) -> bool {
        match &self.phase {
            Phase::Alone | Phase::Joining(_) => true,
            Phase::Paired(pair) => pair.tracker.covers(position),
            Phase::HandedOver { .. } | Phase::Claiming { .. } | Phase::Over { .. } => false,
        }
    }

    /// Whether the backup knows as much of the end of a disk request as it must before a write may touch the same blocks.
    #[must_use]
    pub fn knows(&self, end: &DiskEnd) -> bool {
        match (&self.phase, end.known) {
            (Phase::Paired(pair), Known::Executed) => pair.tracker.executed() >= end.at,
            _ => self.covered(end.at),
        }
    }

    /// The backup says something under `generation`. What belongs to an older one is from before this side moved on.
    pub(crate) fn message(
        &mut self,
        now: u64,
        generation: Generation,
        message: Message,
        actions: &mut Vec<PrimaryAction>,
    ) {
        if generation > self.generation {
            return self.superseded(generation, actions);
        }
        if generation < self.generation {
            return;
        }
        if let Phase::Joining(joining) = &mut self.phase {
            joining.heard = now;
        }
        let Phase::Paired(pair) = &mut self.phase else { return };
        match message {
            Message::Ack(ack) => self.ack(now, &ack, actions),
            Message::Diverged { at, what } => {
                self.divergences += 1;
                actions.push(PrimaryAction::Report(Event::Diverged {
                    exit: at.exit.0,
                    what: what.clone(),
                }));
                let reason = format!("the backup diverged at exit {}.{}: {what}", at.exit.0, at.k);
                self.suspect(now, reason, actions);
            }
            Message::Bye if pair.ended.is_some() => self.end_alone(now, actions),
            Message::Bye if pair.leaving == Leaving::Dismissed => self.move_on(now, actions),
            Message::Health(health) => pair.health = Some(health),
            Message::BlocksWritten { .. } => {} // of a join that is over
            other => {
                let reason = format!("the backup sent what no backup sends: {}", other.name());
                self.suspect(now, reason, actions);
            }
        }
    }

    /// The connection to the backup is gone.
    pub(crate) fn closed(&mut self, now: u64, why: &str, actions: &mut Vec<PrimaryAction>) {
        match &self.phase {
            Phase::Joining(_) => {
                self.give_join_up(actions);
                self.report_state(&format!("the joining backup went away: {why}"), actions);
            }
            Phase::Paired(pair) if pair.ended.is_some() && pair.tracker.all_acked() => self.end_alone(now, actions),
            Phase::Paired(_) => self.suspect(now, format!("connection to the backup: {why}"), actions),
            // The storage knows what that means; it is no reason yet to take the backup for dead.
            Phase::HandedOver { .. } => self.ask(now, ClaimReason::HandedOver, actions),
            Phase::Alone | Phase::Claiming { .. } | Phase::Over { .. } => {}
        }
    }

    /// A heartbeat leaves: acks may echo its send time.
    pub(crate) fn heartbeat_sent(&mut self, sent_ns: u64) {
        if let Phase::Paired(pair) = &mut self.phase {
            pair.tracker.heartbeat_sent(sent_ns);
        }
    }

    /// A heartbeat of this guest arrived.
    pub(crate) fn heartbeat(&mut self, now: u64, heartbeat: &Heartbeat, actions: &mut Vec<PrimaryAction>) {
        if heartbeat.generation > self.generation {
            return self.superseded(heartbeat.generation, actions);
        }
        if let Phase::Paired(pair) = &mut self.phase {
            pair.detector.heartbeat(now);
        }
    }

    /// Time passes; at least every eighth of the detection time.
    pub(crate) fn tick(&mut self, now: u64, actions: &mut Vec<PrimaryAction>) {
        match &mut self.phase {
            Phase::Joining(joining) if now.saturating_sub(joining.heard) > JOIN_SILENCE_NS => {
                let why = format!("it has been silent for {} s", JOIN_SILENCE_NS / 1_000_000_000);
                actions.push(PrimaryAction::Close);
                self.closed(now, &why, actions);
            }
            Phase::Paired(_) => self.pair_tick(now, actions),
            Phase::HandedOver { since } if now.saturating_sub(*since) > self.terms.detection_ns * HANDOVER_SILENCE => {
                self.suspect(now, "the backup has not gone live".to_owned(), actions);
            }
            Phase::Alone
            | Phase::Joining(_)
            | Phase::HandedOver { .. }
            | Phase::Claiming { .. }
            | Phase::Over { .. } => {}
        }
    }

    /// To be called when what may leave has left; `writes` to shared disks are in flight.
    pub(crate) fn settled(&mut self, now: u64, writes: usize, actions: &mut Vec<PrimaryAction>) {
        if let Phase::Joining(joining) = &mut self.phase
            && joining.stage == JoinStage::Settling
            && writes == 0
        {
            if self.private_disks > 0 {
                joining.send_blocks(JoinStage::LastBlocks, actions);
            } else {
                joining.stage = JoinStage::Asked;
                actions.push(PrimaryAction::SaveState);
            }
        }
        self.check_handover(now, writes, actions);
        self.check_end(now, actions);
    }

    fn report_state(&self, why: &str, actions: &mut Vec<PrimaryAction>) {
        actions.push(PrimaryAction::Report(Event::State {
            protection: self.protection(),
            why: why.to_owned(),
        }));
    }
}

#[cfg(test)]
mod joining_tests;
#[cfg(test)]
mod operating_tests;
#[cfg(test)]
mod silence_tests;
#[cfg(test)]
mod tests;
