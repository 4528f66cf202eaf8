//! A live machine: inputs come from the host and are logged, outputs go to a [`Sink`]. `record`, the primary, and a
//! backup that has gone live all run this loop, on a plain thread that owns the machine.
//!
//! Inputs are taken only at exits. A guest that does not exit while one waits is kicked by the monitor once the [`patience`]
//! has run out, and moved by a micro-checkpoint (docs, "Design", idea 3).
//!
//! The decisions ([`Live::begin`], [`Live::step`], [`Live::woken`]) ask the caller for the time and never wait: the
//! simulator drives them with a time of its own. In production the vCPU thread does, which waits for events, and a monitor
//! thread kicks its guest.
//!
//! [`patience`]: super::patience

mod brake;
mod faults;
mod flushing;
mod inputs;
mod sink;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ftvm_schema::entry::{EndReason, ExitSeq, Input, LogEntry, Position};
use logging_channel::chunk;

use super::clock::LiveClock;
use super::patience::Patience;
use super::patience::watched::{FLUSH_AFTER, Watched};
use crate::host_event::HostEvent;
use ftvm_devices::QueueFault;
use ftvm_hypervisor::Cpu;
use ftvm_machine::machine::state::Moved;
use ftvm_machine::machine::trail::TRAIL_EXITS;
use ftvm_machine::machine::{Machine, MachineError, Step, TimeSource};

pub use brake::{Brake, pause};
pub use sink::{Sink, SinkError};

/// Most events applied at one exit before the guest runs again, so that a flood cannot starve it.
const EVENTS_PER_EXIT: usize = 64;

/// Most typed bytes waiting for a slow console driver; further ones are dropped, as on a real line.
const CONSOLE_BACKLOG: usize = 64 << 10;

/// Entries that only carry clock readings wait for company, at most this many.
const BATCH: usize = 256;

/// How often the dirty log is reset at exits, so that the next checkpoint is small: each reset write-protects the guest's
/// pages anew, which costs a guest that is dirtying them a fault for each page, as much as a page of a checkpoint does.
/// While no checkpoint comes, half as often each time.
const HARVEST_EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1600));

/// How soon the guest is kicked again when a kick met it with interrupts off.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// Which marks a log carries (PROTOCOL 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkPolicy {
    /// At every flush: a backup's horizon moves only with them.
    EveryFlush,
    /// In a file: not more often than every so many exits, with registers.
    EveryExits(u64),
}

/// Why a live machine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The machine itself.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The log cannot be written, or the outside is gone.
    #[error("log: {0}")]
    Sink(#[from] SinkError),
}

/// Settings of a live machine.
#[derive(Clone, Copy, Debug)]
pub struct LiveConfig {
    /// How long a tick waits for the guest to exit by itself; see [`super::patience`].
    pub patience: Duration,
    pub marks: MarkPolicy,
    /// Whether a check byte is kept for every exit.
    pub checks: bool,
    /// End after this many exits.
    pub max_exits: Option<u64>,
}

/// What a life amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub inputs: u64,
    pub checkpoints: u64,
    pub checkpoint_pages: u64,
    pub kicks: u64,
    /// How often a virtio device stopped because the guest broke its rings.
    pub device_faults: u64,
}

/// Where a live machine's events come from, without waiting.
pub trait Events {
    /// The oldest event, if there is one.
    fn try_recv(&mut self) -> Option<HostEvent>;
    /// Since when it has been waiting.
    fn oldest_pending(&self) -> Option<Instant>;
}

/// Tells the time.
pub type Now<'a> = &'a dyn Fn() -> Instant;

/// What whoever drives a live machine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Let the guest run: [`Live::step`].
    Run,
    /// The guest sleeps: [`Live::woken`] when there is an event, or at this time.
    Wait(Option<Instant>),
    /// Its life is over: [`Live::finish`].
    Ended(EndReason),
}

impl From<Option<EndReason>> for Next {
    fn from(ended: Option<EndReason>) -> Self {
        ended.map_or(Next::Run, Next::Ended)
    }
}

/// A machine with its surroundings.
#[derive(Debug)]
pub struct Live<C: Cpu, S: Sink, E: Events> {
    machine: Machine<C>,
    sink: S,
    events: E,
    /// An event taken out while waiting.
    first: Option<HostEvent>,
    clock: LiveClock,
    config: LiveConfig,
    patience: Patience,
    watched: Arc<Watched>,
    console: [VecDeque<u8>; 2],
    /// Entries logged since the last flush.
    unflushed: usize,
    /// Since when the backup has not heard of something, entry or exit.
    unflushed_since: Option<Instant>,
    /// Whether a disk request waits for the backup to hear of another's end.
    disk_finished: bool,
    last_mark: ExitSeq,
    last_harvest: Instant,
    harvest_every: Duration,
    stopping: Option<EndReason>,
    standing: Standstill,
    /// Devices that wait for a reset, by PCI slot.
    faults: Vec<(u8, QueueFault)>,
    totals: Totals,
}

/// Whether a guest that is to be handed over stands still.
#[derive(Debug, Default)]
enum Standstill {
    #[default]
    No,
    /// It takes no inputs, and has been sent these: they are for whoever goes on with it, if that is this side.
    Still(VecDeque<HostEvent>),
}

/// Reads the host's clock for an exit that needs it, and logs the reading.
struct Recording<'a, S: Sink> {
    sink: &'a mut S,
    clock: &'a mut LiveClock,
    now: Now<'a>,
    deadline: Option<u64>,
    logged: &'a mut usize,
    inputs: &'a mut u64,
}

impl<S: Sink> TimeSource for Recording<'_, S> {
    type Error = LiveError;

    fn read(&mut self, at: Position, floor: u64) -> Result<u64, LiveError> {
        let time = self.clock.reading((self.now)(), floor, self.deadline);
        if self.deadline.is_some_and(|deadline| time >= deadline) {
            self.clock.ticked(time);
        }
        *self.inputs += 1;
        if self.sink.logging() {
            self.sink.log(LogEntry::Input {
                at: at.exit,
                input: Input::Clock(time),
            })?;
            *self.logged += 1;
        }
        Ok(time)
    }
}

/// Splits the borrows that one step of the machine needs.
macro_rules! with_time {
    ($live:ident, $call:ident, $now:expr) => {{
        let deadline = $live.machine.chipset().next_deadline();
        $live.machine.$call(&mut Recording {
            sink: &mut $live.sink,
            clock: &mut $live.clock,
            now: $now,
            deadline,
            logged: &mut $live.unflushed,
            inputs: &mut $live.totals.inputs,
        })
    }};
}

impl<C: Cpu, S: Sink, E: Events> Live<C, S, E> {
    /// A machine that goes on from where it stands, at an exit.
    #[must_use]
    pub fn new(machine: Machine<C>, sink: S, events: E, clock: LiveClock, config: LiveConfig, now: Instant) -> Self {
        Live {
            last_mark: machine.at().exit,
            machine,
            sink,
            events,
            first: None,
            clock,
            config,
            patience: Patience::new(config.patience),
            watched: Arc::new(Watched::new(now)),
            console: [VecDeque::new(), VecDeque::new()],
            unflushed: 0,
            unflushed_since: None,
            disk_finished: false,
            last_harvest: now,
            harvest_every: HARVEST_EVERY.0,
            stopping: None,
            standing: Standstill::No,
            faults: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// The machine as it stands.
    #[must_use]
    pub fn machine(&self) -> &Machine<C> {
        &self.machine
    }

    /// Where its log and outputs go.
    #[must_use]
    pub fn sink(&self) -> &S {
        &self.sink
    }

    /// Where its events wait.
    pub fn events(&mut self) -> &mut E {
        &mut self.events
    }

    /// What the monitor looks at, from another thread.
    #[must_use]
    pub fn watched(&self) -> &Arc<Watched> {
        &self.watched
    }

    /// How long things may wait for an exit.
    #[must_use]
    pub fn config(&self) -> &LiveConfig {
        &self.config
    }

    /// The machine, the sink, and what the life amounted to.
    #[must_use]
    pub fn into_parts(self) -> (Machine<C>, S, Totals) {
        (self.machine, self.sink, self.totals)
    }

    /// Whether a guest that is running should be kicked now.
    #[must_use]
    pub fn kick_due(&self, now: Instant) -> bool {
        self.watched.due(now, self.events.oldest_pending())
    }

    /// Before the guest runs: what a backup applied last may still have left outputs, and a new life begins by taking
    /// what waits.
    ///
    /// # Errors
    /// As [`Live::step`].
    pub fn begin(&mut self, now: Now<'_>) -> Result<Next, LiveError> {
        if self.config.checks {
            self.machine.keep_trail();
        }
        self.watched.limit(&self.patience.limits());
        Ok(self.after_exit(now)?.into())
    }

    /// Lets the guest run to its next exit or kick, and does what is due there.
    ///
    /// # Errors
    /// If the hypervisor or the sink fails.
    pub fn step(&mut self, now: Now<'_>) -> Result<Next, LiveError> {
        if self.machine.paused() || self.is_standing() {
            return self.rest(now);
        }
        let deadline = self.machine.chipset().next_deadline();
        let deadline = deadline.map(|at| self.clock.host_time(at));
        self.watched
            .enter(deadline, self.unflushed_since.filter(|_| self.unflushed > 0));
        let step = with_time!(self, run_to_exit, now)?;
        self.watched.leave();
        Ok(match step {
            Step::Exit => self.after_exit(now)?.into(),
            Step::Halted => self.sleep(now)?,
            Step::Interrupted => self.after_kick(now)?.into(),
            Step::Ended(reason) => Next::Ended(reason),
        })
    }

    /// After [`Next::Wait`]: something happened, or it is time.
    ///
    /// # Errors
    /// As [`Live::step`].
    pub fn woken(&mut self, event: Option<HostEvent>, now: Now<'_>) -> Result<Next, LiveError> {
        self.first = event;
        Ok(self.after_exit(now)?.into())
    }

    fn after_exit(&mut self, time: Now<'_>) -> Result<Option<EndReason>, LiveError> {
        if self
            .config
            .max_exits
            .is_some_and(|most| self.machine.at().exit.0 >= most)
        {
            self.stopping.get_or_insert(EndReason::Limit);
        }
        self.collect_checks(TRAIL_EXITS)?;
        let now = time();
        if self.input_due(now) {
            if let Some(reason) = with_time!(self, settle, time)? {
                return Ok(Some(reason));
            }
            self.take_inputs(time)?;
            self.forget_dirty(now)?;
        }
        self.flush_if_due(now)?;
        self.notice_faults();
        Ok(self.stopping.clone())
    }

    /// The guest stands still: the operator has paused it, or it is being handed over. Nothing happens but what comes from
    /// outside.
    fn rest(&mut self, now: Now<'_>) -> Result<Next, LiveError> {
        let time = now();
        self.flush_if_due(time)?;
        if self.stopping.is_some() || self.input_due(time) {
            return Ok(self.after_exit(now)?.into());
        }
        Ok(Next::Wait(self.unflushed_since.map(|since| since + FLUSH_AFTER)))
    }

    fn is_standing(&self) -> bool {
        matches!(self.standing, Standstill::Still(_))
    }

    /// The guest sleeps, until something raises an interrupt.
    fn sleep(&mut self, now: Now<'_>) -> Result<Next, LiveError> {
        if let Some(reason) = with_time!(self, settle, now)? {
            return Ok(Next::Ended(reason));
        }
        let time = now();
        self.flush_if_due(time)?;
        if self.stopping.is_none() && !self.input_due(time) {
            let deadline = self.machine.chipset().next_deadline();
            if deadline.is_none() {
                self.clock.sleeps_without_timer();
            }
            let deadline = deadline.map(|at| self.clock.host_time(at));
            let flush = self.unflushed_since.map(|since| since + FLUSH_AFTER);
            return Ok(Next::Wait(deadline.into_iter().chain(flush).min()));
        }
        Ok(self.after_exit(now)?.into())
    }

    fn after_kick(&mut self, time: Now<'_>) -> Result<Option<EndReason>, LiveError> {
        self.totals.kicks += 1;
        self.flush()?;
        let now = time();
        let waiting = self.waiting(now);
        if !self.patience.limits().due(&waiting, now) {
            return Ok(None);
        }
        match with_time!(self, preempt, time)? {
            Moved::ToBoundary => {
                let program = self.machine.program()?;
                if self.sink.logging() {
                    self.checkpoint(now)?;
                }
                let ended = self.after_exit(time)?;
                self.patience.moved(now, time(), &waiting, program);
                self.watched.limit(&self.patience.limits());
                Ok(ended)
            }
            Moved::ToExit => self.after_exit(time),
            Moved::NotNow => {
                self.watched.kick_again(now + KICK_AGAIN);
                Ok(None)
            }
            Moved::ToEnd(reason) => Ok(Some(reason)),
        }
    }

    /// Logs the state at the boundary to which the guest has been moved.
    fn checkpoint(&mut self, now: Instant) -> Result<(), LiveError> {
        let (record, pages) = self.machine.checkpoint()?;
        self.totals.checkpoints += 1;
        self.totals.checkpoint_pages += pages as u64;
        let at = self.machine.at();
        for chunk in chunk::split(&record) {
            self.sink.log(LogEntry::Checkpoint { at, chunk })?;
            self.unflushed += 1;
        }
        (self.last_harvest, self.harvest_every) = (now, HARVEST_EVERY.0);
        Ok(())
    }

    fn forget_dirty(&mut self, now: Instant) -> Result<(), LiveError> {
        if self.sink.logging() && now.saturating_duration_since(self.last_harvest) >= self.harvest_every {
            self.machine.forget_dirty()?;
            self.last_harvest = now;
            self.harvest_every = (self.harvest_every * 2).min(HARVEST_EVERY.1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
