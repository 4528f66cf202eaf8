//! The outside world: network, consoles, disks, host entropy, and the timer that fences this process.
//!
//! Thin shells around file descriptors and threads. Nothing here decides anything about the protocol: what the guest
//! says arrives through the output queue, already released; what the world says leaves as a [`HostEvent`] through one
//! bounded [`queue`], which the vCPU thread reads only at numbered exits (DESIGN, "Rules that keep it correct").
//! Whatever cannot be delivered here is dropped the way a cable or a disconnected terminal would drop it, and counted.

use std::time::Duration;

use logging_channel::entry::{ConsolePort, DiskStatus, Intervention};
use nix::poll::PollTimeout;

pub mod console;
pub mod disk;
pub mod entropy;
pub mod fence;
pub mod net;
pub mod queue;
pub mod unix_path;

/// Something that happened outside and that the guest, or its machine, is to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An Ethernet frame arrived for network card `nic`, at most [`net::MAX_FRAME`] bytes.
    Frame { nic: u8, bytes: Vec<u8> },
    /// Bytes were typed at a console, at most [`console::INPUT_CHUNK`] at once.
    Console { port: ConsolePort, bytes: Vec<u8> },
    /// Disk request `id` finished; `data` is what a read brought (empty otherwise, or on error).
    DiskDone {
        disk: u8,
        id: u64,
        status: DiskStatus,
        data: Vec<u8>,
    },
    /// Host entropy for the oldest outstanding request.
    Entropy(Vec<u8>),
    /// Somebody wants the guest to end (PROTOCOL 18).
    Stop(StopKind),
    /// The link asks something of the vCPU thread.
    Control(Control),
}

/// What the link asks of the vCPU thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Say, at the next exit, which pages have been written since this was last asked.
    TakeDirty,
    /// Save the machine, at its next exit, for a joining backup that has all other pages.
    SaveState,
    /// Pause, resume or reset the guest at its next exit.
    Intervene(Intervention),
    /// Stop at the next exit, with everything before it in the log, and take no input any more: the guest is handed over.
    Stand,
    /// It is not: go on.
    Go,
}

impl HostEvent {
    /// Bytes the event carries, as the queue counts them.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            HostEvent::Frame { bytes, .. } | HostEvent::Console { bytes, .. } | HostEvent::Entropy(bytes) => {
                bytes.len()
            }
            HostEvent::DiskDone { data, .. } => data.len(),
            HostEvent::Stop(_) | HostEvent::Control(_) => 0,
        }
    }
}

/// Who wants the guest to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// Ctrl-A x was typed at the console.
    Console,
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// A limit the user set.
    Limit,
    /// `ftvm power-off`.
    Operator,
}

/// What became of something that was to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The system call took all of it.
    Done,
    /// It (or a part of it) was lost as on an unplugged cable; nobody was there, or nobody listened in time.
    Dropped,
}

/// A timeout for poll(2) that does not end before `left` has: whole milliseconds, rounded up.
pub(crate) fn poll_timeout(left: Duration) -> PollTimeout {
    let milliseconds = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(milliseconds)
        .ok()
        .and_then(|ms| PollTimeout::try_from(ms).ok())
        .unwrap_or(PollTimeout::MAX)
}
