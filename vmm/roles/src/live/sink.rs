//! What a live machine gives away: its log and its outputs, the machine itself for a joining backup.

use std::time::Duration;

use ftvm_schema::entry::{LogEntry, Mark, Position};

use crate::host_event::Control;
use ftvm_machine::output::Output;

/// Why a sink can take no more; what that is, is the sink's own business.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where a live machine's log and outputs go.
pub trait Sink {
    /// Whether anybody reads the log: an unprotected primary need not write it.
    fn logging(&self) -> bool;
    /// Appends an entry.
    ///
    /// # Errors
    /// If the log cannot be written; the guest then stops.
    fn log(&mut self, entry: LogEntry) -> Result<(), SinkError>;
    /// Takes something that leaves the guest; whether it may leave yet is the sink's business.
    ///
    /// # Errors
    /// If the outside is gone for good.
    fn output(&mut self, output: Output) -> Result<(), SinkError>;
    /// Everything so far is consistent and may travel.
    ///
    /// # Errors
    /// As [`Sink::log`].
    fn flush(&mut self) -> Result<(), SinkError>;
    /// Thousandths of the time that the guest is to stand still.
    fn idle_permille(&self) -> u32 {
        0
    }
    /// A disk request is finished: the guest has been told of its end at `at`.
    fn disk_finished(&mut self, disk: u8, id: u64, at: Position);
    /// Pages written since this was last told, for a joining backup.
    ///
    /// # Errors
    /// As [`Sink::log`].
    fn dirty(&mut self, pages: Vec<u64>) -> Result<(), SinkError>;
    /// The machine with the pages written since [`Sink::dirty`], for a joining backup; the guest has been `stopped` for it.
    /// From now on [`Sink::logging`] is true.
    ///
    /// # Errors
    /// As [`Sink::log`].
    fn state(&mut self, record: Vec<u8>, at: Mark, stopped: Duration) -> Result<(), SinkError>;
    /// The link's order is carried out; what led to it has been flushed.
    ///
    /// # Errors
    /// As [`Sink::log`].
    fn obeyed(&mut self, _order: Control) -> Result<(), SinkError> {
        Ok(())
    }
}
