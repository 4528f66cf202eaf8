//! The backup's decisions, pure: what to ack, when the primary is dead, when this side may go live.
//!
//! Going live needs three things, got in parallel: the lease outwaited, the test-and-set won, the log drained
//! (PROTOCOL 13). Suspicion is final (PROTOCOL 11): from then on nothing is acked and nothing received counts.

mod action;
mod claiming;
mod joining;

use fault_detector::detector::{Detector, DetectorConfig, PairRole, Verdict};
use ftvm_schema::entry::{Chunk, EndReason, ExitSeq, Generation, Input, LogEntry, Position};
use logging_channel::chunk::Assembler;
use logging_channel::flow::{Inbox, LeaseWait};
use logging_channel::message::{Health, Heartbeat, Message};
use logging_channel::session::presentable;

use super::event::{Event, Protection};
use super::exit_code::ExitCode;
use super::terms::{JOIN_SILENCE_NS, Terms};
use claiming::Claim;
use ftvm_machine::machine::state::MAX_RECORD;

pub(crate) use action::{BackupAction, only_the_last_ack};

/// How far this side has executed is acked this often at most within a detection time where no frame is to be acked. The
/// primary measures the execution lag by it, slows its guest down at a tenth of the detection time and speeds it up again below
/// half of that: what is added to the lag by waiting for an ack must be small against both.
const EXECUTED_ACKS: u64 = 50;

/// Most that two hosts' clocks drift apart, in parts per million: 500 is what NTP may slew, each way.
const DRIFT_PPM: u32 = 1000;

#[derive(Debug)]
enum Phase {
    /// Taking the state; not eligible. The primary was heard at `last`.
    Joining { state: Assembler, loaded: bool, last: u64 },
    /// Eligible.
    Following,
    /// The primary's clean end has been received; it is being replayed.
    Ending,
    /// The primary is suspected; final.
    Claiming(Claim),
    /// Live, or about to end.
    Over,
}

/// The backup of one guest.
#[derive(Debug)]
pub struct Backup {
    terms: Terms,
    phase: Phase,
    /// From the grant on.
    inbox: Option<Inbox>,
    detector: Detector,
    lease: LeaseWait,
    /// The last read of a shared disk that is to be executed here.
    read_at: Option<ExitSeq>,
    /// When an ack last said nothing but how far this side has executed, and when the next one is to, if there is more to
    /// say than the last ack of any kind said.
    executed_acked: u64,
    executed_owed: Option<u64>,
    boot: Assembler,
    /// What this host reaches, and whether the primary knows.
    health: (Health, Told),
    /// Messages about blocks of private disks, received and carried out.
    blocks: (u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    No,
    Yes,
}

impl Backup {
    /// A backup that has passed the handshake.
    #[must_use]
    pub fn new(terms: Terms, now: u64) -> Self {
        let detector = DetectorConfig {
            detection_ns: terms.detection_ns,
            role: PairRole::Backup,
        };
        Backup {
            terms,
            phase: Phase::Joining {
                state: Assembler::new(MAX_RECORD),
                loaded: false,
                last: now,
            },
            inbox: None,
            detector: Detector::new(detector, now),
            lease: LeaseWait::new(terms.lease_ns, DRIFT_PPM),
            read_at: None,
            executed_acked: now,
            executed_owed: None,
            boot: Assembler::new(MAX_RECORD),
            health: (Health::default(), Told::Yes),
            blocks: (0, 0),
        }
    }

    /// The generation under which this backup was made.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.terms.generation
    }

    /// Whether heartbeats may still be sent under that generation (PROTOCOL 11).
    #[must_use]
    pub fn may_speak(&self) -> bool {
        matches!(self.phase, Phase::Joining { .. } | Phase::Following)
    }

    /// How protected the guest is, as seen from here.
    #[must_use]
    pub fn protection(&self) -> Protection {
        match &self.phase {
            Phase::Joining { .. } => Protection::Starting,
            Phase::Following => Protection::Protected,
            Phase::Claiming(_) => Protection::Deciding,
            Phase::Ending | Phase::Over => Protection::NotProtected,
        }
    }

    /// The primary says something under `generation`.
    pub(crate) fn message(
        &mut self,
        now: u64,
        generation: Generation,
        message: Message,
        actions: &mut Vec<BackupAction>,
    ) {
        if matches!(self.phase, Phase::Claiming(_) | Phase::Over) {
            return; // PROTOCOL 11
        }
        if generation != self.terms.generation {
            let why = format!(
                "the primary's generation {} changed to {} on one connection",
                self.terms.generation.0, generation.0
            );
            return self.give_up(why, actions);
        }
        match message {
            Message::State(chunk) => self.state(now, chunk, actions),
            Message::Pages { numbers, content } => self.pages(now, numbers, content, actions),
            Message::Blocks { disk, numbers, content } => {
                let order = BackupAction::LoadBlocks { disk, numbers, content };
                self.blocks(now, order, actions);
            }
            Message::FlushBlocks => self.blocks(now, BackupAction::FlushBlocks, actions),
            Message::Grant(grant) => self.grant(now, &grant, actions),
            Message::Log { number, entries } => self.log(now, number, entries, actions),
            Message::Bye if matches!(self.phase, Phase::Ending) => {}
            Message::Refuse { reason } => {
                self.give_up(format!("the primary refuses: {}", presentable(&reason)), actions);
            }
            // The end is known, and what else there was to say about the pair is void.
            Message::Dismiss | Message::Handover | Message::Boot(_) if matches!(self.phase, Phase::Ending) => {}
            Message::Dismiss => self.dismissed(actions),
            Message::Handover if matches!(self.phase, Phase::Following) => self.handed_over(now, actions),
            Message::Boot(chunk) if matches!(self.phase, Phase::Following) => self.boot(chunk, actions),
            other => self.give_up(format!("the primary sent what no primary sends: {other:?}"), actions),
        }
    }

    /// What this host reaches of what the guest needs.
    pub(crate) fn health(&mut self, health: Health, actions: &mut Vec<BackupAction>) {
        if self.health.0 != health {
            self.health = (health, Told::No);
        }
        if matches!(self.phase, Phase::Following) {
            self.tell_health(actions);
        }
    }

    fn tell_health(&mut self, actions: &mut Vec<BackupAction>) {
        if self.health.1 == Told::No {
            self.health.1 = Told::Yes;
            actions.push(BackupAction::Send(Message::Health(self.health.0.clone())));
        }
    }

    /// The primary wants this backup no more (PROTOCOL 27): from its last word on it never asks for the generation.
    fn dismissed(&mut self, actions: &mut Vec<BackupAction>) {
        actions.push(BackupAction::Send(Message::Bye));
        self.give_up("dismissed by the primary's operator".to_owned(), actions);
    }

    /// The primary releases nothing more under this generation: there is no lease to outwait (PROTOCOL 28).
    fn handed_over(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        actions.push(BackupAction::Report(Event::HandedOver));
        self.claim(now, true, actions);
    }

    fn boot(&mut self, chunk: Chunk, actions: &mut Vec<BackupAction>) {
        match self.boot.add(chunk) {
            Ok(Some(record)) => actions.push(BackupAction::KeepBoot(record)),
            Ok(None) => {}
            Err(error) => self.give_up(format!("boot record: {error}"), actions),
        }
    }

    /// The vCPU thread has executed up to here. Acked at once where a read of a shared disk lies before it, as a write to
    /// these blocks may be waiting for that; otherwise now and then, and with the next frame.
    pub(crate) fn executed(&mut self, now: u64, at: Position, actions: &mut Vec<BackupAction>) {
        if let Some(inbox) = &mut self.inbox {
            inbox.executed(at);
        }
        let read = self.read_at.take_if(|exit| *exit <= at.exit).is_some();
        if matches!(self.phase, Phase::Following) {
            let due = self.executed_acked + self.terms.detection_ns / EXECUTED_ACKS;
            self.executed_owed = Some(if read { now } else { due });
            self.due(now, actions);
        }
    }

    /// When there will be something to do that nothing but the time calls for: tell [`Backup::due`] then. Not a tick, which
    /// judges the primary.
    #[must_use]
    pub fn wakes_at(&self) -> Option<u64> {
        match &self.phase {
            Phase::Following => self.executed_owed,
            Phase::Claiming(claim) if !claim.lease_over => Some(self.lease.over_at()),
            _ => None,
        }
    }

    /// The time of [`Backup::wakes_at`] may have come.
    pub(crate) fn due(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        match &self.phase {
            Phase::Following if self.executed_owed.is_some_and(|at| at <= now) => {
                self.executed_acked = now;
                self.ack(now, actions);
            }
            Phase::Claiming(_) => self.advance(now, actions),
            _ => {}
        }
    }

    /// The replay differs from the recording: no usable backup any more, and never entitled (PROTOCOL 16, 17).
    pub(crate) fn diverged(&mut self, at: Position, what: &str, actions: &mut Vec<BackupAction>) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if !matches!(self.phase, Phase::Claiming(_)) {
            actions.push(BackupAction::Send(Message::Diverged {
                at,
                what: what.to_owned(),
            }));
        }
        self.give_up(format!("diverged: {what}"), actions);
    }

    /// The guest's recorded end has been replayed (PROTOCOL 18).
    pub(crate) fn guest_ended(&mut self, reason: &EndReason, actions: &mut Vec<BackupAction>) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if matches!(self.phase, Phase::Ending) {
            actions.push(BackupAction::Send(Message::Bye));
        }
        self.phase = Phase::Over;
        let (code, why) = super::event::clean_end(reason);
        actions.push(BackupAction::End { code, why });
    }

    /// The connection is gone. Early evidence: the test-and-set may start, the lease is outwaited all the same.
    pub(crate) fn closed(&mut self, now: u64, why: &str, actions: &mut Vec<BackupAction>) {
        match &self.phase {
            Phase::Joining { .. } => {
                self.give_up(
                    format!("the primary went away before this backup was complete: {why}"),
                    actions,
                );
            }
            Phase::Following => self.suspect(now, format!("connection to the primary: {why}"), actions),
            Phase::Ending | Phase::Claiming(_) | Phase::Over => {}
        }
    }

    /// A heartbeat of this guest arrived.
    pub(crate) fn heartbeat(&mut self, now: u64, heartbeat: &Heartbeat, actions: &mut Vec<BackupAction>) {
        if heartbeat.generation > self.terms.generation && !matches!(self.phase, Phase::Claiming(_) | Phase::Over) {
            self.phase = Phase::Over;
            let why = format!(
                "generation {} is live, this backup was made under {}",
                heartbeat.generation.0, self.terms.generation.0
            );
            return actions.push(BackupAction::End {
                code: ExitCode::Lost,
                why,
            });
        }
        if heartbeat.generation == self.terms.generation {
            self.detector.heartbeat(now);
            if let Some(inbox) = &mut self.inbox {
                inbox.heard(heartbeat.sent_ns);
            }
        }
    }

    /// This side takes in nothing of what the primary sends, as it has too much to execute: what it does not hear meanwhile is
    /// no silence of the primary's.
    pub(crate) fn takes_nothing_in(&mut self, now: u64) {
        self.detector.evidence(now);
    }

    /// Whether what the primary sends still counts: it is the log, or what comes before it (PROTOCOL 11).
    #[must_use]
    pub fn listens(&self) -> bool {
        matches!(self.phase, Phase::Joining { .. } | Phase::Following | Phase::Ending)
    }

    /// Time passes; at least every eighth of the detection time.
    pub(crate) fn tick(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        match &mut self.phase {
            Phase::Joining { last, .. } if now.saturating_sub(*last) > JOIN_SILENCE_NS => {
                let why = format!(
                    "the primary sent nothing for {} s during the join",
                    JOIN_SILENCE_NS / 1_000_000_000
                );
                self.give_up(why, actions);
            }
            Phase::Following => match self.detector.step(now) {
                Verdict::Lost(reason) => self.suspect(now, reason.to_string(), actions),
                Verdict::Healthy | Verdict::SelfStalled { .. } => {}
            },
            Phase::Claiming(_) => self.advance(now, actions),
            Phase::Joining { .. } | Phase::Ending | Phase::Over => {}
        }
    }

    fn log(&mut self, now: u64, number: u64, entries: Vec<LogEntry>, actions: &mut Vec<BackupAction>) {
        let (Phase::Following | Phase::Ending, Some(inbox)) = (&self.phase, &mut self.inbox) else {
            return self.give_up("log came before the grant".to_owned(), actions);
        };
        let ends = entries.iter().any(|entry| matches!(entry, LogEntry::End { .. }));
        if let Err(error) = inbox.admit(self.terms.generation, number, entries) {
            // Not acked (PROTOCOL 6); the stream cannot be trusted any further, but what is stored stands.
            return self.suspect(now, format!("the log does not continue: {error}"), actions);
        }
        let stored: Vec<LogEntry> = std::iter::from_fn(|| inbox.take()).collect();
        self.read_at = stored.iter().rev().find_map(own_read).or(self.read_at);
        if ends {
            self.phase = Phase::Ending;
        }
        self.detector.evidence(now);
        if !stored.is_empty() {
            actions.push(BackupAction::Deliver(stored));
        }
        self.ack(now, actions);
    }

    fn ack(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        self.executed_owed = None;
        if let Some(ack) = self.inbox.as_mut().and_then(Inbox::ack) {
            self.lease.sent(now);
            actions.push(BackupAction::Send(Message::Ack(ack)));
        }
    }

    fn give_up(&mut self, why: String, actions: &mut Vec<BackupAction>) {
        self.phase = Phase::Over;
        actions.push(BackupAction::End {
            code: ExitCode::NotEntitled,
            why,
        });
    }
}

/// Where an entry has this side read a shared disk.
fn own_read(entry: &LogEntry) -> Option<ExitSeq> {
    match entry {
        LogEntry::Input {
            at,
            input: Input::DiskRead { .. },
        } => Some(*at),
        _ => None,
    }
}

#[cfg(test)]
mod joining_tests;
#[cfg(test)]
mod tests;
