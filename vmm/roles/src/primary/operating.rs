//! What the operator asks (PROTOCOL 24-29), and handing the guest over, which a lost path may ask for too (PROTOCOL 30).
//!
//! Everything is decided here; the vCPU thread obeys orders and says so, the shell carries answers back. One operation is
//! under way at a time.

use ftvm_schema::entry::{Intervention, LogEntry};
use logging_channel::message::{Health, Message};

use super::super::event::Event;
use super::super::operation::{Answer, Operation, Path, Unprotected};
use super::joining::JoinStage;
use super::pair::Boot;
use super::refusal::Refusal;
use super::{CALM, Phase, Primary, PrimaryAction};
use crate::host_event::Control;

/// A handover that has not come to its last message after this time is given up: a disk that takes longer, or a backup that
/// acks and does not get level, is no reason for the guest to stand still.
const HANDOVER_WAIT: u64 = 5_000_000_000;

/// So many detection times after its last message, a side that has handed over takes the backup for dead.
pub(super) const HANDOVER_SILENCE: u64 = 2;

/// Whether this side wants backups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Joins {
    #[default]
    Open,
    Suspended,
}

/// Whether a pair is being given up on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Leaving {
    #[default]
    No,
    /// The backup has been told to go; its last word is waited for.
    Dismissed,
    /// The guest is to stand still, and everything to leave; since when.
    HandingOver { since: u64 },
}

/// Whether the vCPU thread has been told to stand still for a handover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum StillOrder {
    /// It runs.
    #[default]
    None,
    Given,
    /// Given, and the thread has said that it stands still.
    Obeyed,
}

/// What becomes of something that failed because a path is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailedRequest {
    /// The guest is told.
    Told,
    /// It is not: the guest is being handed over, and the backup tries again. [`PrimaryAction::TellFailures`] takes this back.
    Withheld,
}

/// How an operation begins.
enum Begun {
    Done(String),
    UnderWay,
}

impl Primary {
    /// The operator asks for something; the answer comes as [`PrimaryAction::Answer`] with this `ticket`.
    pub(crate) fn operate(&mut self, now: u64, ticket: u64, operation: Operation, actions: &mut Vec<PrimaryAction>) {
        let begun = self.allowed().and_then(|()| self.begin(now, operation, actions));
        let answer = match begun {
            Ok(Begun::UnderWay) => {
                self.asked = Some((ticket, operation));
                return;
            }
            Ok(Begun::Done(text)) => Answer::Done(text),
            Err(refusal) => Answer::failed(refusal),
        };
        actions.push(PrimaryAction::Answer { ticket, answer });
    }

    /// Whether this is a moment for operations at all.
    fn allowed(&self) -> Result<(), Refusal> {
        if let Some((_, operation)) = self.asked {
            let operation = operation.name();
            return Err(Refusal::OtherUnderWay { operation });
        }
        if self.ended.is_some() {
            return Err(Refusal::GuestEnded);
        }
        match &self.phase {
            Phase::Paired(pair) if pair.leaving == Leaving::Dismissed => Err(Refusal::Dismissing),
            Phase::Paired(pair) if pair.leaving != Leaving::No => Err(Refusal::HandingOver),
            Phase::HandedOver { .. } => Err(Refusal::HandedOver),
            Phase::Claiming { .. } => Err(Refusal::Deciding {
                wanted: self.generation.0 + 1,
            }),
            Phase::Over { .. } => Err(Refusal::Ending),
            Phase::Alone | Phase::Joining(_) | Phase::Paired(_) => Ok(()),
        }
    }

    fn begin(&mut self, now: u64, operation: Operation, actions: &mut Vec<PrimaryAction>) -> Result<Begun, Refusal> {
        let order = |what, actions: &mut Vec<PrimaryAction>| {
            actions.push(PrimaryAction::Order(Control::Intervene(what)));
            Ok(Begun::UnderWay)
        };
        match operation {
            Operation::PowerOff => {
                actions.push(PrimaryAction::PowerOff);
                Ok(Begun::UnderWay)
            }
            Operation::Pause if self.paused => Err(Refusal::AlreadyPaused),
            Operation::Pause => order(Intervention::Pause, actions),
            Operation::Resume if !self.paused => Err(Refusal::NotPaused),
            Operation::Resume => order(Intervention::Resume, actions),
            Operation::Reset => {
                self.may_reset()?;
                order(Intervention::Reset, actions)
            }
            Operation::SuspendProtection if self.joins == Joins::Suspended => Err(Refusal::AlreadySuspended),
            Operation::SuspendProtection => {
                self.joins = Joins::Suspended;
                Ok(self.dismiss("the operator suspends protection", "no backup; none may join", actions))
            }
            Operation::ResumeProtection if self.joins == Joins::Open => Err(Refusal::NotSuspended),
            Operation::ResumeProtection => {
                self.joins = Joins::Open;
                self.report_state("the operator lets a backup join", actions);
                Ok(Begun::Done("a backup may join".to_owned()))
            }
            Operation::RestartBackup if matches!(self.phase, Phase::Alone) => Err(self.need_backup()),
            Operation::RestartBackup => Ok(self.dismiss(
                "the operator restarts the backup",
                "the backup is gone; another may join",
                actions,
            )),
            Operation::Failover => {
                self.must_be_protected()?;
                self.hand_over("the operator asks for it", now, actions);
                Ok(Begun::UnderWay)
            }
            Operation::TestFailover => {
                self.must_be_protected()?;
                actions.push(PrimaryAction::Die);
                Ok(Begun::Done(
                    "this process kills itself; the backup goes live".to_owned(),
                ))
            }
        }
    }

    fn need_backup(&self) -> Refusal {
        match self.joins {
            Joins::Open => Refusal::NoBackup,
            Joins::Suspended => Refusal::NoBackupWanted,
        }
    }

    fn must_be_protected(&self) -> Result<(), Refusal> {
        match self.unprotected() {
            None => Ok(()),
            Some(Unprotected::Starting) => Err(Refusal::NotProtectedYet),
            Some(_) => Err(self.need_backup()),
        }
    }

    fn may_reset(&self) -> Result<(), Refusal> {
        if self.boot.get().is_none() {
            return Err(Refusal::NoBootRecord);
        }
        match &self.phase {
            Phase::Joining(joining) if joining.stage == JoinStage::Asked => Err(Refusal::BackupAboutToFollow),
            Phase::Paired(pair) if !matches!(pair.boot, Boot::Sent) => Err(Refusal::BackupLacksBootRecord),
            _ => Ok(()),
        }
    }

    /// Wants the backup no more, however far it has come (PROTOCOL 27).
    fn dismiss(&mut self, why: &str, done: &str, actions: &mut Vec<PrimaryAction>) -> Begun {
        match &mut self.phase {
            Phase::Joining(_) => {
                self.give_join_up(actions);
                actions.push(PrimaryAction::Close);
                self.report_state(why, actions);
                Begun::Done(done.to_owned())
            }
            Phase::Paired(pair) => {
                pair.leaving = Leaving::Dismissed;
                actions.push(PrimaryAction::Send(Message::Dismiss));
                self.report_state(why, actions);
                Begun::UnderWay
            }
            _ => {
                self.report_state(why, actions);
                Begun::Done(done.to_owned())
            }
        }
    }

    /// The guest stops at its next exit; when everything has left, the backup is told (PROTOCOL 28).
    pub(super) fn hand_over(&mut self, why: &str, now: u64, actions: &mut Vec<PrimaryAction>) {
        if let Phase::Paired(pair) = &mut self.phase {
            pair.leaving = Leaving::HandingOver { since: now };
            self.still_order = StillOrder::Given;
            actions.push(PrimaryAction::Order(Control::StandStill));
            actions.push(PrimaryAction::Report(Event::HandingOver { why: why.to_owned() }));
        }
    }

    /// The vCPU thread has carried out an order, at this point of its stream.
    pub(crate) fn obeyed(&mut self, order: Control, actions: &mut Vec<PrimaryAction>) {
        match order {
            Control::Intervene(what) => {
                let text = match what {
                    Intervention::Pause => "the guest stands still, and so does its time",
                    Intervention::Resume => "the guest goes on",
                    Intervention::Reset => "the guest starts again",
                };
                match what {
                    Intervention::Pause => self.paused = true,
                    Intervention::Resume => self.paused = false,
                    Intervention::Reset => {}
                }
                actions.push(PrimaryAction::Report(Event::Intervened { what }));
                if matches!(
                    self.asked,
                    Some((_, Operation::Pause | Operation::Resume | Operation::Reset))
                ) {
                    self.answer(Answer::done(text), actions);
                }
            }
            Control::StandStill if self.still_order == StillOrder::Given => self.still_order = StillOrder::Obeyed,
            Control::StandStill | Control::GoOn | Control::TakeDirty | Control::SaveState => {}
        }
    }

    /// Sees how far a handover is, with so many writes to shared disks in flight.
    pub(super) fn check_handover(&mut self, now: u64, writes: usize, actions: &mut Vec<PrimaryAction>) {
        let Phase::Paired(pair) = &self.phase else { return };
        let Leaving::HandingOver { since } = pair.leaving else {
            return;
        };
        let acked = pair.tracker.covers(pair.mark.at);
        let left = self.still_order == StillOrder::Obeyed && acked && self.held.is_empty() && writes == 0;
        if left && self.ended.is_none() {
            // What has left goes before, so that the backup repeats nothing.
            let mark = pair.mark.clone();
            self.send_log(now, vec![LogEntry::Mark(mark)], actions);
            actions.push(PrimaryAction::Send(Message::Handover));
            actions.push(PrimaryAction::StopLogging);
            actions.push(PrimaryAction::Report(Event::HandedOver));
            self.phase = Phase::HandedOver { since: now };
        } else if now.saturating_sub(since) > HANDOVER_WAIT {
            let why = format!(
                "the handover is given up after {} s: {} outputs and {writes} disk writes have not left, the backup's acks \
                 are {}; the guest goes on here",
                HANDOVER_WAIT / 1_000_000_000,
                self.held.len(),
                if acked { "complete" } else { "missing" },
            );
            // What stood in the way may last, and each try is a standstill.
            self.calm_until = now + CALM;
            self.stay(why, actions);
        }
    }

    /// The guest is not handed over after all.
    pub(super) fn stay(&mut self, why: String, actions: &mut Vec<PrimaryAction>) {
        if let Phase::Paired(pair) = &mut self.phase {
            pair.leaving = Leaving::No;
        }
        self.go_on(actions);
        tracing::warn!("{why}");
        if matches!(self.asked, Some((_, Operation::Failover))) {
            self.answer(Answer::failed(why), actions);
        }
    }

    /// The vCPU goes on, if it stands still for a handover.
    pub(super) fn go_on(&mut self, actions: &mut Vec<PrimaryAction>) {
        if std::mem::take(&mut self.still_order) != StillOrder::None {
            actions.push(PrimaryAction::Order(Control::GoOn));
            actions.push(PrimaryAction::TellFailures);
        }
    }

    /// The operation under way has come to its end.
    pub(super) fn answer(&mut self, answer: Answer, actions: &mut Vec<PrimaryAction>) {
        if let Some((ticket, _)) = self.asked.take() {
            actions.push(PrimaryAction::Answer { ticket, answer });
        }
    }

    /// This host has lost the way to something, as `what` says. If the backup has not, the guest is handed over (PROTOCOL
    /// 30); what becomes of the request that failed.
    pub(crate) fn path_lost(
        &mut self,
        now: u64,
        path: Path,
        what: &str,
        actions: &mut Vec<PrimaryAction>,
    ) -> FailedRequest {
        let hands_over = self.would_hand_over(now);
        if self.lost.insert(path) || hands_over {
            actions.push(PrimaryAction::Report(Event::PathLost {
                path,
                what: what.to_owned(),
                hands_over,
            }));
        }
        if hands_over {
            self.hand_over(
                &format!("{path} is lost here, and the backup reaches everything"),
                now,
                actions,
            );
        }
        if self.still_order == StillOrder::None {
            FailedRequest::Told
        } else {
            FailedRequest::Withheld
        }
    }

    /// Whether the guest is better off at its backup, now that something is amiss here.
    pub(super) fn would_hand_over(&self, now: u64) -> bool {
        match &self.phase {
            Phase::Paired(pair)
                if self.ended.is_none() && now >= self.calm_until && pair.level && pair.leaving == Leaving::No =>
            {
                pair.health.as_ref().is_some_and(Health::is_whole)
            }
            _ => false,
        }
    }

    /// Why nobody would carry on right now; `None` if somebody would.
    #[must_use]
    pub fn unprotected(&self) -> Option<Unprotected> {
        if self.ended.is_some() {
            return Some(Unprotected::NotRunning);
        }
        match &self.phase {
            Phase::Over { .. } => Some(Unprotected::NotRunning),
            Phase::Alone if self.joins == Joins::Suspended => Some(Unprotected::Suspended),
            Phase::Alone => Some(Unprotected::NeedBackup),
            Phase::Joining(_) => Some(Unprotected::Starting),
            Phase::Paired(pair) if pair.leaving == Leaving::Dismissed => Some(match self.joins {
                Joins::Suspended => Unprotected::Suspended,
                Joins::Open => Unprotected::NeedBackup,
            }),
            Phase::Paired(pair) if pair.level => None,
            Phase::Paired(_) => Some(Unprotected::Starting),
            Phase::HandedOver { .. } | Phase::Claiming { .. } => Some(Unprotected::Deciding),
        }
    }

    /// Whether the operator has the guest stand still.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Backups that were found diverged.
    #[must_use]
    pub fn divergences(&self) -> u64 {
        self.divergences
    }
}
