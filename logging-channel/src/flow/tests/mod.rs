use proptest::prelude::*;

use super::*;
use crate::chunk::{CHUNK_BYTES, split};
use crate::codec::samples::position;
use crate::message::Ack;
use ftvm_schema::entry::{
    Digest, EndReason, ExitSeq, Generation, Incarnation, Input, LogEntry, Mark, OutputSeq, Position,
};

const ME: Incarnation = Incarnation(7);
const G: Generation = Generation(3);

fn tick(exit: u64) -> LogEntry {
    LogEntry::Input {
        at: ExitSeq(exit),
        input: Input::Clock(exit),
    }
}

fn mark(exit: u64, k: u32, sent_ns: u64) -> LogEntry {
    LogEntry::Mark(Mark {
        at: position(exit, k),
        digest: Digest::default(),
        outputs: OutputSeq(0),
        sent_ns,
        registers: None,
        memory_hash: None,
    })
}

fn end(exit: u64) -> LogEntry {
    LogEntry::End {
        at: position(exit, 0),
        reason: EndReason::Reset,
    }
}

fn checkpoint(exit: u64, k: u32, record: &[u8]) -> Vec<LogEntry> {
    split(record)
        .map(|chunk| LogEntry::Checkpoint {
            at: position(exit, k),
            chunk,
        })
        .collect()
}

fn inbox() -> Inbox {
    Inbox::new(ME, G, Position::default(), OutputSeq(0), 1 << 30)
}

fn tracker() -> AckTracker {
    AckTracker::new(ME, Position::default(), OutputSeq(0))
}

fn ack(frame: u64, received: Position, executed: Position, echo_ns: u64) -> Ack {
    Ack {
        incarnation: ME,
        frame,
        received,
        executed,
        echo_ns,
    }
}

mod backup;

mod primary;

mod leases;

mod together;
