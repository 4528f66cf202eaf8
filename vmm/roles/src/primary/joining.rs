//! A backup joins: pages in rounds while the guest runs, then the state record with the grant (PROTOCOL 17).

use ftvm_schema::entry::{Incarnation, LogEntry, Mark};
use logging_channel::chunk;
use logging_channel::message::{Grant, Message};

use super::super::clone::{After, Rounds};
use super::super::event::Event;
use super::pair::Pair;
use super::{Phase, Primary, PrimaryAction};

/// A backup that is getting the guest's pages while the guest runs on.
#[derive(Debug)]
pub(super) struct Joining {
    pub backup: Incarnation,
    pub begun: u64,
    /// The last sign of life.
    pub heard: u64,
    pub rounds: Rounds,
    pub stage: JoinStage,
}

/// How far a join has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinStage {
    /// A round's blocks of private disks.
    Blocks,
    /// A round's pages.
    Rounds,
    /// The state record is next, once no write is in flight: one that began without a lease has no lease guard, and could land
    /// after the backup has gone live (PROTOCOL 14).
    Settling,
    /// Blocks of private disks that were written since the last round are on their way: nothing writes any more, so the
    /// backup has on its disks what belongs to the state. What the guest asks for from here on is in the state or the log.
    LastBlocks,
    /// The state record has been asked for.
    Asked,
}

impl Primary {
    /// A backup has passed the handshake: it gets the guest's pages, and the blocks of its private disks, in rounds; then,
    /// as soon as no write is in flight ([`Primary::settled`]), the state record.
    pub(crate) fn joined(&mut self, now: u64, backup: Incarnation, actions: &mut Vec<PrimaryAction>) {
        self.phase = Phase::Joining(Joining {
            backup,
            begun: now,
            heard: now,
            rounds: Rounds::default(),
            stage: JoinStage::Rounds,
        });
        self.look(actions);
        self.report_state("a backup is joining", actions);
    }

    /// The next round begins.
    fn look(&mut self, actions: &mut Vec<PrimaryAction>) {
        match &mut self.phase {
            Phase::Joining(joining) if self.private_disks > 0 => joining.send_blocks(JoinStage::Blocks, actions),
            _ => self.take_dirty(actions),
        }
    }

    fn take_dirty(&mut self, actions: &mut Vec<PrimaryAction>) {
        self.dirty_owed += 1;
        actions.push(PrimaryAction::TakeDirty);
    }

    /// The vCPU thread has read the dirty log.
    pub(crate) fn dirty(&mut self, now: u64, pages: Vec<u64>, actions: &mut Vec<PrimaryAction>) {
        self.dirty_owed = self.dirty_owed.saturating_sub(1);
        if let Phase::Joining(joining) = &mut self.phase
            && joining.stage == JoinStage::Rounds
            && self.dirty_owed == 0
        {
            joining.heard = now;
            actions.push(PrimaryAction::SendPages {
                to: joining.backup,
                pages: joining.rounds.looked(pages),
            });
        }
    }

    /// The backup `to` has written, and made stable, what an [`PrimaryAction::SendBlocks`] named: so many bytes of its disks.
    pub(crate) fn blocks_sent(&mut self, now: u64, to: Incarnation, bytes: u64, actions: &mut Vec<PrimaryAction>) {
        let Phase::Joining(joining) = &mut self.phase else {
            return;
        };
        if joining.backup != to {
            return;
        }
        joining.heard = now;
        match joining.stage {
            JoinStage::Blocks => {
                joining.rounds.blocks_sent(bytes);
                joining.stage = JoinStage::Rounds;
                self.take_dirty(actions);
            }
            JoinStage::LastBlocks => {
                joining.rounds.blocks_sent(bytes);
                joining.stage = JoinStage::Asked;
                actions.push(PrimaryAction::SaveState);
            }
            JoinStage::Rounds | JoinStage::Settling | JoinStage::Asked => {}
        }
    }

    /// The pages of an [`PrimaryAction::SendPages`] are on their way to the backup `to`.
    pub(crate) fn pages_sent(
        &mut self,
        now: u64,
        to: Incarnation,
        pages: u64,
        bytes: u64,
        actions: &mut Vec<PrimaryAction>,
    ) {
        if let Phase::Joining(joining) = &mut self.phase
            && joining.backup == to
            && joining.stage == JoinStage::Rounds
        {
            joining.heard = now;
            let idle = joining.rounds.idle();
            let after = joining.rounds.sent(pages, bytes);
            if joining.rounds.idle() != idle {
                actions.push(PrimaryAction::Pace(joining.rounds.idle()));
            }
            match after {
                After::Look => self.look(actions),
                After::State => joining.stage = JoinStage::Settling,
            }
        }
    }

    /// The joining backup is not to become one any more, and the guest runs as if it had never been there.
    pub(super) fn give_join_up(&mut self, actions: &mut Vec<PrimaryAction>) {
        if let Phase::Joining(joining) = std::mem::replace(&mut self.phase, Phase::Alone) {
            joining.let_run(actions);
            actions.push(PrimaryAction::StopLogging);
        }
    }

    /// The machine's state at `mark`, for the joining backup; the guest was stopped for it for `stopped_ns` nanoseconds.
    /// Outputs before it have all been released: until here nothing was granted. Those behind it wait for acks
    /// (PROTOCOL 17). A state that was asked for on behalf of a backup that has gone is of no use to the next, which lacks
    /// the pages.
    pub(crate) fn state_saved(
        &mut self,
        now: u64,
        record: &[u8],
        mark: Mark,
        stopped_ns: u64,
        actions: &mut Vec<PrimaryAction>,
    ) {
        let joining = match &self.phase {
            Phase::Joining(joining) if joining.stage == JoinStage::Asked => joining,
            _ => return actions.push(PrimaryAction::StopLogging),
        };
        let backup = joining.backup;
        joining.let_run(actions);
        let (rounds, pages, bytes, disk_bytes) = joining.rounds.totals();
        actions.push(PrimaryAction::Report(Event::Cloned {
            rounds,
            pages,
            bytes,
            disk_bytes,
            total_ns: now.saturating_sub(joining.begun),
            slowed_permille: joining.rounds.idle(),
            stopped_ns,
        }));
        for chunk in chunk::split(record) {
            actions.push(PrimaryAction::Send(Message::State(chunk)));
        }
        let grant = Grant {
            generation: self.generation,
            incarnation: backup,
            at: mark.at,
            digest: mark.digest,
            outputs: mark.outputs,
        };
        actions.push(PrimaryAction::Send(Message::Grant(grant)));
        actions.push(PrimaryAction::Report(Event::StateRecord {
            bytes: record.len() as u64,
        }));
        let pair = Pair::new(&self.terms, now, backup, &mark, self.released);
        self.phase = Phase::Paired(Box::new(pair));
        self.send_log(now, vec![LogEntry::Mark(mark)], actions);
    }
}

impl Joining {
    /// A guest that was slowed for its clone need not be any more.
    fn let_run(&self, actions: &mut Vec<PrimaryAction>) {
        if self.rounds.idle() > 0 {
            actions.push(PrimaryAction::Pace(0));
        }
    }

    pub(crate) fn send_blocks(&mut self, stage: JoinStage, actions: &mut Vec<PrimaryAction>) {
        self.stage = stage;
        actions.push(PrimaryAction::SendBlocks {
            to: self.backup,
            blocks: self.rounds.blocks(),
        });
    }
}
