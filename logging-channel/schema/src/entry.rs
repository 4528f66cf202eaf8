//! The log's schema: what an entry says and where in the guest's history it says it.
//!
//! A guest's history is the numbered sequence of the exits it causes itself ([`ExitSeq`]). Everything that reaches the
//! guest from outside is an [`Input`] applied at one of those exits; an input's place is its [`Position`]. Entries hold
//! absolute numbers in memory; `codec` writes them as differences, a few bytes each (DESIGN, ideas 1 and 2;
//! PROTOCOL 1-5).

use serde::{Deserialize, Serialize};

/// Number of guest-caused exits so far. The state before the first exit is `ExitSeq(0)`; the first exit is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExitSeq(pub u64);

/// A place in the guest's history: the exit, and how many inputs or micro-checkpoints have been applied at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The guest-caused exit.
    pub exit: ExitSeq,
    /// Inputs and micro-checkpoints applied at that exit so far, synchronous answers included.
    pub k: u32,
}

/// Number of an output (frame, console bytes, disk write or flush) in the order the guest produced them, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OutputSeq(pub u64);

/// Incremented by each winning test-and-set; stamped on every frame and heartbeat (PROTOCOL 10, 11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// One life of one process in one role: 128 random bits drawn when it starts (PROTOCOL 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u128);

/// A running digest of everything replay must reproduce: registers at exits, outputs, checkpoints.
///
/// It names an interval, not an exit: two histories that differ once differ in every later digest. It is no
/// cryptographic hash; it guards against bugs, not against enemies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0x6674_766d_0000_0001)
    }
}

impl Digest {
    /// The digest of a byte string alone.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        let mut digest = Digest::default();
        digest.fold_bytes(bytes);
        digest
    }

    /// Folds one word in.
    #[inline]
    pub fn fold(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 29);
    }

    /// Folds a byte string in, its length included, so that neighbouring strings cannot trade bytes.
    pub fn fold_bytes(&mut self, bytes: &[u8]) {
        self.fold(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.fold(u64::from_le_bytes(word.try_into().expect("chunks of 8")));
        }
        let rest = words.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.fold(u64::from_le_bytes(word));
        }
    }

    /// The low byte, kept per exit by `record --verify=exit`.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a check byte is the low byte")]
    pub fn check(self) -> u8 {
        self.0 as u8
    }
}

/// The 18 registers a divergence report shows, in the order of `struct kvm_regs`:
/// rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags.
pub type RegisterFile = [u64; 18];

/// Where a register stands in a [`RegisterFile`].
pub mod register {
    pub const RAX: usize = 0;
    pub const RBX: usize = 1;
    pub const RCX: usize = 2;
    pub const RDX: usize = 3;
    pub const RSI: usize = 4;
    pub const RDI: usize = 5;
    pub const RSP: usize = 6;
    pub const RIP: usize = 16;
    pub const RFLAGS: usize = 17;
}

/// Names of [`RegisterFile`]'s entries.
pub const REGISTER_NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];

/// Where console bytes come from or go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConsolePort {
    /// The 16550 UART at 0x3F8.
    Serial,
    /// The virtio console.
    Virtio,
}

/// How a disk request ended (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskStatus {
    /// VIRTIO_BLK_S_OK
    Ok,
    /// VIRTIO_BLK_S_IOERR
    IoError,
    /// VIRTIO_BLK_S_UNSUPP
    Unsupported,
}

/// Clock readings are multiples of 2^10 ns where the host can choose: the codec writes their differences in such steps.
pub const CLOCK_GRAIN_BITS: u32 = 10;

/// Something non-deterministic that reaches the guest. Only these are logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// The virtual clock is now this many nanoseconds (since the guest's start). Deadlines that have come fire.
    Clock(u64),
    /// A frame arrived at network card `nic`: Ethernet, without a virtio header.
    NetRx { nic: u8, frame: Vec<u8> },
    /// Disk request `id` finished; `data` is what a read brought (empty otherwise, or on error).
    DiskDone {
        disk: u8,
        id: u64,
        status: DiskStatus,
        data: Vec<u8>,
    },
    /// A disk read finished, and whoever replays reads the same blocks from the shared disk (the paper, section 4.2).
    /// `digest` is of what the primary read.
    DiskRead { disk: u8, id: u64, digest: Digest },
    /// Bytes typed at a console.
    ConsoleRx { port: ConsolePort, bytes: Vec<u8> },
    /// Host entropy for the oldest outstanding virtio-rng request.
    Entropy { bytes: Vec<u8> },
    /// The operator does something to the machine.
    Control(Intervention),
}

/// What an operator does to a machine from outside; the guest is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intervention {
    /// It stands still, and so does its time, until [`Intervention::Resume`].
    Pause,
    /// It goes on.
    Resume,
    /// It starts again from the state in which it was made. Time goes on.
    Reset,
}

/// How far the log is complete (PROTOCOL 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Every input up to here, synchronous answers included, is already in the stream.
    pub at: Position,
    /// The running digest at `at`.
    pub digest: Digest,
    /// Outputs produced up to `at`: the next output's number.
    pub outputs: OutputSeq,
    /// The primary's CLOCK_BOOTTIME when the mark was sent, in nanoseconds (0 in a file): acks echo it (PROTOCOL 12).
    pub sent_ns: u64,
    /// Registers, in file logs only, for a divergence report.
    pub registers: Option<Box<RegisterFile>>,
    /// Hash of devices and memory, in coarse marks of file logs only.
    pub memory_hash: Option<u64>,
}

/// Why a guest's life ended; none of these is a death of its host (PROTOCOL 18).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// The guest switched itself off, with this exit status (0: plain power-off).
    PowerOff { status: u8 },
    /// The guest asked for a reset.
    Reset,
    /// Triple fault, KVM internal error, HLT with interrupts off, ...: deterministic, so never failed over into.
    GuestFailure { what: String },
    /// The operator stopped it (SIGTERM, Ctrl-C).
    Stopped,
    /// Recording stopped at a limit the user set (`--exits`, `--seconds`).
    Limit,
    /// The guest executed HLT with interrupts off: it stopped itself.
    Halted,
}

/// A piece of a micro-checkpoint or of a state record (PROTOCOL 4): applied only whole and checksummed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Bytes of the whole record.
    pub total: u64,
    /// Where this piece starts.
    pub offset: u64,
    /// CRC-32C of the whole record.
    pub crc: u32,
    /// The piece.
    pub bytes: Vec<u8>,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogEntry {
    /// `input` is applied at exit `at`, after whatever the log placed there before it.
    Input { at: ExitSeq, input: Input },
    /// Everything up to the mark is in the stream.
    Mark(Mark),
    /// Every output before `through` has left: frames and console bytes have landed, disk requests are in their plan
    /// (PROTOCOL 7).
    Released { through: OutputSeq },
    /// A piece of the micro-checkpoint that stands at `at` (DESIGN, idea 3).
    Checkpoint { at: Position, chunk: Chunk },
    /// One check byte per exit, beginning with exit `from` (`record --verify=exit`).
    Checks { from: ExitSeq, bytes: Vec<u8> },
    /// The guest's life ended here.
    End { at: Position, reason: EndReason },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_of_a_register_is_that_of_its_name() {
        use register::{RAX, RBX, RCX, RDI, RDX, RFLAGS, RIP, RSI, RSP};
        let named = [RAX, RBX, RCX, RDX, RSI, RDI, RSP, RIP, RFLAGS].map(|index| REGISTER_NAMES[index]);
        let expected = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rip", "rflags"];
        assert_eq!(named, expected);
    }
}
