//! What the vCPU thread of a pair says to the link, in one ordered stream, and the sink that says it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use ftvm_schema::entry::{Digest, EndReason, Input, LogEntry, Mark, Position};
use logging_channel::codec::data_bytes;
use logging_channel::message::DiskReads;

use super::super::disks::{DiskEnd, Known};
use super::super::live::{LiveError, Sink, SinkError};
use crate::host_event::Control;
use ftvm_machine::output::Output;

/// Entries, and bytes of data in them, that are taken as one batch at most. The backup says how far it has executed once it
/// has executed a frame: this is about sixty exits' worth.
const TOGETHER: (usize, usize) = (256, 64 << 10);

/// Nobody takes what the vCPU thread says: the process is ending.
#[derive(Debug, thiserror::Error)]
#[error("the link has ended")]
struct LinkEnded;

/// From the vCPU thread.
#[derive(Debug)]
pub enum FromGuest {
    /// Log entries, then the outputs that stand at or before their last mark, then disk requests whose end the guest
    /// has been told.
    Batch {
        entries: Vec<LogEntry>,
        outputs: Vec<Output>,
        finished: Vec<DiskEnd>,
    },
    /// Pages written since this was last said.
    Dirty(Vec<u64>),
    /// The machine, for a joining backup, for which the guest was stopped so long.
    State {
        record: Vec<u8>,
        mark: Mark,
        stopped: Duration,
    },
    /// An order other than those answered above is carried out, at this point of the stream.
    Obeyed(Control),
    /// The guest's life is over, or this host cannot go on with it.
    Ended(Result<EndReason, LiveError>),
}

/// The way from the vCPU thread to the link.
pub trait ToLink {
    /// Says something, waiting while the link takes nothing more; false if the link has ended.
    fn say(&self, message: FromGuest) -> bool;
}

/// What the link sets and the vCPU thread looks at.
#[derive(Clone, Debug, Default)]
pub struct Reins {
    /// Whether anybody reads the log. Set by the thread when it has saved the state for a backup, cleared by the link.
    pub logging: Arc<AtomicBool>,
    /// Thousandths of the time that the guest is to stand still.
    pub idle: Arc<AtomicU32>,
}

/// The sink of a primary.
#[derive(Debug)]
pub struct PairSink<L> {
    link: L,
    reins: Reins,
    entries: Vec<LogEntry>,
    outputs: Vec<Output>,
    finished: Vec<DiskEnd>,
    disk_reads: DiskReads,
}

impl<L: ToLink> PairSink<L> {
    /// A sink that tells `link`.
    #[must_use]
    pub fn new(link: L, reins: Reins, disk_reads: DiskReads) -> Self {
        PairSink {
            link,
            reins,
            entries: Vec::new(),
            outputs: Vec::new(),
            finished: Vec::new(),
            disk_reads,
        }
    }

    /// The way to the link.
    #[must_use]
    pub fn link(&self) -> &L {
        &self.link
    }

    fn send(&self, message: FromGuest) -> Result<(), SinkError> {
        if self.link.say(message) {
            Ok(())
        } else {
            Err(LinkEnded.into())
        }
    }
}

/// What the vCPU thread said first, with the batches that wait behind it where it is one: of at most 256 entries and 64 KiB
/// of data unless it is a single one. A link that is late catches up by fewer frames and acks. The second is what was taken
/// out and did not fit: it is said next.
pub fn take_together(first: FromGuest, mut next: impl FnMut() -> Option<FromGuest>) -> (FromGuest, Option<FromGuest>) {
    let mut taken = first;
    let FromGuest::Batch {
        entries,
        outputs,
        finished,
    } = &mut taken
    else {
        return (taken, None);
    };
    let mut bytes = payload(entries);
    while let Some(message) = next() {
        match message {
            FromGuest::Batch {
                entries: more,
                outputs: further,
                finished: ended,
            } if entries.len() + more.len() <= TOGETHER.0 && bytes + payload(&more) <= TOGETHER.1 => {
                bytes += payload(&more);
                entries.extend(more);
                outputs.extend(further);
                finished.extend(ended);
            }
            other => return (taken, Some(other)),
        }
    }
    (taken, None)
}

fn payload(entries: &[LogEntry]) -> usize {
    entries.iter().map(data_bytes).sum()
}

impl<L: ToLink> Sink for PairSink<L> {
    fn logging(&self) -> bool {
        self.reins.logging.load(Ordering::Acquire)
    }

    fn idle_permille(&self) -> u32 {
        self.reins.idle.load(Ordering::Relaxed)
    }

    fn log(&mut self, entry: LogEntry) -> Result<(), SinkError> {
        self.entries.push(match (self.disk_reads, entry) {
            (
                DiskReads::Backup,
                LogEntry::Input {
                    at,
                    input: Input::DiskDone { disk, id, data, .. },
                },
            ) if !data.is_empty() => LogEntry::Input {
                at,
                input: Input::DiskRead {
                    disk,
                    id,
                    digest: Digest::of(&data),
                },
            },
            (_, entry) => entry,
        });
        Ok(())
    }

    fn output(&mut self, output: Output) -> Result<(), SinkError> {
        self.outputs.push(output);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        if self.entries.is_empty() && self.outputs.is_empty() && self.finished.is_empty() {
            return Ok(());
        }
        let batch = FromGuest::Batch {
            entries: std::mem::take(&mut self.entries),
            outputs: std::mem::take(&mut self.outputs),
            finished: std::mem::take(&mut self.finished),
        };
        self.send(batch)
    }

    fn disk_finished(&mut self, disk: u8, id: u64, at: Position) {
        let left_out = |entry: &LogEntry| {
            matches!(
                entry,
                LogEntry::Input {
                    input: Input::DiskRead { .. },
                    ..
                }
            )
        };
        let known = if self.entries.last().is_some_and(left_out) {
            Known::Executed
        } else {
            Known::Received
        };
        self.finished.push(DiskEnd { at, disk, id, known });
    }

    fn dirty(&mut self, pages: Vec<u64>) -> Result<(), SinkError> {
        self.send(FromGuest::Dirty(pages))
    }

    fn state(&mut self, record: Vec<u8>, mark: Mark, stopped: Duration) -> Result<(), SinkError> {
        self.send(FromGuest::State { record, mark, stopped })?;
        self.reins.logging.store(true, Ordering::Release);
        Ok(())
    }

    fn obeyed(&mut self, order: Control) -> Result<(), SinkError> {
        self.send(FromGuest::Obeyed(order))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use ftvm_schema::entry::{DiskStatus, ExitSeq};

    use super::*;

    #[derive(Debug, Default)]
    struct Said(RefCell<VecDeque<FromGuest>>);

    impl ToLink for Said {
        fn say(&self, message: FromGuest) -> bool {
            self.0.borrow_mut().push_back(message);
            true
        }
    }

    fn sink(disk_reads: DiskReads) -> PairSink<Said> {
        PairSink::new(Said::default(), Reins::default(), disk_reads)
    }

    /// What a sink makes of the end of a request that brought `data`.
    fn logged(disk_reads: DiskReads, data: Vec<u8>) -> (Input, Known) {
        let mut sink = sink(disk_reads);
        let input = Input::DiskDone {
            disk: 1,
            id: 5,
            status: DiskStatus::Ok,
            data,
        };
        let at = Position { exit: ExitSeq(9), k: 1 };
        sink.log(LogEntry::Input { at: at.exit, input }).unwrap();
        sink.disk_finished(1, 5, at);
        sink.flush().unwrap();
        let Some(FromGuest::Batch {
            mut entries, finished, ..
        }) = sink.link.0.borrow_mut().pop_front()
        else {
            panic!("no batch")
        };
        let Some(LogEntry::Input { input, .. }) = entries.pop() else {
            panic!("no input")
        };
        (input, finished[0].known)
    }

    fn clock(exit: u64) -> LogEntry {
        LogEntry::Input {
            at: ExitSeq(exit),
            input: Input::Clock(exit),
        }
    }

    fn frame(len: usize) -> LogEntry {
        LogEntry::Input {
            at: ExitSeq(0),
            input: Input::NetRx {
                nic: 0,
                frame: vec![0; len],
            },
        }
    }

    /// The entries of everything that is said, as it is taken.
    fn taken(sink: &PairSink<Said>) -> Vec<Vec<LogEntry>> {
        let mut said = sink.link.0.borrow_mut();
        let (mut ahead, mut all) = (None, Vec::new());
        while let Some(first) = ahead.take().or_else(|| said.pop_front()) {
            let (message, left) = take_together(first, || said.pop_front());
            ahead = left;
            all.push(match message {
                FromGuest::Batch { entries, .. } => entries,
                _ => Vec::new(),
            });
        }
        all
    }

    #[test]
    fn batches_that_wait_are_one_up_to_a_bound_and_in_order() {
        let say = |sink: &mut PairSink<Said>, entries: Vec<LogEntry>| {
            for entry in entries {
                sink.log(entry).unwrap();
            }
            sink.flush().unwrap();
        };
        let mut many = sink(DiskReads::Log);
        let most = TOGETHER.0 as u64;
        for exit in 0..most / 2 {
            say(&mut many, vec![clock(2 * exit), clock(2 * exit + 1)]);
        }
        say(&mut many, vec![clock(most)]);
        let expected = [(0..most).map(clock).collect(), vec![clock(most)]];
        assert_eq!(taken(&many), expected);

        let mut large = sink(DiskReads::Log);
        let half = TOGETHER.1 / 2;
        for bytes in [half, half, 1, 3 * half, 1] {
            say(&mut large, vec![frame(bytes)]);
        }
        large.dirty(vec![1]).unwrap();
        let lengths: Vec<_> = taken(&large).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1, 1, 1, 0]);
    }

    #[test]
    fn only_what_a_backup_reads_itself_is_left_out() {
        let digest = Digest::of(&[7; 512]);
        let named = Input::DiskRead { disk: 1, id: 5, digest };
        assert_eq!(logged(DiskReads::Backup, vec![7; 512]), (named, Known::Executed));
        let done = |data: Vec<u8>| Input::DiskDone {
            disk: 1,
            id: 5,
            status: DiskStatus::Ok,
            data,
        };
        // Writes, flushes and failed reads bring nothing.
        assert_eq!(logged(DiskReads::Backup, vec![]), (done(vec![]), Known::Received));
        let data = vec![7; 512];
        assert_eq!(logged(DiskReads::Log, data.clone()), (done(data), Known::Received));
    }
}
