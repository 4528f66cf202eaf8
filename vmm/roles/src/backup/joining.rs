//! How a backup comes to hold the guest: pages and blocks ahead of the state, then the state, then the grant.

use fault_detector::detector::{Detector, DetectorConfig, PairRole};
use ftvm_schema::entry::Chunk;
use logging_channel::flow::Inbox;
use logging_channel::message::{Ack, BLOCKS_UNDER_WAY, Grant, Message};

use super::super::event::{Event, Protection};
use super::super::terms::Terms;
use super::{Backup, BackupAction, Phase};
use ftvm_machine::machine::state::MAX_RECORD;

impl Backup {
    pub(super) fn pages(&mut self, now: u64, numbers: Vec<u64>, content: Vec<u8>, actions: &mut Vec<BackupAction>) {
        let Phase::Joining {
            loaded: false, last, ..
        } = &mut self.phase
        else {
            return self.give_up("pages came after the state was complete".to_owned(), actions);
        };
        *last = now;
        actions.push(BackupAction::LoadPages { numbers, content });
        self.show_life(actions);
    }

    pub(super) fn blocks(&mut self, now: u64, order: BackupAction, actions: &mut Vec<BackupAction>) {
        let Phase::Joining {
            loaded: false, last, ..
        } = &mut self.phase
        else {
            return self.give_up("blocks of a disk came after the state was complete".to_owned(), actions);
        };
        *last = now;
        self.blocks.0 += 1;
        if self.blocks.0 - self.blocks.1 > BLOCKS_UNDER_WAY {
            let why =
                format!("the primary sent more than {BLOCKS_UNDER_WAY} messages of blocks that are not written yet");
            return self.give_up(why, actions);
        }
        actions.push(order);
    }

    /// The vCPU thread has carried out the oldest [`BackupAction::LoadBlocks`] or [`BackupAction::FlushBlocks`].
    pub(crate) fn blocks_written(&mut self, now: u64, actions: &mut Vec<BackupAction>) {
        self.blocks.1 += 1;
        if let Phase::Joining { last, .. } = &mut self.phase {
            *last = now;
            actions.push(BackupAction::Send(Message::BlocksWritten {
                incarnation: self.terms.me,
                messages: self.blocks.1,
            }));
        }
    }

    /// While the state comes; nothing is acked, and nothing echoed.
    fn show_life(&self, actions: &mut Vec<BackupAction>) {
        actions.push(BackupAction::Send(Message::Ack(Ack {
            incarnation: self.terms.me,
            ..Ack::default()
        })));
    }

    pub(super) fn state(&mut self, now: u64, chunk: Chunk, actions: &mut Vec<BackupAction>) {
        let Phase::Joining {
            state,
            loaded: loaded @ false,
            last,
        } = &mut self.phase
        else {
            return self.give_up("a state record came after the state was complete".to_owned(), actions);
        };
        *last = now;
        match state.add(chunk) {
            Ok(Some(record)) => {
                *loaded = true;
                actions.push(BackupAction::Report(Event::StateRecord {
                    bytes: record.len() as u64,
                }));
                actions.push(BackupAction::Load(record));
            }
            Ok(None) => {}
            Err(error) => return self.give_up(format!("state record: {error}"), actions),
        }
        self.show_life(actions);
    }

    pub(super) fn grant(&mut self, now: u64, grant: &Grant, actions: &mut Vec<BackupAction>) {
        let Phase::Joining { loaded: true, .. } = &self.phase else {
            return self.give_up("a grant came before the state was complete".to_owned(), actions);
        };
        let Terms {
            me,
            generation,
            detection_ns,
            ..
        } = self.terms;
        if grant.incarnation != me || grant.generation != generation {
            return self.give_up("the grant is for another backup or generation".to_owned(), actions);
        }
        self.phase = Phase::Following;
        self.inbox = Some(Inbox::new(me, generation, grant.at, grant.outputs, MAX_RECORD));
        self.detector = Detector::new(
            DetectorConfig {
                detection_ns,
                role: PairRole::Backup,
            },
            now,
        );
        actions.push(BackupAction::Report(Event::State {
            protection: Protection::Protected,
            why: format!("following from exit {}", grant.at.exit.0),
        }));
        // The primary may want to hand over soon.
        self.tell_health(actions);
    }
}
