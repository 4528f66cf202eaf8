//! What the vCPU thread of a pair says to the link, in one ordered stream, and the sink that says it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Digest, EndReason, Input, LogEntry, Mark, Position};
use logging_channel::codec::data_bytes;
use logging_channel::message::DiskReads;
use tokio::sync::mpsc;

use ftvm_host::queue::{EventQueue, EventSender};
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::{Machine, MachineError};
use ftvm_machine::output::Output;
use ftvm_roles::clock::LiveClock;
use ftvm_roles::disks::{DiskEnd, Known};
use ftvm_roles::host_event::Control;
use ftvm_roles::live::{Live, LiveConfig, Marks, Sink};

/// Batches that may wait for the link; a full queue stops the vCPU (PROTOCOL 9). A batch is one exit's worth, or a
/// checkpoint.
const BATCHES: usize = 256;

/// Entries, and bytes of data in them, that are taken as one batch at most. The backup says how far it has executed once it
/// has executed a frame: this is about sixty exits' worth.
const TOGETHER: (usize, usize) = (256, 64 << 10);

/// From the vCPU thread.
#[derive(Debug)]
pub enum FromGuest {
    /// Log entries, then the outputs that stand at or before their last mark, then disk requests whose end the guest
    /// has been told.
    Batch {
        entries: Vec<LogEntry>,
        outputs: Vec<Output>,
        done: Vec<DiskEnd>,
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
    Ended(Result<EndReason, String>),
}

/// The sink of a primary.
#[derive(Debug)]
pub struct PairSink {
    link: mpsc::Sender<FromGuest>,
    logging: Arc<AtomicBool>,
    idle: Arc<AtomicU32>,
    entries: Vec<LogEntry>,
    outputs: Vec<Output>,
    done: Vec<DiskEnd>,
    disk_reads: DiskReads,
}

/// The link's end.
#[derive(Debug)]
pub struct GuestStream {
    batches: mpsc::Receiver<FromGuest>,
    /// Taken out of the queue, and the next to be said.
    ahead: Option<FromGuest>,
    /// Cleared by the link when nobody reads the log any more.
    pub logging: Arc<AtomicBool>,
    /// Set by the link: thousandths of the time that the guest stands still.
    pub idle: Arc<AtomicU32>,
}

/// A sink, and what the link reads from it.
#[must_use]
pub fn pair_sink(disk_reads: DiskReads) -> (PairSink, GuestStream) {
    let (link, batches) = mpsc::channel(BATCHES);
    let logging = Arc::new(AtomicBool::new(false));
    let idle = Arc::new(AtomicU32::new(0));
    let sink = PairSink {
        link,
        logging: Arc::clone(&logging),
        idle: Arc::clone(&idle),
        entries: Vec::new(),
        outputs: Vec::new(),
        done: Vec::new(),
        disk_reads,
    };
    let stream = GuestStream {
        batches,
        ahead: None,
        logging,
        idle,
    };
    (sink, stream)
}

impl GuestStream {
    /// What the vCPU thread says next; nothing once it has ended. May be cancelled (in `select!`) without loss.
    ///
    /// Batches that wait are taken as one, of at most [`TOGETHER`] entries and bytes unless it is a single one: a link that is late
    /// catches up by fewer frames and acks.
    pub async fn next(&mut self) -> Option<FromGuest> {
        if self.ahead.is_none() {
            self.ahead = Some(self.batches.recv().await?);
        }
        self.try_next()
    }

    /// The same if there is something.
    pub fn try_next(&mut self) -> Option<FromGuest> {
        let mut taken = self.ahead.take().or_else(|| self.batches.try_recv().ok())?;
        if let FromGuest::Batch { entries, outputs, done } = &mut taken {
            let mut bytes = payload(entries);
            while let Ok(next) = self.batches.try_recv() {
                match next {
                    FromGuest::Batch {
                        entries: more,
                        outputs: further,
                        done: ended,
                    } if entries.len() + more.len() <= TOGETHER.0 && bytes + payload(&more) <= TOGETHER.1 => {
                        bytes += payload(&more);
                        entries.extend(more);
                        outputs.extend(further);
                        done.extend(ended);
                    }
                    other => {
                        self.ahead = Some(other);
                        break;
                    }
                }
            }
        }
        Some(taken)
    }

    /// How much waits to be taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.batches.len() + usize::from(self.ahead.is_some())
    }
}

fn payload(entries: &[LogEntry]) -> usize {
    entries.iter().map(data_bytes).sum()
}

impl PairSink {
    /// The last word: how this life was.
    pub fn ended(&self, how: Result<EndReason, String>) {
        // If the link is gone, so is the process.
        let _ = self.link.blocking_send(FromGuest::Ended(how));
    }

    fn send(&self, message: FromGuest) -> Result<(), MachineError> {
        self.link
            .blocking_send(message)
            .map_err(|_| MachineError::Log("the link has ended".to_owned()))
    }
}

impl Sink for PairSink {
    fn logging(&self) -> bool {
        self.logging.load(Ordering::Acquire)
    }

    fn idle_permille(&self) -> u32 {
        self.idle.load(Ordering::Relaxed)
    }

    fn log(&mut self, entry: LogEntry) -> Result<(), MachineError> {
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

    fn output(&mut self, output: Output) -> Result<(), MachineError> {
        self.outputs.push(output);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MachineError> {
        if self.entries.is_empty() && self.outputs.is_empty() && self.done.is_empty() {
            return Ok(());
        }
        let batch = FromGuest::Batch {
            entries: std::mem::take(&mut self.entries),
            outputs: std::mem::take(&mut self.outputs),
            done: std::mem::take(&mut self.done),
        };
        self.send(batch)
    }

    fn disk_done(&mut self, disk: u8, id: u64, at: Position) {
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
        self.done.push(DiskEnd { at, disk, id, known });
    }

    fn dirty(&mut self, pages: Vec<u64>) -> Result<(), MachineError> {
        self.send(FromGuest::Dirty(pages))
    }

    fn state(&mut self, record: Vec<u8>, mark: Mark, stopped: Duration) -> Result<(), MachineError> {
        self.send(FromGuest::State { record, mark, stopped })?;
        self.logging.store(true, Ordering::Release);
        Ok(())
    }

    fn obeyed(&mut self, order: Control) -> Result<(), MachineError> {
        self.send(FromGuest::Obeyed(order))
    }
}

/// Everything a machine needs to live in a pair.
#[derive(Debug)]
pub struct Life {
    pub sink: PairSink,
    pub queue: EventQueue,
    pub events: EventSender,
    pub clock: LiveClock,
    pub patience: Duration,
}

/// Lives on this thread until the end, and says how it was.
pub fn live<C: Cpu>(machine: Machine<C>, life: Life) {
    let config = LiveConfig {
        patience: life.patience,
        marks: Marks::EveryFlush,
        checks: false,
        max_exits: None,
    };
    let link = life.sink.link.clone();
    let live = Live::new(machine, life.sink, life.queue, life.clock, config, Instant::now());
    let how = match ftvm_host::vcpu::run(live, life.events) {
        Ok((_, _, reason, _)) => Ok(reason),
        Err(error) => Err(error.to_string()),
    };
    // If the link is gone, so is the process.
    let _ = link.blocking_send(FromGuest::Ended(how));
}

/// The virtual clock of a new guest.
#[must_use]
pub fn new_clock() -> LiveClock {
    LiveClock::starting(0, Instant::now())
}

#[cfg(test)]
mod tests {
    use ftvm_schema::entry::{DiskStatus, ExitSeq};

    use super::*;

    /// What a sink makes of the end of a request that brought `data`.
    fn logged(disk_reads: DiskReads, data: Vec<u8>) -> (Input, Known) {
        let (mut sink, mut stream) = pair_sink(disk_reads);
        let input = Input::DiskDone {
            disk: 1,
            id: 5,
            status: DiskStatus::Ok,
            data,
        };
        let at = Position { exit: ExitSeq(9), k: 1 };
        sink.log(LogEntry::Input { at: at.exit, input }).unwrap();
        sink.disk_done(1, 5, at);
        sink.flush().unwrap();
        let Some(FromGuest::Batch { mut entries, done, .. }) = stream.try_next() else {
            panic!("no batch")
        };
        let Some(LogEntry::Input { input, .. }) = entries.pop() else {
            panic!("no input")
        };
        (input, done[0].known)
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

    #[test]
    fn batches_that_wait_are_one_up_to_a_bound_and_in_order() {
        let (mut sink, mut stream) = pair_sink(DiskReads::Log);
        let mut say = |entries: Vec<LogEntry>| {
            for entry in entries {
                sink.log(entry).unwrap();
            }
            sink.flush().unwrap();
        };
        let taken = |stream: &mut GuestStream| match stream.try_next() {
            Some(FromGuest::Batch { entries, .. }) => entries.len(),
            Some(_) => 0,
            None => usize::MAX,
        };
        let most = TOGETHER.0 as u64;
        for exit in 0..most / 2 {
            say(vec![clock(2 * exit), clock(2 * exit + 1)]);
        }
        say(vec![clock(most)]);
        assert_eq!(stream.waiting(), TOGETHER.0 / 2 + 1);
        let Some(FromGuest::Batch { entries, .. }) = stream.try_next() else {
            panic!("no batch")
        };
        assert_eq!(entries, (0..most).map(clock).collect::<Vec<_>>());
        assert_eq!(
            (stream.waiting(), taken(&mut stream), taken(&mut stream)),
            (1, 1, usize::MAX)
        );

        let half = TOGETHER.1 / 2;
        for bytes in [half, half, 1, 3 * half, 1] {
            say(vec![frame(bytes)]);
        }
        sink.dirty(vec![1]).unwrap();
        let lengths: Vec<_> = std::iter::repeat_with(|| taken(&mut stream)).take(6).collect();
        assert_eq!(lengths, [2, 1, 1, 1, 0, usize::MAX]);
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
