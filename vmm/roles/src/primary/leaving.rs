//! Leaving a pair: suspicion and the test-and-set, a clean end, a higher generation (PROTOCOL 10, 11, 18, 19).

use ftvm_schema::entry::{EndReason, Generation};
use logging_channel::message::Message;
use shared_disk::arbiter::ClaimOutcome;

use super::super::event::Event;
use super::super::exit_code::ExitCode;
use super::super::operation::{Answer, Operation};
use super::{END_WAIT, Phase, Primary, PrimaryAction, Writes};

/// Why the next generation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimReason {
    /// The backup is taken for dead.
    Lost,
    /// It has been dismissed, and has said its last word.
    Dismissed,
    /// It was to go live, and is not heard any more: it lives, or has died on the way there.
    HandedOver,
}

impl Primary {
    /// A side with a higher generation exists (PROTOCOL 11).
    pub(super) fn superseded(&mut self, by: Generation, actions: &mut Vec<PrimaryAction>) {
        let handed_over = matches!(
            self.phase,
            Phase::HandedOver { .. }
                | Phase::Claiming {
                    cause: ClaimReason::HandedOver,
                    ..
                }
        );
        self.phase = Phase::Over { writes: Writes::NotNow };
        if handed_over {
            return self.handed_over(by, actions);
        }
        let why = format!(
            "generation {} is live, this side is generation {}",
            by.0, self.generation.0
        );
        self.answer(Answer::failed(format_args!("this process ends: {why}")), actions);
        actions.push(PrimaryAction::End {
            code: ExitCode::Lost,
            why,
        });
    }

    /// A disk's device has refused a write of this host: another one has reserved it, and is live (PROTOCOL 14).
    pub(crate) fn write_refused(&mut self, actions: &mut Vec<PrimaryAction>) {
        self.phase = Phase::Over { writes: Writes::NotNow };
        let why = "another side has fenced this one off a disk: it is live, and nothing more is written here";
        self.answer(Answer::failed(format_args!("this process ends: {why}")), actions);
        actions.push(PrimaryAction::End {
            code: ExitCode::Lost,
            why: why.to_owned(),
        });
    }

    /// The storage has answered a [`PrimaryAction::Claim`].
    pub(crate) fn claimed(&mut self, now: u64, outcome: &ClaimOutcome, actions: &mut Vec<PrimaryAction>) {
        let Phase::Claiming { since, cause } = self.phase else {
            return;
        };
        match outcome {
            ClaimOutcome::Won { generation } => {
                self.generation = Generation(*generation);
                self.phase = Phase::Alone;
                let took_ns = now.saturating_sub(since);
                actions.push(PrimaryAction::Report(Event::ClaimWon {
                    generation: *generation,
                    took_ns,
                }));
                self.won(cause, actions);
                self.check_end(now, actions);
            }
            ClaimOutcome::Lost { generation, .. } => {
                self.phase = Phase::Over { writes: Writes::NotNow };
                if cause == ClaimReason::HandedOver {
                    return self.handed_over(Generation(*generation), actions);
                }
                let why = format!(
                    "the test-and-set for generation {} was lost: the backup is live",
                    self.generation.0 + 1
                );
                tracing::debug!(found = generation, "lost");
                self.answer(Answer::failed(format_args!("this process ends: {why}")), actions);
                actions.push(PrimaryAction::End {
                    code: ExitCode::Lost,
                    why,
                });
            }
        }
    }

    /// The generation is this side's alone again.
    fn won(&mut self, cause: ClaimReason, actions: &mut Vec<PrimaryAction>) {
        self.go_on(actions);
        let (state, answer) = match cause {
            ClaimReason::Lost => (
                "the backup is lost; running on alone",
                Answer::failed("the backup was lost meanwhile; the guest goes on here alone"),
            ),
            ClaimReason::HandedOver => (
                "the backup has not taken over; running on alone",
                Answer::failed("the backup was lost before it took over; the guest goes on here alone"),
            ),
            ClaimReason::Dismissed => (
                "the backup has been dismissed; running on alone",
                Answer::done("the backup has been dismissed"),
            ),
        };
        self.report_state(state, actions);
        match self.asked {
            // That the backup was lost instead of dismissed makes no difference.
            Some((_, Operation::SuspendProtection)) => {
                self.answer(Answer::done("no backup; none may join"), actions);
            }
            Some((_, Operation::RestartBackup)) => {
                self.answer(Answer::done("the backup is gone; another may join"), actions);
            }
            Some((_, Operation::Failover)) => self.answer(answer, actions),
            _ => {}
        }
    }

    /// The backup is live, as was wanted.
    fn handed_over(&mut self, to: Generation, actions: &mut Vec<PrimaryAction>) {
        let text = format!(
            "the guest is handed over: its new host is live under generation {}",
            to.0
        );
        self.answer(Answer::done(&text), actions);
        actions.push(PrimaryAction::End {
            code: ExitCode::HandedOver,
            why: text,
        });
    }

    /// The backup is lost; going on alone needs the test-and-set (PROTOCOL 11, 19).
    pub(super) fn suspect(&mut self, now: u64, reason: String, actions: &mut Vec<PrimaryAction>) {
        let cause = if matches!(self.phase, Phase::HandedOver { .. }) {
            ClaimReason::HandedOver
        } else {
            self.go_on(actions);
            ClaimReason::Lost
        };
        actions.push(PrimaryAction::Report(Event::Suspected { reason }));
        self.ask(now, cause, actions);
    }

    /// The backup that was dismissed has said its last word: it never goes live (PROTOCOL 27).
    pub(super) fn move_on(&mut self, now: u64, actions: &mut Vec<PrimaryAction>) {
        self.ask(now, ClaimReason::Dismissed, actions);
    }

    /// Asks for the next generation.
    pub(super) fn ask(&mut self, now: u64, cause: ClaimReason, actions: &mut Vec<PrimaryAction>) {
        self.phase = Phase::Claiming { since: now, cause };
        actions.push(PrimaryAction::Pace(0));
        actions.push(PrimaryAction::StopLogging);
        actions.push(PrimaryAction::Close);
        actions.push(PrimaryAction::Report(Event::ClaimAsked {
            generation: self.generation.0 + 1,
        }));
        actions.push(PrimaryAction::Claim(self.generation));
    }

    /// A clean end (PROTOCOL 18): everything acked and released, or no backup to tell.
    pub(super) fn check_end(&mut self, now: u64, actions: &mut Vec<PrimaryAction>) {
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
                    actions.push(PrimaryAction::Send(Message::Bye));
                    self.end(writes, actions);
                }
            }
            Phase::Joining(_) | Phase::HandedOver { .. } | Phase::Claiming { .. } | Phase::Over { .. } => {}
        }
    }

    /// The backup holds the guest's end, so it never goes live (PROTOCOL 18): what is still held needs no lease any more.
    pub(super) fn end_alone(&mut self, now: u64, actions: &mut Vec<PrimaryAction>) {
        self.phase = Phase::Alone;
        actions.push(PrimaryAction::StopLogging);
        self.check_end(now, actions);
    }

    fn end(&mut self, writes: Writes, actions: &mut Vec<PrimaryAction>) {
        self.phase = Phase::Over { writes };
        let reason = self.ended.clone().unwrap_or(EndReason::Stopped);
        let (code, why) = super::super::event::clean_end(&reason);
        self.answer(Answer::done(&why), actions);
        actions.push(PrimaryAction::Close);
        actions.push(PrimaryAction::End { code, why });
    }
}
