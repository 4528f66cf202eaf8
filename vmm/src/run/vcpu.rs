//! What the vCPU thread of a pair says to the link, in one ordered stream, and the sink that says it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use logging_channel::entry::{EndReason, LogEntry, Mark, Position};
use tokio::sync::mpsc;

use crate::backends::queue::{EventQueue, EventSender};
use crate::hypervisor::Cpu;
use crate::machine::{Machine, MachineError};
use crate::output::Output;
use crate::roles::clock::LiveClock;
use crate::roles::live::{Live, LiveConfig, Marks, Sink};

/// Batches that may wait for the link; a full queue stops the vCPU (PROTOCOL 9). A batch is one exit's worth, or a
/// checkpoint.
const BATCHES: usize = 256;

/// From the vCPU thread.
#[derive(Debug)]
pub enum FromGuest {
    /// Log entries, then the outputs that stand at or before their last mark, then disk requests whose end the guest
    /// has been told.
    Batch {
        entries: Vec<LogEntry>,
        outputs: Vec<Output>,
        done: Vec<(Position, u8, u64)>,
    },
    /// The machine, for a joining backup.
    State { record: Vec<u8>, mark: Mark },
    /// The guest's life is over, or this host cannot go on with it.
    Ended(Result<EndReason, String>),
}

/// The sink of a primary.
#[derive(Debug)]
pub struct PairSink {
    link: mpsc::Sender<FromGuest>,
    logging: Arc<AtomicBool>,
    entries: Vec<LogEntry>,
    outputs: Vec<Output>,
    done: Vec<(Position, u8, u64)>,
}

/// The link's end.
#[derive(Debug)]
pub struct GuestStream {
    pub batches: mpsc::Receiver<FromGuest>,
    /// Cleared by the link when nobody reads the log any more.
    pub logging: Arc<AtomicBool>,
}

/// A sink, and what the link reads from it.
#[must_use]
pub fn pair_sink() -> (PairSink, GuestStream) {
    let (link, batches) = mpsc::channel(BATCHES);
    let logging = Arc::new(AtomicBool::new(false));
    let sink = PairSink {
        link,
        logging: Arc::clone(&logging),
        entries: Vec::new(),
        outputs: Vec::new(),
        done: Vec::new(),
    };
    (sink, GuestStream { batches, logging })
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

    fn log(&mut self, entry: LogEntry) -> Result<(), MachineError> {
        self.entries.push(entry);
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
        self.done.push((at, disk, id));
    }

    fn state(&mut self, record: Vec<u8>, mark: Mark) -> Result<(), MachineError> {
        self.send(FromGuest::State { record, mark })?;
        self.logging.store(true, Ordering::Release);
        Ok(())
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
    let how = match Live::new(machine, life.sink, life.queue, life.clock, config, Instant::now()).run(life.events) {
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
