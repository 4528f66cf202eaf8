//! Replaying a log: the machine is run to each entry's exit and given what the log says happened there. A file replay
//! and a backup use the same [`Replayer`]; a backup merely gets its entries one frame at a time.
//!
//! Every difference between this history and the recorded one is a [`Divergence`] with one cause, and is named.

mod comparing;
mod difference;
mod divergence;
mod words;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Digest, DiskStatus, EndReason, ExitSeq, Input, LogEntry, Position};
use ftvm_schema::request::DiskRequest;
use logging_channel::chunk::{Assembler, ChunkError};

use super::copies::{DiskCopies, DiskError, NoCopies};
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::state::MAX_RECORD;
use ftvm_machine::machine::{Machine, MachineError, Step, TimeSource};
use ftvm_machine::output::{Emission, OutputQueue};

use difference::{Difference, OtherContents};
use words::describe;

pub use divergence::Divergence;
pub use words::describe_end;

/// A guest that makes no exit for this long, though the log says it made one, is elsewhere than the recorded guest. A
/// recorded stretch without an exit ends after the patience, except where a kernel that starts has its interrupts off:
/// on an emulated host that others keep busy, Linux was seen to take more than 10 s for that. Whoever replays has to kick
/// the vCPU now and then for this to be noticed.
const NO_EXIT: Duration = Duration::from_secs(120);

/// Why a replay stopped before the log's end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The history differs.
    #[error("{0}")]
    Diverged(Box<Divergence>),
    /// The machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// What the log leaves to a disk cannot be had there, or a private disk cannot be written.
    #[error(transparent)]
    Disk(DiskError),
    /// A micro-checkpoint did not come whole.
    #[error("state record: {0}")]
    Checkpoint(#[from] ChunkError),
}

/// Reads from the shared disks what a log leaves out (`--disk-reads=backup`).
pub trait DiskReader {
    /// What is on the disk where `request`, a read, asks for it.
    ///
    /// # Errors
    /// Why the disk cannot be read.
    fn read(&mut self, request: &DiskRequest) -> Result<Vec<u8>, DiskError>;
}

/// For a log that carries everything.
#[derive(Clone, Copy, Debug)]
pub struct NoDisks;

#[derive(Debug, thiserror::Error)]
#[error("the log leaves out what was read from disk {disk}, and no disk is at hand")]
struct NoDiskAtHand {
    disk: u8,
}

impl DiskReader for NoDisks {
    fn read(&mut self, request: &DiskRequest) -> Result<Vec<u8>, DiskError> {
        Err(Box::new(NoDiskAtHand { disk: request.disk }))
    }
}

/// Why a replayer stops, before it is known whether that is a [`Divergence`].
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Differs(#[from] Difference),
    #[error(transparent)]
    Disk(DiskError),
    #[error("state record: {0}")]
    Checkpoint(#[from] ChunkError),
}

/// A machine that follows a log.
#[derive(Debug)]
pub struct Replayer<C: Cpu> {
    machine: Machine<C>,
    pending: VecDeque<LogEntry>,
    checkpoint: Assembler,
    /// Outputs made here and not yet known to be released by the primary.
    unreleased: OutputQueue,
    copies: Box<dyn DiskCopies + Send>,
    /// The last exit at which the machine agreed with a mark.
    last_good: ExitSeq,
    /// Tells the time of this host, for [`NO_EXIT`] alone.
    now: fn() -> Instant,
    last_exit: Instant,
    /// How the recorded life ended, once that has been replayed.
    ended: Option<EndReason>,
    inputs: u64,
    checkpoints: u64,
}

/// Gives an exit the clock reading that the log has at its head.
struct FromLog<'a> {
    pending: &'a mut VecDeque<LogEntry>,
    inputs: &'a mut u64,
}

impl TimeSource for FromLog<'_> {
    type Error = Stop;

    fn read(&mut self, at: Position, _floor: u64) -> Result<u64, Stop> {
        match self.pending.front() {
            Some(LogEntry::Input {
                at: exit,
                input: Input::Clock(time),
            }) if *exit == at.exit => {
                let time = *time;
                self.pending.pop_front();
                *self.inputs += 1;
                Ok(time)
            }
            other => Err(Difference::ClockNotNext {
                exit: at.exit,
                next: other.map_or_else(|| "not there".to_owned(), describe),
            }
            .into()),
        }
    }
}

impl<C: Cpu> Replayer<C> {
    /// Follows a log from where `machine` stands. `now` tells the time, by which a guest that makes no exit any more is noticed.
    #[must_use]
    pub fn new(machine: Machine<C>, now: fn() -> Instant) -> Self {
        Replayer {
            last_good: machine.at().exit,
            machine,
            pending: VecDeque::new(),
            checkpoint: Assembler::new(MAX_RECORD),
            unreleased: OutputQueue::default(),
            copies: Box::new(NoCopies),
            now,
            last_exit: now(),
            ended: None,
            inputs: 0,
            checkpoints: 0,
        }
    }

    /// With private disks of its own.
    #[must_use]
    pub fn with_copies(mut self, copies: Box<dyn DiskCopies + Send>) -> Self {
        self.copies = copies;
        self
    }

    /// This host's copies of the private disks.
    pub fn copies(&mut self) -> &mut dyn DiskCopies {
        &mut *self.copies
    }

    /// Takes the next entry; [`Replayer::catch_up`] executes it.
    pub fn feed(&mut self, entry: LogEntry) {
        self.pending.push_back(entry);
    }

    /// Executes everything fed so far; `disks` have what the log leaves out.
    ///
    /// # Errors
    /// At the first difference from the recorded history.
    pub fn catch_up(&mut self, disks: &mut dyn DiskReader) -> Result<(), ReplayError> {
        while self.ended.is_none()
            && let Some(entry) = self.pending.front()
        {
            let consumed = match entry {
                LogEntry::Input { at, .. } => {
                    let at = *at;
                    self.replay_input(at, disks)
                }
                _ => {
                    let entry = self.pending.pop_front().expect("looked at above");
                    self.replay_entry(entry)
                }
            };
            consumed.map_err(|error| self.diagnose(error))?;
        }
        Ok(())
    }

    /// Takes pages of RAM, ahead of the state record that [`Replayer::load`] will get.
    ///
    /// # Errors
    /// If they are not this guest's.
    pub fn pages(&mut self, numbers: Vec<u64>, content: Vec<u8>) -> Result<(), ReplayError> {
        self.machine.write_pages(numbers, content).map_err(ReplayError::Machine)
    }

    /// Starts from a state record instead of from boot.
    ///
    /// # Errors
    /// If the record does not fit the machine.
    pub fn load(&mut self, record: &[u8]) -> Result<(), ReplayError> {
        self.machine.load(record).map_err(ReplayError::Machine)?;
        self.last_good = self.machine.at().exit;
        self.level_copies().map_err(ReplayError::Disk)
    }

    /// The copies have what had landed before the state was saved; what the guest had asked for and had not been told of
    /// comes on top, whether it had landed or not.
    fn level_copies(&mut self) -> Result<(), DiskError> {
        for request in self.machine.chipset().outstanding_requests() {
            if self.machine.private_disks().contains(&request.disk) {
                self.copies.request(&request)?;
            }
        }
        self.copies.level()
    }

    /// How the recorded life ended, once that entry has been executed.
    #[must_use]
    pub fn ended(&self) -> Option<&EndReason> {
        self.ended.as_ref()
    }

    /// The machine as far as it has come.
    pub fn machine(&mut self) -> &mut Machine<C> {
        &mut self.machine
    }

    /// Inputs and micro-checkpoints executed so far.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.inputs, self.checkpoints)
    }

    /// Outputs not known to be released.
    pub fn unreleased(&mut self) -> &mut OutputQueue {
        &mut self.unreleased
    }

    /// The machine at its horizon, and the outputs to be emitted again, to go live with. A checkpoint that has not
    /// come whole is discarded (PROTOCOL 4).
    #[must_use]
    pub fn into_live(self) -> (Machine<C>, OutputQueue) {
        (self.machine, self.unreleased)
    }

    fn replay_input(&mut self, at: ExitSeq, disks: &mut dyn DiskReader) -> Result<(), Stop> {
        let before = self.inputs;
        self.run_to(at)?;
        if self.inputs > before {
            return Ok(()); // the exit itself took it: a clock reading
        }
        let Some(LogEntry::Input { input, .. }) = self.pending.pop_front() else {
            unreachable!("looked at before")
        };
        self.settle_at(at, &input)?;
        let input = match input {
            Input::DiskRead { disk, id, digest } => self.read_disk(disk, id, digest, disks)?,
            Input::DiskDone { disk, id, .. } => {
                self.copies.brought(disk, id); // the primary's read failed: what this one brought is of no use
                input
            }
            other => other,
        };
        self.machine.apply(&input)?;
        self.inputs += 1;
        self.collect()
    }

    /// The completion of a read whose data the log leaves to the shared disk. No write to these blocks starts before this
    /// side has said that it is past here (PROTOCOL 8, `Primary::executed`).
    fn read_disk(&mut self, disk: u8, id: u64, digest: Digest, disks: &mut dyn DiskReader) -> Result<Input, Stop> {
        let outstanding = self.machine.chipset().outstanding_requests();
        let request = outstanding
            .into_iter()
            .find(|request| (request.disk, request.id) == (disk, id));
        let request = request.ok_or(Difference::RequestNotMade { disk, id })?;
        let data = match self.copies.brought(disk, id) {
            Some(data) => data,
            None => disks.read(&request).map_err(Stop::Disk)?,
        };
        let found = Digest::of(&data);
        if found != digest {
            let (op, there) = (request.op, digest);
            return Err(Stop::Disk(Box::new(OtherContents { disk, op, found, there })));
        }
        Ok(Input::DiskDone {
            disk,
            id,
            status: DiskStatus::Ok,
            data,
        })
    }

    fn settle_at(&mut self, at: ExitSeq, input: &Input) -> Result<(), Stop> {
        let mut time = FromLog {
            pending: &mut self.pending,
            inputs: &mut self.inputs,
        };
        self.machine.settle(&mut time)?;
        if self.machine.at().exit != at {
            let input = input.clone();
            let entry = describe(&LogEntry::Input { at, input });
            return Err(Difference::FurtherExit { exit: at, entry }.into());
        }
        Ok(())
    }

    fn replay_entry(&mut self, entry: LogEntry) -> Result<(), Stop> {
        match entry {
            LogEntry::Input { .. } => unreachable!("inputs are taken from the head of the queue"),
            LogEntry::Mark(mark) => self.compare_mark(&mark),
            LogEntry::Released { through } => {
                self.unreleased.forget_before(through);
                Ok(())
            }
            LogEntry::Checkpoint { at, chunk } => {
                if let Some(record) = self.checkpoint.add(chunk)? {
                    self.run_to(at.exit)?;
                    self.machine.apply_checkpoint(&record)?;
                    self.checkpoints += 1;
                }
                Ok(())
            }
            LogEntry::Checks { from, bytes } => {
                self.run_to(ExitSeq(from.0 + (bytes.len() as u64).saturating_sub(1)))?;
                self.compare_checks(from, &bytes)
            }
            LogEntry::End { at, reason } => {
                self.run_to(at.exit)?;
                self.compare_end(at, &reason)?;
                self.copies.ended().map_err(Stop::Disk)?;
                self.ended = Some(reason);
                Ok(())
            }
        }
    }

    /// Runs to exit `exit`, where the log has its next entry.
    fn run_to(&mut self, exit: ExitSeq) -> Result<(), Stop> {
        let here = self.machine.at().exit;
        if here > exit {
            return Err(Difference::AlreadyBehind { exit, here }.into());
        }
        self.last_exit = (self.now)();
        while self.machine.at().exit < exit {
            let mut time = FromLog {
                pending: &mut self.pending,
                inputs: &mut self.inputs,
            };
            let step = self.machine.run_to_exit(&mut time)?;
            self.collect()?;
            match step {
                Step::Exit => self.last_exit = (self.now)(),
                Step::Interrupted if (self.now)().saturating_duration_since(self.last_exit) < NO_EXIT => {}
                Step::Ended(_) if self.machine.at().exit == exit => {}
                other => {
                    let found = match other {
                        Step::Halted => "sleeps with nothing to wake it".to_owned(),
                        Step::Interrupted => format!("made no exit for {} s", NO_EXIT.as_secs()),
                        Step::Ended(reason) => format!("ended ({})", describe_end(&reason)),
                        Step::Exit => unreachable!("handled above"),
                    };
                    let here = self.machine.at().exit;
                    return Err(Difference::StopsShort { exit, here, found }.into());
                }
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Stop> {
        for output in self.machine.drain_outputs() {
            if let Emission::PrivateDisk(request) = &output.emission {
                self.copies.request(request).map_err(Stop::Disk)?;
            } else if output.emission.is_output() {
                self.unreleased.push(output);
            }
        }
        Ok(())
    }
}
