//! From suspicion to go-live: the test-and-set, the lease outwaited, the log drained (PROTOCOL 10, 11, 13).

use ftvm_schema::entry::Generation;
use logging_channel::flow::Inbox;
use shared_disk::arbiter::ClaimOutcome;

use super::super::event::Event;
use super::super::exit_code::ExitCode;
use super::{Backup, BackupAction, Phase};

/// The three conditions of PROTOCOL 13.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Claim {
    pub since: u64,
    pub lease_over: bool,
    pub planned: bool,
    pub won: Option<Generation>,
    pub drained: bool,
}

impl Backup {
    /// The storage has answered.
    pub(crate) fn claimed(&mut self, now: u64, outcome: &ClaimOutcome, actions: &mut Vec<BackupAction>) {
        let Phase::Claiming(claim) = &mut self.phase else {
            return;
        };
        match outcome {
            ClaimOutcome::Won { generation } => {
                claim.won = Some(Generation(*generation));
                let took_ns = now.saturating_sub(claim.since);
                actions.push(BackupAction::Report(Event::ClaimWon {
                    generation: *generation,
                    took_ns,
                }));
                self.advance(now, actions);
            }
            ClaimOutcome::Lost { .. } => {
                self.phase = Phase::Over;
                let wanted = self.terms.generation.0 + 1;
                let why = format!("the test-and-set for generation {wanted} was lost: the primary goes on");
                actions.push(BackupAction::End {
                    code: ExitCode::Lost,
                    why,
                });
            }
        }
    }

    /// Everything delivered before the drain was asked for is executed.
    pub(crate) fn drained(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        let Phase::Claiming(claim) = &mut self.phase else {
            return;
        };
        claim.drained = true;
        actions.push(BackupAction::Report(Event::Drained {
            took_ns: now.saturating_sub(claim.since),
        }));
        self.advance(now, actions);
    }

    pub(super) fn advance(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        let over_at = self.lease.over_at();
        let Phase::Claiming(claim) = &mut self.phase else {
            return;
        };
        if !claim.lease_over && now >= over_at {
            claim.lease_over = true;
            actions.push(BackupAction::Report(Event::LeaseOver {
                waited_ns: now.saturating_sub(claim.since),
            }));
        }
        if let (true, true, Some(generation)) = (claim.lease_over, claim.drained, claim.won) {
            let (took_ns, planned) = (now.saturating_sub(claim.since), claim.planned);
            self.phase = Phase::Over;
            actions.push(BackupAction::GoLive {
                generation,
                took_ns,
                planned,
            });
        }
    }

    pub(super) fn suspect(&mut self, now: u64, reason: String, actions: &mut Vec<BackupAction>) {
        if matches!(self.phase, Phase::Ending) {
            return; // the end is known: there is nothing to take over
        }
        actions.push(BackupAction::Report(Event::Suspected { reason }));
        self.claim(now, false, actions);
    }

    /// Asks for the generation after this one, and drains the log meanwhile; final.
    pub(super) fn claim(&mut self, now: u64, planned: bool, actions: &mut Vec<BackupAction>) {
        if let Some(discarded) = self.inbox.as_mut().and_then(Inbox::close) {
            tracing::info!(?discarded, "an incomplete checkpoint is discarded (PROTOCOL 4)");
        }
        self.phase = Phase::Claiming(Claim {
            since: now,
            lease_over: planned,
            planned,
            ..Claim::default()
        });
        actions.push(BackupAction::Report(Event::ClaimAsked {
            generation: self.terms.generation.0 + 1,
        }));
        actions.push(BackupAction::Claim(self.terms.generation));
        actions.push(BackupAction::Drain);
        self.advance(now, actions);
    }
}
