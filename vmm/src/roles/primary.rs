//! The primary's decisions, pure: who may hear what the guest says, when the backup is lost, when to leave the pair.
//!
//! Time (CLOCK_BOOTTIME nanoseconds), messages and answers of the storage come in as arguments; what to do comes out as
//! [`Action`]s. The shell (`run::lead`) has the sockets. Each rule of PROTOCOL is named where it is kept.

use fault_detector::detector::{Config, Detector, Role, Verdict};
use logging_channel::chunk;
use logging_channel::codec::data_bytes;
use logging_channel::entry::{EndReason, Generation, Incarnation, LogEntry, Mark, OutputSeq, Position};
use logging_channel::flow::{AckTracker, Lease, Pace};
use logging_channel::message::{Ack, Grant, Heartbeat, Message};
use shared_disk::arbiter::Outcome;

use super::clone::{After, Rounds, Selection};
use super::disks::{DiskEnd, Known};
use super::event::{Cost, EXIT_LOST, Event, Protection};
use crate::output::{HELD_BYTES, Output, OutputQueue};

/// A joining backup that shows no sign of life for this long while it takes the state is given up.
const JOIN_SILENCE: u64 = 10_000_000_000;

/// The primary slows down when the execution lag is above this fraction of the detection time: 50 ms at 500 ms.
const SLOW_AT: u64 = 10;

/// Bytes of one log frame beyond which the next entry begins another: a fraction of the largest frame, so that one large
/// entry always fits.
const FRAME_BYTES: usize = 1 << 20;

/// After a clean end the primary waits this long for the backup's ack of it, then ends all the same.
const END_WAIT: u64 = 2_000_000_000;

/// What the shell is to do.
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
    /// Have the vCPU thread save the machine for a joining backup.
    SaveState,
    /// The guest is to stand still for so many thousandths of the time, so that the backup keeps up.
    Pace(u32),
    /// Nobody reads the log any more.
    StopLogging,
    /// Ask for the generation after this one (PROTOCOL 10).
    Claim(Generation),
    /// Tell the world.
    Report(Event),
    /// End this process.
    End { code: u8, why: String },
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
}

/// What is fixed for this life.
#[derive(Clone, Copy, Debug)]
pub struct PrimaryConfig {
    pub me: Incarnation,
    pub guest: u128,
    pub detection_ns: u64,
    pub lease_ns: u64,
}

#[derive(Debug)]
enum Phase {
    /// The generation is mine alone; nobody else is eligible.
    Alone,
    /// A backup is joining; nothing has been granted yet.
    Joining(Joining),
    /// A backup is eligible, from the grant's first byte on.
    Paired(Box<Pair>),
    /// I have asked for the next generation; final (PROTOCOL 11).
    Claiming { since: u64 },
    /// The process is about to end; whether nobody will carry on, so that writes in flight may land whenever they do.
    Over { writes: Writes },
}

/// A backup that is getting the guest's pages while the guest runs on.
#[derive(Debug)]
struct Joining {
    backup: Incarnation,
    begun: u64,
    /// The last sign of life.
    heard: u64,
    rounds: Rounds,
    stage: Stage,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Rounds,
    /// The state record is next, once no write is in flight: one that began without a lease has no fence, and could land
    /// after the backup has gone live (PROTOCOL 14).
    Settling,
    /// It has been asked for.
    Asked,
}

#[derive(Debug)]
struct Pair {
    backup: Incarnation,
    tracker: AckTracker,
    lease: Lease,
    detector: Detector,
    next_frame: u64,
    cost: Cost,
    pace: Pace,
    /// What was last said of it.
    idle: u32,
    /// The last mark sent: repeated when the guest has nothing new to say.
    mark: Mark,
    mark_sent: u64,
    last_ack: u64,
    /// Whether the backup has acked anything since the grant: before that it is still taking the state.
    level: bool,
    released_told: OutputSeq,
    ended: Option<u64>,
}

/// The primary of one guest.
#[derive(Debug)]
pub struct Primary {
    config: PrimaryConfig,
    generation: Generation,
    phase: Phase,
    held: OutputQueue,
    released: OutputSeq,
    ended: Option<EndReason>,
}

impl Primary {
    /// A primary that owns `generation` alone: just started, or just gone live.
    #[must_use]
    pub fn new(config: PrimaryConfig, generation: Generation) -> Self {
        Primary {
            config,
            generation,
            phase: Phase::Alone,
            held: OutputQueue::default(),
            released: OutputSeq::default(),
            ended: None,
        }
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
            Phase::Alone if self.ended.is_none() => Ok(()),
            Phase::Alone | Phase::Over { .. } => Err("the guest has ended".to_owned()),
            Phase::Joining(_) | Phase::Paired(_) => Err("the guest already has a backup".to_owned()),
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
            Phase::Paired(_) => Protection::Protected,
            Phase::Claiming { .. } => Protection::Deciding,
        }
    }

    /// Whether the vCPU may go on producing (PROTOCOL 9): held outputs are bounded, and so is what the backup has received and
    /// not executed, namely by the detection time's worth of it.
    #[must_use]
    pub fn has_room(&self, now: u64) -> bool {
        let keeps_up = match &self.phase {
            Phase::Paired(pair) if pair.level => pair.tracker.execution_lag(now) < self.config.detection_ns,
            _ => true,
        };
        keeps_up && self.held.bytes() < HELD_BYTES
    }

    /// Outputs held back right now, and their bytes.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.held.len(), self.held.bytes())
    }

    /// A backup has passed the handshake: it gets the guest's pages in rounds, then, as soon as no write is in flight
    /// ([`Primary::settled`]), the state record.
    pub fn joined(&mut self, now: u64, backup: Incarnation, actions: &mut Vec<Action>) {
        self.phase = Phase::Joining(Joining {
            backup,
            begun: now,
            heard: now,
            rounds: Rounds::default(),
            stage: Stage::Rounds,
        });
        actions.push(Action::TakeDirty);
        self.report_state("a backup is joining", actions);
    }

    /// The vCPU thread has read the dirty log.
    pub fn dirty(&mut self, now: u64, pages: Vec<u64>, actions: &mut Vec<Action>) {
        if let Phase::Joining(joining) = &mut self.phase {
            joining.heard = now;
            actions.push(Action::SendPages {
                to: joining.backup,
                pages: joining.rounds.looked(pages),
            });
        }
    }

    /// The pages of an [`Action::SendPages`] are on their way to the backup `to`.
    pub fn pages_sent(&mut self, now: u64, to: Incarnation, pages: u64, bytes: u64, actions: &mut Vec<Action>) {
        if let Phase::Joining(joining) = &mut self.phase
            && joining.backup == to
            && joining.stage == Stage::Rounds
        {
            joining.heard = now;
            match joining.rounds.sent(pages, bytes) {
                After::Look => actions.push(Action::TakeDirty),
                After::State => joining.stage = Stage::Settling,
            }
        }
    }

    /// The machine's state at `mark`, for the joining backup; the guest was stopped for it for `stopped_ns` nanoseconds. Outputs before it have all been released: until here
    /// nothing was granted. Those behind it wait for acks (PROTOCOL 17).
    pub fn state_saved(&mut self, now: u64, record: &[u8], mark: Mark, stopped_ns: u64, actions: &mut Vec<Action>) {
        let Phase::Joining(joining) = &self.phase else {
            actions.push(Action::StopLogging);
            return;
        };
        let backup = joining.backup;
        let (rounds, pages, bytes) = joining.rounds.totals();
        actions.push(Action::Report(Event::Cloned {
            rounds,
            pages,
            bytes,
            total_ns: now.saturating_sub(joining.begun),
            stopped_ns,
        }));
        for chunk in chunk::split(record) {
            actions.push(Action::Send(Message::State(chunk)));
        }
        let grant = Grant {
            generation: self.generation,
            incarnation: backup,
            at: mark.at,
            digest: mark.digest,
            outputs: mark.outputs,
        };
        actions.push(Action::Send(Message::Grant(grant)));
        actions.push(Action::Report(Event::StateRecord {
            bytes: record.len() as u64,
        }));
        let detector = Config {
            detection_ns: self.config.detection_ns,
            role: Role::Primary,
        };
        self.phase = Phase::Paired(Box::new(Pair {
            backup,
            tracker: AckTracker::new(backup, mark.at, mark.outputs),
            lease: Lease::new(self.config.lease_ns),
            detector: Detector::new(detector, now),
            next_frame: 1,
            cost: Cost::default(),
            pace: Pace::new(self.config.detection_ns / SLOW_AT),
            idle: 0,
            mark: mark.clone(),
            mark_sent: now,
            last_ack: now,
            level: false,
            released_told: self.released,
            ended: None,
        }));
        self.send_log(now, vec![LogEntry::Mark(mark)], actions);
    }

    /// The guest's log goes on.
    pub fn log(&mut self, now: u64, entries: Vec<LogEntry>, actions: &mut Vec<Action>) {
        if let Phase::Paired(pair) = &mut self.phase {
            // The backup may answer the end before the vCPU thread has said it here.
            if let Some(LogEntry::End { reason, .. }) = entries.last() {
                self.ended = Some(reason.clone());
                pair.ended = Some(now);
            }
            self.send_log(now, entries, actions);
        }
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
            Phase::Alone | Phase::Claiming { .. } | Phase::Over { .. } => {}
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
            Phase::Paired(_) | Phase::Claiming { .. } | Phase::Over { .. } => None,
        }
    }

    /// Whether a shared-disk write whose turn has come may start at this moment (PROTOCOL 12, 14).
    #[must_use]
    pub fn may_write(&self, now: u64) -> Writes {
        match &self.phase {
            Phase::Alone => Writes::Freely,
            Phase::Joining(joining) if joining.stage == Stage::Rounds => Writes::Freely,
            Phase::Joining(_) => Writes::NotNow,
            Phase::Paired(pair) if pair.lease.valid_at(now) => Writes::Until(pair.lease.ends_at()),
            Phase::Over { writes } => *writes,
            Phase::Paired(_) | Phase::Claiming { .. } => Writes::NotNow,
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
            Phase::Claiming { .. } | Phase::Over { .. } => false,
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
                let reason = format!("the backup diverged at exit {}.{}: {what}", at.exit.0, at.k);
                self.suspect(now, reason, actions);
            }
            Message::Bye if pair.ended.is_some() => self.end_alone(now, actions),
            other => {
                let reason = format!("the backup sent what no backup sends: {}", name_of(&other));
                self.suspect(now, reason, actions);
            }
        }
    }

    /// The connection to the backup is gone.
    pub fn closed(&mut self, now: u64, why: &str, actions: &mut Vec<Action>) {
        match &self.phase {
            Phase::Joining(_) => {
                self.phase = Phase::Alone;
                actions.push(Action::StopLogging);
                self.report_state(&format!("the joining backup went away: {why}"), actions);
            }
            Phase::Paired(pair) if pair.ended.is_some() && pair.tracker.all_acked() => self.end_alone(now, actions),
            Phase::Paired(_) => self.suspect(now, format!("connection to the backup: {why}"), actions),
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

    /// A side with a higher generation exists (PROTOCOL 11).
    fn superseded(&mut self, by: Generation, actions: &mut Vec<Action>) {
        self.phase = Phase::Over { writes: Writes::NotNow };
        let why = format!(
            "generation {} is live, this side is generation {}",
            by.0, self.generation.0
        );
        actions.push(Action::End { code: EXIT_LOST, why });
    }

    /// Time passes; at least every quarter of the detection time.
    pub fn tick(&mut self, now: u64, actions: &mut Vec<Action>) {
        match &mut self.phase {
            Phase::Joining(joining) if now.saturating_sub(joining.heard) > JOIN_SILENCE => {
                let why = format!("it has been silent for {} s", JOIN_SILENCE / 1_000_000_000);
                actions.push(Action::Close);
                self.closed(now, &why, actions);
            }
            Phase::Paired(pair) => {
                let verdict = pair.detector.step(now);
                let silence = now.saturating_sub(pair.last_ack);
                if pair.level
                    && let Verdict::Lost(reason) = verdict
                {
                    return self.suspect(now, reason.to_string(), actions);
                }
                if !pair.level && silence > JOIN_SILENCE {
                    let reason = format!("the joining backup has been silent for {} ms", silence / 1_000_000);
                    return self.suspect(now, reason, actions);
                }
                if pair.level {
                    let idle = pair.pace.step(now, pair.tracker.execution_lag(now));
                    if idle != std::mem::replace(&mut pair.idle, idle) {
                        actions.push(Action::Pace(idle));
                    }
                }
                let due = now.saturating_sub(pair.mark_sent) >= self.config.detection_ns / 8;
                if due || pair.released_told < self.released {
                    let mark = pair.mark.clone();
                    self.send_log(now, vec![LogEntry::Mark(mark)], actions);
                }
                self.check_end(now, actions);
            }
            Phase::Alone | Phase::Joining(_) | Phase::Claiming { .. } | Phase::Over { .. } => {}
        }
    }

    /// The storage has answered a [`Action::Claim`].
    pub fn claimed(&mut self, now: u64, outcome: &Outcome, actions: &mut Vec<Action>) {
        let Phase::Claiming { since } = self.phase else { return };
        match outcome {
            Outcome::Won { generation } => {
                self.generation = Generation(*generation);
                self.phase = Phase::Alone;
                let took_ns = now.saturating_sub(since);
                actions.push(Action::Report(Event::ClaimWon {
                    generation: *generation,
                    took_ns,
                }));
                self.report_state("the backup is lost; running on alone", actions);
                self.check_end(now, actions);
            }
            Outcome::Lost { generation, .. } => {
                self.phase = Phase::Over { writes: Writes::NotNow };
                let why = format!(
                    "the test-and-set for generation {} was lost: the backup is live",
                    self.generation.0 + 1
                );
                tracing::debug!(found = generation, "lost");
                actions.push(Action::End { code: EXIT_LOST, why });
            }
        }
    }

    fn ack(&mut self, now: u64, ack: &Ack, actions: &mut Vec<Action>) {
        let Phase::Paired(pair) = &mut self.phase else { return };
        pair.last_ack = now;
        if !pair.level && ack.frame == 0 && ack.incarnation == pair.backup {
            return; // a sign of life while it takes the state
        }
        let believed = pair.tracker.acked(ack, now).map_err(|error| error.to_string());
        let renewed = believed.and_then(|()| pair.lease.renew(ack.echo_ns, now).map_err(|error| error.to_string()));
        if let Err(error) = renewed {
            return self.suspect(now, format!("the backup's ack makes no sense: {error}"), actions);
        }
        if !pair.level {
            // Until here the backup was taking the state; from here on silence counts.
            pair.level = true;
            let config = Config {
                detection_ns: self.config.detection_ns,
                role: Role::Primary,
            };
            pair.detector = Detector::new(config, now);
            self.report_state("the backup holds everything", actions);
        }
        let Phase::Paired(pair) = &mut self.phase else { return };
        pair.detector.mark_acked(now, ack.frame);
        pair.detector.progress(now, place(ack.executed), place(ack.received));
        self.check_end(now, actions);
    }

    /// Sends entries, with release records, and stamps the marks.
    fn send_log(&mut self, now: u64, mut entries: Vec<LogEntry>, actions: &mut Vec<Action>) {
        let Phase::Paired(pair) = &mut self.phase else { return };
        if pair.released_told < self.released {
            pair.released_told = self.released;
            entries.insert(0, LogEntry::Released { through: self.released });
        }
        let mut frame = Vec::new();
        let mut bytes = 0;
        for mut entry in entries {
            if let LogEntry::Mark(mark) = &mut entry {
                mark.sent_ns = now;
                pair.mark = mark.clone();
                pair.mark_sent = now;
            }
            pair.cost.add(&entry);
            bytes += data_bytes(&entry);
            frame.push(entry);
            if bytes >= FRAME_BYTES {
                pair.send_frame(now, std::mem::take(&mut frame), bytes, actions);
                bytes = 0;
            }
        }
        if !frame.is_empty() {
            pair.send_frame(now, frame, bytes, actions);
        }
    }

    /// The backup is lost; going on alone needs the test-and-set (PROTOCOL 11, 19).
    fn suspect(&mut self, now: u64, reason: String, actions: &mut Vec<Action>) {
        actions.push(Action::Pace(0));
        self.phase = Phase::Claiming { since: now };
        actions.push(Action::StopLogging);
        actions.push(Action::Close);
        actions.push(Action::Report(Event::Suspected { reason }));
        actions.push(Action::Report(Event::ClaimAsked {
            generation: self.generation.0 + 1,
        }));
        actions.push(Action::Claim(self.generation));
    }

    /// A clean end (PROTOCOL 18): everything acked and released, or no backup to tell.
    fn check_end(&mut self, now: u64, actions: &mut Vec<Action>) {
        if self.ended.is_none() || !self.held.is_empty() {
            return;
        }
        match &self.phase {
            Phase::Alone => self.end(Writes::Freely, actions),
            Phase::Paired(pair) => {
                let waited = pair.ended.map_or(0, |since| now.saturating_sub(since));
                if pair.tracker.all_acked() || waited > END_WAIT {
                    let writes = if pair.tracker.all_acked() {
                        Writes::Freely
                    } else {
                        Writes::NotNow
                    };
                    actions.push(Action::Send(Message::Bye));
                    self.end(writes, actions);
                }
            }
            Phase::Joining(_) | Phase::Claiming { .. } | Phase::Over { .. } => {}
        }
    }

    /// The backup holds the guest's end, so it never goes live (PROTOCOL 18): what is still held needs no lease any more.
    fn end_alone(&mut self, now: u64, actions: &mut Vec<Action>) {
        self.phase = Phase::Alone;
        actions.push(Action::StopLogging);
        self.check_end(now, actions);
    }

    /// To be called when what may leave has left; `writes` to shared disks are in flight.
    pub fn settled(&mut self, now: u64, writes: usize, actions: &mut Vec<Action>) {
        if let Phase::Joining(joining) = &mut self.phase
            && joining.stage == Stage::Settling
            && writes == 0
        {
            joining.stage = Stage::Asked;
            actions.push(Action::SaveState);
        }
        self.check_end(now, actions);
    }

    fn end(&mut self, writes: Writes, actions: &mut Vec<Action>) {
        self.phase = Phase::Over { writes };
        let reason = self.ended.clone().unwrap_or(EndReason::Stopped);
        let (code, why) = super::event::clean_end(&reason);
        actions.push(Action::Close);
        actions.push(Action::End { code, why });
    }

    fn report_state(&self, why: &str, actions: &mut Vec<Action>) {
        actions.push(Action::Report(Event::State {
            protection: self.protection(),
            why: why.to_owned(),
        }));
    }
}

impl Pair {
    fn send_frame(&mut self, now: u64, entries: Vec<LogEntry>, bytes: usize, actions: &mut Vec<Action>) {
        let number = self.next_frame;
        self.next_frame += 1;
        self.tracker
            .sent(number, bytes, &entries, now)
            .expect("the vCPU thread logs in order");
        self.detector.mark_sent(now, number);
        actions.push(Action::Send(Message::Log { number, entries }));
    }
}

fn place(position: Position) -> (u64, u32) {
    (position.exit.0, position.k)
}

fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Join(_) => "Join",
        Message::Welcome(_) => "Welcome",
        Message::Proof { .. } => "Proof",
        Message::Refuse { .. } => "Refuse",
        Message::State(_) => "State",
        Message::Pages { .. } => "Pages",
        Message::Grant(_) => "Grant",
        Message::Log { .. } => "Log",
        Message::Ack(_) => "Ack",
        Message::Diverged { .. } => "Diverged",
        Message::Bye => "Bye",
    }
}

#[cfg(test)]
#[path = "primary_tests.rs"]
mod tests;
