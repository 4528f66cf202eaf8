//! The output rule's one choke point: what counts as an output is decided here, and every effect that leaves a guest
//! passes through the queue here.
//!
//! An output at position p may leave only when the backup has acknowledged a mark at or behind p (Scales et al., 2.2;
//! PROTOCOL 2, 7-9). Only the output waits; the guest runs on, until the queue's bound stops it.

use std::collections::VecDeque;

use ftvm_schema::entry::{ConsolePort, OutputSeq, Position};
use ftvm_schema::request::{DiskOp, DiskRequest};
use serde::{Deserialize, Serialize};

/// Most bytes of held outputs; when more are held the vCPU stops (PROTOCOL 9).
pub const HELD_BYTES: usize = 16 << 20;

/// Something that leaves the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Emission {
    /// An Ethernet frame.
    Frame { nic: u8, bytes: Vec<u8> },
    /// Console bytes; `position` counts the bytes written to that port before, so that a file holds each exactly once.
    Console {
        port: ConsolePort,
        position: u64,
        bytes: Vec<u8>,
    },
    /// A request to a shared disk. Writes and flushes are outputs; reads are not.
    Disk(DiskRequest),
    /// virtio-rng asks for host entropy: not an output.
    WantEntropy { len: u32 },
    /// A request to a private disk. Nobody else sees that disk, so even a write is no output (the paper, section 4.1).
    PrivateDisk(DiskRequest),
}

impl Emission {
    /// Whether the output rule holds it back, that is, whether it can be seen outside.
    #[must_use]
    pub fn is_output(&self) -> bool {
        match self {
            Emission::Frame { .. } | Emission::Console { .. } => true,
            Emission::Disk(request) => !matches!(request.op, DiskOp::Read { .. }),
            Emission::PrivateDisk(_) | Emission::WantEntropy { .. } => false,
        }
    }

    /// Bytes it occupies in a queue.
    #[must_use]
    pub fn weight(&self) -> usize {
        let payload = match self {
            Emission::Frame { bytes, .. } | Emission::Console { bytes, .. } => bytes.len(),
            Emission::Disk(request) | Emission::PrivateDisk(request) => match &request.op {
                DiskOp::Write { data, .. } => data.len(),
                DiskOp::Read { .. } | DiskOp::Flush => 0,
            },
            Emission::WantEntropy { .. } => 0,
        };
        payload + size_of::<Output>()
    }

    /// Folds what the outside would see into `digest` (PROTOCOL 5).
    pub fn fold(&self, digest: &mut ftvm_schema::entry::Digest) {
        match self {
            Emission::Frame { nic, bytes } => {
                digest.fold(0x1_0000 | u64::from(*nic));
                digest.fold_bytes(bytes);
            }
            Emission::Console { port, bytes, .. } => {
                digest.fold(0x2_0000 | *port as u64);
                digest.fold_bytes(bytes);
            }
            Emission::Disk(request) | Emission::PrivateDisk(request) => {
                digest.fold(0x3_0000 | u64::from(request.disk));
                digest.fold(request.id);
                match &request.op {
                    DiskOp::Read { offset, len } => {
                        digest.fold(*offset);
                        digest.fold(u64::from(*len));
                    }
                    DiskOp::Write { offset, data } => {
                        digest.fold(*offset);
                        digest.fold_bytes(data);
                    }
                    DiskOp::Flush => digest.fold(u64::MAX),
                }
            }
            Emission::WantEntropy { len } => digest.fold(0x4_0000_0000 | u64::from(*len)),
        }
    }
}

/// An emission with its place. `seq` numbers outputs; what is no output has the number of the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    pub at: Position,
    pub seq: OutputSeq,
    pub emission: Emission,
}

/// Outputs in order, with their weight: what a primary holds back, and what a backup keeps until it hears that the
/// primary has released it.
#[derive(Clone, Debug, Default)]
pub struct OutputQueue {
    queue: VecDeque<Output>,
    bytes: usize,
}

impl OutputQueue {
    /// Appends; order is the guest's.
    pub fn push(&mut self, output: Output) {
        debug_assert!(
            self.queue
                .back()
                .is_none_or(|last| last.at <= output.at && last.seq <= output.seq)
        );
        self.bytes += output.emission.weight();
        self.queue.push_back(output);
    }

    /// The oldest one, if `covered` reaches it (`None`: nothing is covered).
    pub fn pop_covered(&mut self, covered: Option<Position>) -> Option<Output> {
        if self.queue.front()?.at > covered? {
            return None;
        }
        self.pop()
    }

    /// The oldest one.
    pub fn pop(&mut self) -> Option<Output> {
        let output = self.queue.pop_front()?;
        self.bytes -= output.emission.weight();
        Some(output)
    }

    /// Forgets outputs before `through` (they have been released).
    pub fn forget_before(&mut self, through: OutputSeq) {
        while self.queue.front().is_some_and(|output| output.seq < through) {
            self.pop();
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Outputs held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Output> {
        self.queue.iter()
    }
}

#[cfg(test)]
mod tests {
    use ftvm_schema::entry::ExitSeq;

    use super::*;

    fn output(exit: u64, k: u32, seq: u64) -> Output {
        let emission = Emission::Console {
            port: ConsolePort::Serial,
            position: 10 * seq,
            bytes: vec![0; 10],
        };
        Output {
            at: Position { exit: ExitSeq(exit), k },
            seq: OutputSeq(seq),
            emission,
        }
    }

    #[test]
    fn holds_until_covered() {
        let mut queue = OutputQueue::default();
        queue.push(output(5, 0, 0));
        queue.push(output(5, 2, 1));
        assert_eq!(queue.pop_covered(None), None);
        assert_eq!(queue.pop_covered(Some(Position { exit: ExitSeq(4), k: 9 })), None);
        assert_eq!(
            queue
                .pop_covered(Some(Position { exit: ExitSeq(5), k: 1 }))
                .map(|o| o.seq),
            Some(OutputSeq(0))
        );
        assert_eq!(queue.pop_covered(Some(Position { exit: ExitSeq(5), k: 1 })), None);
        assert_eq!(
            queue
                .pop_covered(Some(Position { exit: ExitSeq(5), k: 2 }))
                .map(|o| o.seq),
            Some(OutputSeq(1))
        );
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn forgets_what_was_released() {
        let mut queue = OutputQueue::default();
        (0..4).for_each(|n| queue.push(output(n, 0, n)));
        queue.forget_before(OutputSeq(3));
        assert_eq!(queue.iter().map(|o| o.seq.0).collect::<Vec<_>>(), [3]);
    }
}
