//! A backup's machine: it takes the state, executes the log as it comes, and is handed over at go-live.
//!
//! No thread and no clock of its own: whoever drives it gives it orders and the time.

use std::time::Instant;

use ftvm_schema::entry::{EndReason, Input, LogEntry, OutputSeq, Position};
use ftvm_schema::request::DiskRequest;

use super::clock::LiveClock;
use super::copies::DiskCopies;
use super::copies::DiskError;
use super::replay::{DiskReader, ReplayError, Replayer};
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::Machine;
use ftvm_machine::output::Output;

/// How far the machine has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything given to it so far is executed, up to here.
    Executed(Position),
    /// It cannot follow any more: the replay differs from the log, or this host fails.
    Diverged { at: Position, what: String },
    /// The recorded end of the guest has been replayed.
    Ended(EndReason),
}

/// To the vCPU thread of a backup.
#[derive(Debug)]
pub enum FollowOrder {
    /// Pages of RAM, ahead of the state.
    Pages { numbers: Vec<u64>, content: Vec<u8> },
    /// Blocks of a private disk, ahead of the state.
    Blocks {
        disk: u8,
        numbers: Vec<u64>,
        content: Vec<u8>,
    },
    /// Make the blocks written so far stable.
    FlushBlocks,
    /// The state to start from.
    Load(Vec<u8>),
    /// Log entries to execute.
    Entries(Vec<LogEntry>),
    /// Say when everything before this is executed.
    Drain,
}

/// What the vCPU thread of a backup answers to each order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowReport {
    Progress(Progress),
    /// Blocks are written, or stable.
    BlocksWritten,
    Drained,
}

/// What a machine that goes live leaves to be done outside, in this order: requests issued again, outputs emitted again,
/// entropy asked for again.
#[derive(Debug)]
pub struct Takeover {
    pub requests: Vec<DiskRequest>,
    pub outputs: Vec<Output>,
    pub entropy: Option<u32>,
    pub outputs_made: OutputSeq,
    /// Whether the operator has the guest stand still.
    pub paused: bool,
}

/// A machine that follows a primary's.
#[derive(Debug)]
pub struct Following<C: Cpu> {
    replayer: Replayer<C>,
    /// When the entry with the last clock reading arrived: time goes on from there at go-live (PROTOCOL 20).
    last_clock: Instant,
}

impl<C: Cpu> Following<C> {
    /// `machine` has not run; it is `now`, and `clock` tells the time.
    #[must_use]
    pub fn new(machine: Machine<C>, now: Instant, clock: fn() -> Instant) -> Self {
        Following {
            replayer: Replayer::new(machine, clock),
            last_clock: now,
        }
    }

    /// With private disks of its own.
    #[must_use]
    pub fn with_copies(mut self, copies: Box<dyn DiskCopies + Send>) -> Self {
        self.replayer = self.replayer.with_copies(copies);
        self
    }

    /// Carries out an order that arrived at `arrived`: from the latest clock reading among its entries on, time is this
    /// host's. `disks` have what the log leaves out.
    pub fn obey(&mut self, order: FollowOrder, arrived: Instant, disks: &mut dyn DiskReader) -> FollowReport {
        let written =
            |result: Result<(), Progress>| result.map_or_else(FollowReport::Progress, |()| FollowReport::BlocksWritten);
        match order {
            FollowOrder::Pages { numbers, content } => FollowReport::Progress(self.pages(numbers, content)),
            FollowOrder::Blocks { disk, numbers, content } => written(self.blocks(disk, &numbers, &content)),
            FollowOrder::FlushBlocks => written(self.flush_blocks()),
            FollowOrder::Load(record) => FollowReport::Progress(self.load(&record)),
            FollowOrder::Entries(entries) => FollowReport::Progress(self.execute(entries, arrived, disks)),
            FollowOrder::Drain => FollowReport::Drained,
        }
    }

    /// Puts blocks on this host's copy of a private disk, ahead of the state.
    ///
    /// # Errors
    /// [`Progress::Diverged`]: this host is of no use as a backup any more.
    fn blocks(&mut self, disk: u8, numbers: &[u64], content: &[u8]) -> Result<(), Progress> {
        let put = self.replayer.copies().put(disk, numbers, content);
        self.useless(put)
    }

    /// Makes the blocks written so far stable.
    ///
    /// # Errors
    /// As [`Following::blocks`].
    fn flush_blocks(&mut self) -> Result<(), Progress> {
        let flushed = self.replayer.copies().flush();
        self.useless(flushed)
    }

    /// A copy that cannot be written makes this host useless as a backup, as a divergence does.
    fn useless(&mut self, result: Result<(), DiskError>) -> Result<(), Progress> {
        let at = self.replayer.machine().at();
        result.map_err(|error| Progress::Diverged {
            at,
            what: error.to_string(),
        })
    }

    /// Takes pages of RAM, ahead of the state.
    fn pages(&mut self, numbers: Vec<u64>, content: Vec<u8>) -> Progress {
        let result = self.replayer.pages(numbers, content);
        self.progress(result)
    }

    /// Takes the state to start from.
    fn load(&mut self, record: &[u8]) -> Progress {
        let result = self.replayer.load(record);
        self.progress(result)
    }

    /// Executes log entries that arrived `now`; `disks` have what the log leaves out.
    fn execute(&mut self, entries: Vec<LogEntry>, now: Instant, disks: &mut dyn DiskReader) -> Progress {
        let is_clock = |entry: &LogEntry| {
            matches!(
                entry,
                LogEntry::Input {
                    input: Input::Clock(_),
                    ..
                }
            )
        };
        if entries.iter().any(is_clock) {
            self.last_clock = now;
        }
        for entry in entries {
            self.replayer.feed(entry);
        }
        let result = self.replayer.catch_up(disks);
        self.progress(result)
    }

    /// The machine at its horizon, what is to be done outside first, and its clock from now on.
    #[must_use]
    pub fn into_live(self) -> (Machine<C>, Takeover, LiveClock) {
        let (machine, mut outputs) = self.replayer.into_live();
        let takeover = Takeover {
            requests: machine.chipset().outstanding_requests(),
            outputs: std::iter::from_fn(|| outputs.pop()).collect(),
            entropy: machine.chipset().entropy_wanted(),
            outputs_made: machine.outputs(),
            paused: machine.paused(),
        };
        let mut clock = LiveClock::resuming(machine.now(), self.last_clock);
        if machine.paused() {
            clock.stop(machine.now());
        }
        (machine, takeover, clock)
    }

    fn progress(&mut self, result: Result<(), ReplayError>) -> Progress {
        let at = self.replayer.machine().at();
        match (result, self.replayer.ended()) {
            (Ok(()), Some(reason)) => Progress::Ended(reason.clone()),
            (Ok(()), None) => Progress::Executed(at),
            (Err(error), _) => Progress::Diverged {
                at,
                what: error.to_string(),
            },
        }
    }
}
