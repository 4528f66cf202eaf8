//! The primary's decisions, pure: who may hear what the guest says, when the backup is lost, when to leave the pair.
//!
//! Time (CLOCK_BOOTTIME nanoseconds), messages and answers of the storage come in as arguments; what to do comes out as
//! [`Action`]s, which the link ([`super::link`]) carries out. Each rule of PROTOCOL is named where it is kept.

mod joining;
mod leaving;
mod operating;
mod pair;
mod silence;

use std::collections::{BTreeMap, BTreeSet};

use ftvm_schema::entry::{EndReason, Generation, Incarnation, OutputSeq, Position};
use logging_channel::message::{Heartbeat, Message};

use super::clone::{Blocks, Selection};
use super::disks::{DiskEnd, Known};
use super::event::{Cost, Event, Protection};
use super::exit_code::ExitCode;
use super::operation::{Answer, Operation, Path};
use super::terms::Terms;
use crate::host_event::Control;
use ftvm_machine::machine::intervention::BootCell;
use ftvm_machine::output::{HELD_BYTES, Output, OutputQueue};
use joining::{Joining, Stage};
use leaving::ClaimReason;
use operating::{HANDOVER_SILENCE, Joins, Leaving, Standing};
use pair::Pair;

pub use operating::Failure;
pub use silence::{DISK_SILENCE, LateEffect, UnderWay};

/// A joining backup that shows no sign of life for this long while it takes the state is given up.
const JOIN_SILENCE: u64 = 10_000_000_000;

/// The primary slows down when the backlog is above this fraction of the detection time: 50 ms at 500 ms.
const SLOW_AT: u64 = 10;

/// It stops when the backlog is above this one, until it is not. The other half is left to the acks that come late: at a whole
/// detection time the backup counts as lost (PROTOCOL 15).
const STOP_AT: u64 = 2;

/// A mark that has been unacked for this part of the detection time waits for more than the channel: the guest is slowed before its
/// backup is taken for lost. A round trip is to be shorter.
const LONG_CHANNEL: u64 = 4;

/// A guest that has come from another host, or was to be handed over and was not, is not handed over because of a lost path
/// or a silent disk before this time.
const CALM: u64 = 60_000_000_000;

/// Bytes of one log frame beyond which the next entry begins another: a fraction of the largest frame, so that one large
/// entry always fits.
const FRAME_BYTES: usize = 1 << 20;

/// After a clean end the primary waits this long for the backup's ack of it, then ends all the same.
const END_WAIT: u64 = 2_000_000_000;

/// What the link is to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Send on the connection to the backup.
    Send(Message),
    /// Close the connection to the backup, after what has been sent.
    Close,
    /// Have the vCPU thread say which pages have been written since it was last asked.
    TakeDirty,
    /// Send pages to the joining backup, and say when they are on their way ([`Primary::pages_sent`]).
    SendPages { to: Incarnation, pages: Selection },
    /// Send blocks of the private disks to the joining backup, and say when it has written them and they are stable there
    /// ([`Primary::blocks_sent`]).
    SendBlocks { to: Incarnation, blocks: Blocks },
    /// Have the vCPU thread save the machine for a joining backup.
    SaveState,
    /// The guest is to stand still for so many thousandths of the time, so that the backup keeps up.
    Pace(u32),
    /// Nobody reads the log any more.
    StopLogging,
    /// Have the vCPU thread do something, and say so ([`Primary::obeyed`]).
    Order(Control),
    /// Have the guest's life end.
    PowerOff,
    /// Tell the guest of what was withheld ([`Failure::Withheld`]).
    TellFailures,
    /// An operation has come to its end.
    Answer { ticket: u64, answer: Answer },
    /// Kill this process, at once and without a word.
    Die,
    /// Ask for the generation after this one (PROTOCOL 10).
    Claim(Generation),
    /// Tell the world.
    Report(Event),
    /// End this process.
    End { code: ExitCode, why: String },
}

/// Whether shared-disk writes may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Nobody else may become live.
    Freely,
    /// Only if they have landed by this CLOCK_BOOTTIME.
    Until(u64),
    /// No.
    NotNow,
    /// No, and not to private disks either: a joining backup is about to get the state, and has what is on the disks.
    Settling,
}

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
    /// The process is about to end; whether nobody will carry on, so that writes in flight may land whenever they do.
    Over { writes: Writes },
}

/// The primary of one guest.
#[derive(Debug)]
pub struct Primary {
    terms: Terms,
    generation: Generation,
    phase: Phase,
    held: OutputQueue,
    released: OutputSeq,
    ended: Option<EndReason>,
    /// Answers to [`Action::TakeDirty`] that the vCPU thread still owes. Those of a join that was given up may come during
    /// the next one: each answer but the last is of no use.
    dirty_owed: u32,
    /// How many disks each host has a copy of: they are to be brought level too.
    private_disks: usize,
    joins: Joins,
    /// The operation under way.
    asked: Option<(u64, Operation)>,
    paused: bool,
    standing: Standing,
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
            standing: Standing::Runs,
            boot: BootCell::default(),
            divergences: 0,
            lost: BTreeSet::new(),
            silent: BTreeMap::new(),
            calm_until: 0,
        }
    }

    /// The guest has just come from another host.
    pub fn came_over(&mut self, now: u64) {
        self.calm_until = now + CALM;
    }

    /// With the state to reset to, as soon as `boot` holds it, and a guest that is `paused` or not.
    #[must_use]
    pub fn with(self, boot: BootCell, paused: bool) -> Self {
        Primary { boot, paused, ..self }
    }

    /// Of a guest with so many disks of which each host has a copy of its own.
    #[must_use]
    pub fn with_private_disks(mut self, count: usize) -> Self {
        self.private_disks = count;
        self
    }

    /// The generation this side acts under.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether a backup may join now; if not, why.
    ///
    /// # Errors
    /// A sentence for the refused backup.
    pub fn may_join(&self) -> Result<(), String> {
        match &self.phase {
            Phase::Alone if self.ended.is_none() && self.joins == Joins::Open => match self.hanging_write() {
                Some(disk) => Err(format!("disk {disk} does not answer a write, which must end first")),
                None => Ok(()),
            },
            Phase::Alone if self.ended.is_none() => Err("the operator has suspended protection".to_owned()),
            Phase::Alone | Phase::Over { .. } => Err("the guest has ended".to_owned()),
            Phase::Joining(_) | Phase::Paired(_) => Err("the guest already has a backup".to_owned()),
            Phase::HandedOver { .. } => Err("the guest is being handed over".to_owned()),
            Phase::Claiming { .. } => Err("the primary is deciding who lives; try again".to_owned()),
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
    pub fn guest_ended(&mut self, now: u64, reason: EndReason, actions: &mut Vec<Action>) {
        self.ended = Some(reason);
        match &mut self.phase {
            Phase::Paired(pair) => pair.ended = pair.ended.or(Some(now)),
            Phase::Joining(_) => {
                actions.push(Action::Close);
                self.phase = Phase::Alone;
            }
            Phase::Alone | Phase::HandedOver { .. } | Phase::Claiming { .. } | Phase::Over { .. } => {}
        }
        if self
            .asked
            .is_some_and(|(_, operation)| operation != Operation::PowerOff)
        {
            self.answer(Err("the guest has ended meanwhile".to_owned()), actions);
        }
        self.check_end(now, actions);
    }

    /// The end of the oldest held output's wait, if it may leave at this moment. The caller reads the clock right
    /// before, and does nothing else between this and the system call (PROTOCOL 12).
    pub fn next_release(&mut self, now: u64) -> Option<Output> {
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
    pub fn may_write(&self, now: u64) -> Writes {
        match &self.phase {
            Phase::Alone => Writes::Freely,
            Phase::Joining(joining) if matches!(joining.stage, Stage::Blocks | Stage::Rounds) => Writes::Freely,
            Phase::Joining(_) => Writes::Settling,
            Phase::Paired(pair) if pair.lease.valid_at(now) => Writes::Until(pair.lease.ends_at()),
            Phase::Over { writes } => *writes,
            Phase::Paired(_) | Phase::HandedOver { .. } | Phase::Claiming { .. } => Writes::NotNow,
        }
    }

    /// An output's system call has returned (PROTOCOL 7).
    pub fn released(&mut self, seq: OutputSeq) {
        self.released = self.released.max(OutputSeq(seq.0 + 1));
    }

    /// Up to where inputs and outputs are acked (or, alone, need no ack).
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
    pub fn message(&mut self, now: u64, generation: Generation, message: Message, actions: &mut Vec<Action>) {
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
                actions.push(Action::Report(Event::Diverged {
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
    pub fn closed(&mut self, now: u64, why: &str, actions: &mut Vec<Action>) {
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
    pub fn heartbeat_sent(&mut self, sent_ns: u64) {
        if let Phase::Paired(pair) = &mut self.phase {
            pair.tracker.heartbeat_sent(sent_ns);
        }
    }

    /// A heartbeat of this guest arrived.
    pub fn heartbeat(&mut self, now: u64, heartbeat: &Heartbeat, actions: &mut Vec<Action>) {
        if heartbeat.generation > self.generation {
            return self.superseded(heartbeat.generation, actions);
        }
        if let Phase::Paired(pair) = &mut self.phase {
            pair.detector.heartbeat(now);
        }
    }

    /// Time passes; at least every quarter of the detection time.
    pub fn tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Joining(joining) if now.saturating_sub(joining.heard) > JOIN_SILENCE => {
                let why = format!("it has been silent for {} s", JOIN_SILENCE / 1_000_000_000);
                actions.push(Action::Close);
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
    pub fn settled(&mut self, now: u64, writes: usize, actions: &mut Vec<Action>) {
        if let Phase::Joining(joining) = &mut self.phase
            && joining.stage == Stage::Settling
            && writes == 0
        {
            if self.private_disks > 0 {
                joining.send_blocks(Stage::LastBlocks, actions);
            } else {
                joining.stage = Stage::Asked;
                actions.push(Action::SaveState);
            }
        }
        self.check_handover(now, writes, actions);
        self.check_end(now, actions);
    }

    fn report_state(&self, why: &str, actions: &mut Vec<Action>) {
        actions.push(Action::Report(Event::State {
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
