//! What the outside world, and the link, say to the vCPU thread.

use ftvm_schema::entry::{ConsolePort, DiskStatus, Intervention};

/// Most events that may wait for the vCPU thread; answers to what the guest asked for do not count, as its devices bound these.
/// More than a NIC ring (256) and a burst while one checkpoint is taken, less than what a guest could ever look at within a
/// detection time.
pub const MAX_EVENTS: usize = 1024;

/// Something that happened outside and that the guest, or its machine, is to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An Ethernet frame arrived for network card `nic`, no longer than a card takes.
    Frame { nic: u8, bytes: Vec<u8> },
    /// Bytes were typed at a console, a few at once.
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
    StandStill,
    /// It is not handed over after all: go on.
    GoOn,
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
