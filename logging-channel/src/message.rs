//! What the two sides say to each other: the log one way, acks the other, and the handshake before both.
//!
//! These are the messages only; when each may be sent, and what it means, is in PROTOCOL 6, 10-12, 17 and 21.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use serde::{Deserialize, Serialize};

use ftvm_schema::entry::{Chunk, Digest, Generation, Incarnation, LogEntry, OutputSeq, Position};

/// Version of everything in this crate that travels or is stored. Both sides must have the same.
pub const PROTOCOL_VERSION: u32 = 2;

/// Most pages in one message: 1 MiB of RAM.
pub const MAX_PAGES: usize = 256;

/// Most extents of a disk in one message: 1 MiB of it.
pub const MAX_BLOCKS: usize = 16;

/// Most messages [`Message::Blocks`] and [`Message::FlushBlocks`] under way that the backup has not said to be written:
/// what it holds of them stays below 32 MiB, however slow its disk is.
pub const BLOCKS_UNDER_WAY: u64 = 32;

/// From the backup, first of all: who wants to join, and what its host can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub version: u32,
    pub incarnation: Incarnation,
    /// The delivery modes this host's KVM can replay, by name (`none`, `window`, ...).
    pub delivery_modes: Vec<String>,
    /// Identifies the host (machine id and boot id): a pair on one host is allowed, but said.
    pub host: String,
    /// Whether a standby asks, which nobody has placed here by hand.
    pub standby: Option<Standby>,
}

/// What a standby is, and where it must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// 0 comes first; each further one waits a second longer for those before it.
    pub priority: u8,
    /// The place that fails as a whole (a room, a building), by a name that the user chose; empty if unknown.
    pub site: String,
    /// Whether it may protect a guest on its own host, or its own site.
    pub same_host: bool,
    pub same_site: bool,
}

/// From the primary: what guest this is, and a secret to find on the shared storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub version: u32,
    pub guest: u128,
    pub generation: Generation,
    /// The primary's incarnation: owner of `gen-G`.
    pub owner: Incarnation,
    /// File in the shared directory whose content the backup must send back.
    pub nonce_name: String,
    /// The machine's configuration (vmm's `MachineConfig`, encoded): memory, devices, CPU profile, delivery mode.
    pub config: Vec<u8>,
    /// Detection time in nanoseconds: both sides use the primary's.
    pub detection_ns: u64,
    /// Lease in nanoseconds.
    pub lease_ns: u64,
    /// Patience before a micro-checkpoint, in nanoseconds.
    pub patience_ns: u64,
    /// Where the backup gets what the guest reads from its disks.
    pub disk_reads: DiskReads,
}

/// Where a backup gets what the guest reads from its disks (the paper, section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskReads {
    /// From the log, which carries it.
    #[default]
    Log,
    /// From the shared disk itself.
    Backup,
}

/// From the primary, after the whole state record: from its first byte on, leaving the pair needs the test-and-set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub generation: Generation,
    pub incarnation: Incarnation,
    pub at: Position,
    pub digest: Digest,
    pub outputs: OutputSeq,
}

/// "Decoded, validated, stored" (PROTOCOL 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub incarnation: Incarnation,
    /// Every log frame up to this number is stored.
    pub frame: u64,
    /// The last mark or input received: the horizon.
    pub received: Position,
    /// How far the backup has executed.
    pub executed: Position,
    /// The latest `sent_ns` seen in a mark or heartbeat (PROTOCOL 12).
    pub echo_ns: u64,
}

/// One message on the logging channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    Join(Join),
    Welcome(Welcome),
    /// The nonce's content, read through the backup's own mount.
    Proof {
        nonce: Vec<u8>,
    },
    /// Either side ends the handshake, saying why.
    Refuse {
        reason: String,
    },
    /// A piece of the state record: RAM, vCPU, devices and all of PROTOCOL 17.
    State(Chunk),
    Grant(Grant),
    /// Pages of RAM, ahead of the state record, while the guest runs on (live clone): at most [`MAX_PAGES`], ascending;
    /// `content` is theirs in that order, in LZ4's block format. Later ones replace earlier ones.
    Pages {
        numbers: Vec<u64>,
        content: Vec<u8>,
    },
    /// Extents of a private disk (64 KiB each, the disk's last one perhaps less), ahead of the state record, while the
    /// guest runs on: at most [`MAX_BLOCKS`], ascending; `content` is theirs in that order, in LZ4's block format.
    /// Later ones replace earlier ones. At most [`BLOCKS_UNDER_WAY`] may wait to be written.
    Blocks {
        disk: u8,
        numbers: Vec<u64>,
        content: Vec<u8>,
    },
    /// What has come of the private disks is to be made stable.
    FlushBlocks,
    /// From the backup: so many [`Message::Blocks`] and [`Message::FlushBlocks`] have been carried out since it joined.
    BlocksWritten {
        incarnation: Incarnation,
        messages: u64,
    },
    /// Log frame `number` (from 1, contiguous within a session) with its entries, in order.
    Log {
        number: u64,
        entries: Vec<LogEntry>,
    },
    Ack(Ack),
    /// The backup found itself diverged: it is no usable backup any more (PROTOCOL 16).
    Diverged {
        at: Position,
        what: String,
    },
    /// From the primary: everything is acked and the guest has ended, the connection may close. From the backup: it
    /// holds the guest's end, or it has been dismissed; in either case it never goes live.
    Bye,
    /// From the primary: it wants no backup, or another. The backup answers [`Message::Bye`] and is never eligible
    /// again.
    Dismiss,
    /// From the primary: everything has left, and under this generation it releases nothing more, ever. The backup goes
    /// live without outwaiting the lease.
    Handover,
    /// From the backup: what its host reaches.
    Health(Health),
    /// From the primary: a piece of the state from which [`ftvm_schema::entry::Intervention::Reset`] starts the guest
    /// again.
    Boot(Chunk),
}

impl Message {
    /// Its name, for messages to people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Message::Join(_) => "Join",
            Message::Welcome(_) => "Welcome",
            Message::Proof { .. } => "Proof",
            Message::Refuse { .. } => "Refuse",
            Message::State(_) => "State",
            Message::Pages { .. } => "Pages",
            Message::Blocks { .. } => "Blocks",
            Message::FlushBlocks => "FlushBlocks",
            Message::BlocksWritten { .. } => "BlocksWritten",
            Message::Grant(_) => "Grant",
            Message::Log { .. } => "Log",
            Message::Ack(_) => "Ack",
            Message::Diverged { .. } => "Diverged",
            Message::Bye => "Bye",
            Message::Dismiss => "Dismiss",
            Message::Handover => "Handover",
            Message::Health(_) => "Health",
            Message::Boot(_) => "Boot",
        }
    }
}

/// What a backup's host reaches of what the guest would need there, in the order of the guest's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub disks: Vec<bool>,
    pub nics: Vec<bool>,
}

impl Health {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.disks.iter().chain(&self.nics).all(|reached| *reached)
    }
}

/// A UDP heartbeat, either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub guest: u128,
    pub generation: Generation,
    pub incarnation: Incarnation,
    pub number: u64,
    /// The sender's CLOCK_BOOTTIME in nanoseconds.
    pub sent_ns: u64,
    /// The latest `sent_ns` received from the other side.
    pub echo_ns: u64,
}
