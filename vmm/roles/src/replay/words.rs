//! Log entries and ends in words, for messages.

use ftvm_schema::entry::{EndReason, Input, LogEntry};

/// An entry in words, without its bulk.
pub(super) fn describe(entry: &LogEntry) -> String {
    match entry {
        LogEntry::Input { at, input } => match input {
            Input::Clock(time) => format!("a clock reading of {time} ns at exit {}", at.0),
            Input::NetRx { nic, frame } => format!("a frame of {} bytes for NIC {nic} at exit {}", frame.len(), at.0),
            Input::DiskDone { disk, id, .. } | Input::DiskRead { disk, id, .. } => {
                format!("the end of request {id} of disk {disk} at exit {}", at.0)
            }
            Input::ConsoleRx { bytes, .. } => format!("{} console bytes at exit {}", bytes.len(), at.0),
            Input::Entropy { bytes } => format!("{} bytes of entropy at exit {}", bytes.len(), at.0),
            Input::Control(intervention) => format!("the operator's {intervention:?} at exit {}", at.0),
        },
        LogEntry::Mark(mark) => format!("a mark at exit {}.{}", mark.at.exit.0, mark.at.k),
        LogEntry::Released { through } => format!("a release of outputs up to {}", through.0),
        LogEntry::Checkpoint { at, .. } => format!("a checkpoint at exit {}.{}", at.exit.0, at.k),
        LogEntry::Checks { from, bytes } => format!("checks of {} exits from {}", bytes.len(), from.0),
        LogEntry::End { at, reason } => format!("the end at exit {} ({})", at.exit.0, describe_end(reason)),
    }
}

/// An end in words.
#[must_use]
pub fn describe_end(reason: &EndReason) -> String {
    match reason {
        EndReason::PowerOff { status: 0 } => "power-off".to_owned(),
        EndReason::PowerOff { status } => format!("power-off with status {status}"),
        EndReason::Reset => "reset".to_owned(),
        EndReason::GuestFailure { what } => format!("guest failure: {what}"),
        EndReason::Stopped => "stopped by the operator".to_owned(),
        EndReason::Limit => "limit reached".to_owned(),
        EndReason::Halted => "halted with interrupts off".to_owned(),
    }
}
