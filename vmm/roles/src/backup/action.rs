//! What a backup's decisions come out as.

use ftvm_schema::entry::{Generation, LogEntry};
use logging_channel::message::Message;

use super::super::event::Event;
use super::super::exit_code::ExitCode;

/// What the backup has decided, for the link to carry out in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum BackupAction {
    /// Send on the connection to the primary.
    Send(Message),
    /// Give the vCPU thread the machine's state.
    Load(Vec<u8>),
    /// Give the vCPU thread pages of RAM, ahead of the state.
    LoadPages { numbers: Vec<u64>, content: Vec<u8> },
    /// Keep the state from which a reset starts.
    KeepBoot(Vec<u8>),
    /// Have the vCPU thread write blocks to this host's copy of a private disk, and say so
    /// ([`blocks_written`](super::Backup::blocks_written)).
    LoadBlocks {
        disk: u8,
        numbers: Vec<u64>,
        content: Vec<u8>,
    },
    /// Have it make them stable, and say so likewise.
    FlushBlocks,
    /// Give the vCPU thread entries to replay.
    Deliver(Vec<LogEntry>),
    /// Ask for the generation after this one, whose owner is the primary (PROTOCOL 10).
    Claim(Generation),
    /// Have the vCPU thread say when everything delivered is executed.
    Drain,
    /// Go live under this generation; nanoseconds since this side asked for it, and whether the primary wanted that.
    GoLive {
        generation: Generation,
        took_ns: u64,
        planned: bool,
    },
    /// Tell the world.
    Report(Event),
    /// End this process.
    End { code: ExitCode, why: String },
}

/// What is to be done, without the acks that a later one of it says all of. They are evidence of the same moment
/// (PROTOCOL 12).
#[must_use]
pub(crate) fn only_the_last_ack(actions: Vec<BackupAction>) -> Vec<BackupAction> {
    let is_ack = |action: &BackupAction| matches!(action, BackupAction::Send(Message::Ack(_)));
    let last = actions.iter().rposition(is_ack);
    let kept = actions.into_iter().enumerate();
    let kept = kept.filter(|(at, action)| !is_ack(action) || Some(*at) == last);
    kept.map(|(_, action)| action).collect()
}
