//! Log entries as bytes: a tag, then differences to the entries before it in the same frame.
//!
//! All differences start at zero with each frame, so that every frame decodes alone: its first entry carries the whole
//! number. A difference is taken modulo 2^64; what the codec is given it gives back, whatever its order. Whether
//! positions really grow is `flow`'s business.
//!
//! | tag | entry | fields |
//! |---|---|---|
//! | 1 | Input::Clock | +exit, +clock |
//! | 2 | Input::NetRx | +exit, nic, frame |
//! | 3 | Input::DiskDone | +exit, disk, id, status, data |
//! | 4 | Input::ConsoleRx | +exit, port, bytes |
//! | 5 | Input::Entropy | +exit, bytes |
//! | 6 | Mark | +exit, k, digest (8), +outputs, +sent, parts, 18 registers (8 each)?, memory hash (8)? |
//! | 7 | Released | +through |
//! | 8 | Checkpoint | +exit, k, chunk |
//! | 9 | Checks | +from (to the end of the checks before), bytes |
//! | 10 | End | +exit, k, reason |
//! | 11 | Input::DiskRead | +exit, disk, id, digest (8) |
//! | 12 | Input::Control | +exit, intervention |
//! | 64 + e | Input::Clock, e exits (up to 63) after the entry before | +clock |
//! | 128 + e | the same, a multiple of 1024 ns later | +clock in steps of 1024 ns |
//!
//! `+x` is a varint difference, a name alone a varint or one byte, `(n)` fixed little-endian, bytes have a varint length.

use super::bytes::{Cursor, Malformed, put_blob, put_varint};
use ftvm_schema::entry::{
    CLOCK_GRAIN_BITS, Chunk, ConsolePort, Digest, DiskStatus, EndReason, ExitSeq, Input, Intervention, LogEntry, Mark,
    OutputSeq, Position, RegisterFile,
};

/// The most data one entry or chunk may carry, in bytes: several times what a guest's block driver asks for at once.
/// Devices must refuse larger requests; checkpoints and records are split.
pub const MAX_DATA_BYTES: usize = 4 << 20;

/// The most entries in a frame: decoded, an entry of two bytes takes up to a hundred, so payload length alone would
/// not bound memory.
pub const MAX_ENTRIES: usize = 1 << 16;

const CLOCK: u8 = 1;
const NET_RX: u8 = 2;
const DISK_DONE: u8 = 3;
const CONSOLE_RX: u8 = 4;
const ENTROPY: u8 = 5;
const MARK: u8 = 6;
const RELEASED: u8 = 7;
const CHECKPOINT: u8 = 8;
const CHECKS: u8 = 9;
const END: u8 = 10;
const DISK_READ: u8 = 11;
const CONTROL: u8 = 12;
/// Clock readings are most of an idle guest's log: those that follow each other closely have the exit in the tag.
const NEAR_CLOCK: u8 = 64;
const NEAR_CLOCK_GRAINED: u8 = 128;
/// Exits that such a tag can say.
const NEAR: u8 = 64;
const NEAR_CLOCK_END: u8 = NEAR_CLOCK_GRAINED + NEAR;

const WITH_REGISTERS: u8 = 1;
const WITH_MEMORY_HASH: u8 = 2;

/// What the differences refer to: the entry before, field by field. Zero at a frame's start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Base {
    exit: u64,
    clock: u64,
    outputs: u64,
    released: u64,
    sent: u64,
    checks: u64,
}

/// Writes `value` as its difference to `base`, which becomes `value`.
#[inline]
fn put_step(out: &mut Vec<u8>, base: &mut u64, value: u64) {
    put_varint(out, value.wrapping_sub(*base));
    *base = value;
}

#[inline]
fn read_step(from: &mut Cursor<'_>, base: &mut u64, expected: &'static str) -> Result<u64, Malformed> {
    *base = base.wrapping_add(from.varint(expected)?);
    Ok(*base)
}

impl Base {
    /// Appends `entry`. The caller has checked its data against [`MAX_DATA_BYTES`].
    pub(super) fn put(&mut self, out: &mut Vec<u8>, entry: &LogEntry) {
        match entry {
            LogEntry::Input { at, input } => self.put_input(out, at.0, input),
            LogEntry::Mark(mark) => self.put_mark(out, mark),
            LogEntry::Released { through } => {
                out.push(RELEASED);
                put_step(out, &mut self.released, through.0);
            }
            LogEntry::Checkpoint { at, chunk } => {
                self.put_position(out, CHECKPOINT, *at);
                put_chunk(out, chunk);
            }
            LogEntry::Checks { from, bytes } => {
                out.push(CHECKS);
                put_step(out, &mut self.checks, from.0);
                self.checks = self.checks.wrapping_add(bytes.len() as u64);
                put_blob(out, bytes);
            }
            LogEntry::End { at, reason } => {
                self.put_position(out, END, *at);
                put_reason(out, reason);
            }
        }
    }

    fn put_position(&mut self, out: &mut Vec<u8>, tag: u8, at: Position) {
        self.put_exit(out, tag, at.exit.0);
        put_varint(out, u64::from(at.k));
    }

    fn put_clock(&mut self, out: &mut Vec<u8>, exit: u64, ns: u64) {
        let later = ns.wrapping_sub(self.clock);
        match u8::try_from(exit.wrapping_sub(self.exit)) {
            Ok(exits) if exits < NEAR && later.trailing_zeros() >= CLOCK_GRAIN_BITS => {
                out.push(NEAR_CLOCK_GRAINED + exits);
                put_varint(out, later >> CLOCK_GRAIN_BITS);
            }
            Ok(exits) if exits < NEAR => {
                out.push(NEAR_CLOCK + exits);
                put_varint(out, later);
            }
            _ => {
                self.put_exit(out, CLOCK, exit);
                put_varint(out, later);
            }
        }
        (self.exit, self.clock) = (exit, ns);
    }

    /// Refuses what a tag with the exit in it would have said: an entry has one encoding.
    fn read_far_clock(&mut self, from: &mut Cursor<'_>) -> Result<LogEntry, Malformed> {
        let start = from.at();
        let exits = from.varint("an input's exit")?;
        if exits < u64::from(NEAR) {
            return Err(Cursor::malformed(start, "64 exits or more", exits.to_string()));
        }
        self.exit = self.exit.wrapping_add(exits);
        Ok(LogEntry::Input {
            at: ExitSeq(self.exit),
            input: Input::Clock(read_step(from, &mut self.clock, "a clock value")?),
        })
    }

    fn read_near_clock(&mut self, from: &mut Cursor<'_>, tag: u8) -> Result<LogEntry, Malformed> {
        let start = from.at();
        let steps = from.varint("a clock value")?;
        let later = match tag {
            NEAR_CLOCK_GRAINED.. if steps <= u64::MAX >> CLOCK_GRAIN_BITS => steps << CLOCK_GRAIN_BITS,
            NEAR_CLOCK..NEAR_CLOCK_GRAINED if steps.trailing_zeros() < CLOCK_GRAIN_BITS => steps,
            _ => {
                return Err(Cursor::malformed(
                    start,
                    "a clock value in its shortest form",
                    steps.to_string(),
                ));
            }
        };
        self.exit = self.exit.wrapping_add(u64::from(tag % NEAR));
        self.clock = self.clock.wrapping_add(later);
        Ok(LogEntry::Input {
            at: ExitSeq(self.exit),
            input: Input::Clock(self.clock),
        })
    }

    fn put_input(&mut self, out: &mut Vec<u8>, exit: u64, input: &Input) {
        match input {
            Input::Clock(ns) => self.put_clock(out, exit, *ns),
            Input::NetRx { nic, frame } => {
                self.put_exit(out, NET_RX, exit);
                out.push(*nic);
                put_blob(out, frame);
            }
            Input::DiskDone { disk, id, status, data } => {
                self.put_exit(out, DISK_DONE, exit);
                out.push(*disk);
                put_varint(out, *id);
                out.push(match status {
                    DiskStatus::Ok => 0,
                    DiskStatus::IoError => 1,
                    DiskStatus::Unsupported => 2,
                });
                put_blob(out, data);
            }
            Input::DiskRead { disk, id, digest } => {
                self.put_exit(out, DISK_READ, exit);
                out.push(*disk);
                put_varint(out, *id);
                out.extend_from_slice(&digest.0.to_le_bytes());
            }
            Input::ConsoleRx { port, bytes } => {
                self.put_exit(out, CONSOLE_RX, exit);
                out.push(match port {
                    ConsolePort::Serial => 0,
                    ConsolePort::Virtio => 1,
                });
                put_blob(out, bytes);
            }
            Input::Entropy { bytes } => {
                self.put_exit(out, ENTROPY, exit);
                put_blob(out, bytes);
            }
            Input::Control(intervention) => {
                self.put_exit(out, CONTROL, exit);
                out.push(match intervention {
                    Intervention::Pause => 0,
                    Intervention::Resume => 1,
                    Intervention::Reset => 2,
                });
            }
        }
    }

    fn put_exit(&mut self, out: &mut Vec<u8>, tag: u8, exit: u64) {
        out.push(tag);
        put_step(out, &mut self.exit, exit);
    }

    fn put_mark(&mut self, out: &mut Vec<u8>, mark: &Mark) {
        self.put_position(out, MARK, mark.at);
        out.extend_from_slice(&mark.digest.0.to_le_bytes());
        put_step(out, &mut self.outputs, mark.outputs.0);
        put_step(out, &mut self.sent, mark.sent_ns);
        let registers = mark.registers.as_ref().map_or(0, |_| WITH_REGISTERS);
        let memory_hash = mark.memory_hash.map_or(0, |_| WITH_MEMORY_HASH);
        out.push(registers | memory_hash);
        for register in mark.registers.iter().flat_map(|file| file.iter()) {
            out.extend_from_slice(&register.to_le_bytes());
        }
        if let Some(hash) = mark.memory_hash {
            out.extend_from_slice(&hash.to_le_bytes());
        }
    }

    /// Reads one entry.
    pub(super) fn read(&mut self, from: &mut Cursor<'_>) -> Result<LogEntry, Malformed> {
        let start = from.at();
        let tag = from.byte("a log entry's tag")?;
        Ok(match tag {
            NEAR_CLOCK..NEAR_CLOCK_END => self.read_near_clock(from, tag)?,
            CLOCK => self.read_far_clock(from)?,
            NET_RX..=ENTROPY | DISK_READ | CONTROL => LogEntry::Input {
                at: ExitSeq(read_step(from, &mut self.exit, "an input's exit")?),
                input: self.read_input(from, tag)?,
            },
            MARK => LogEntry::Mark(self.read_mark(from)?),
            RELEASED => LogEntry::Released {
                through: OutputSeq(read_step(from, &mut self.released, "a released output's number")?),
            },
            CHECKPOINT => LogEntry::Checkpoint {
                at: self.read_position(from)?,
                chunk: read_chunk(from)?,
            },
            CHECKS => {
                let first = read_step(from, &mut self.checks, "the first checked exit")?;
                let bytes = from.blob(MAX_DATA_BYTES, "check bytes")?;
                self.checks = self.checks.wrapping_add(bytes.len() as u64);
                LogEntry::Checks {
                    from: ExitSeq(first),
                    bytes: bytes.to_vec(),
                }
            }
            END => LogEntry::End {
                at: self.read_position(from)?,
                reason: read_reason(from)?,
            },
            other => {
                return Err(Cursor::malformed(
                    start,
                    "a log entry's tag (1 to 12, 64 to 191)",
                    other.to_string(),
                ));
            }
        })
    }

    fn read_position(&mut self, from: &mut Cursor<'_>) -> Result<Position, Malformed> {
        Ok(Position {
            exit: ExitSeq(read_step(from, &mut self.exit, "a position's exit")?),
            k: from.varint32("a position's input count")?,
        })
    }

    fn read_input(&mut self, from: &mut Cursor<'_>, tag: u8) -> Result<Input, Malformed> {
        Ok(match tag {
            NET_RX => Input::NetRx {
                nic: from.byte("a network card's number")?,
                frame: from.blob(MAX_DATA_BYTES, "an Ethernet frame")?.to_vec(),
            },
            DISK_DONE => Input::DiskDone {
                disk: from.byte("a disk's number")?,
                id: from.varint("a disk request's id")?,
                status: read_status(from)?,
                data: from.blob(MAX_DATA_BYTES, "what a disk read brought")?.to_vec(),
            },
            DISK_READ => Input::DiskRead {
                disk: from.byte("a disk's number")?,
                id: from.varint("a disk request's id")?,
                digest: Digest(from.word64("a digest of disk data")?),
            },
            CONSOLE_RX => Input::ConsoleRx {
                port: read_port(from)?,
                bytes: from.blob(MAX_DATA_BYTES, "console bytes")?.to_vec(),
            },
            CONTROL => Input::Control(read_intervention(from)?),
            _ => Input::Entropy {
                bytes: from.blob(MAX_DATA_BYTES, "entropy")?.to_vec(),
            },
        })
    }

    fn read_mark(&mut self, from: &mut Cursor<'_>) -> Result<Mark, Malformed> {
        let at = self.read_position(from)?;
        let digest = Digest(from.word64("a digest")?);
        let outputs = OutputSeq(read_step(from, &mut self.outputs, "a mark's output number")?);
        let sent_ns = read_step(from, &mut self.sent, "a mark's send time")?;
        let start = from.at();
        let parts = from.byte("a mark's parts")?;
        if parts & !(WITH_REGISTERS | WITH_MEMORY_HASH) != 0 {
            return Err(Cursor::malformed(start, "a mark's parts (0 to 3)", parts.to_string()));
        }
        let registers = if parts & WITH_REGISTERS == 0 {
            None
        } else {
            Some(read_registers(from)?)
        };
        let memory_hash = if parts & WITH_MEMORY_HASH == 0 {
            None
        } else {
            Some(from.word64("a memory hash")?)
        };
        Ok(Mark {
            at,
            digest,
            outputs,
            sent_ns,
            registers,
            memory_hash,
        })
    }
}

fn read_registers(from: &mut Cursor<'_>) -> Result<Box<RegisterFile>, Malformed> {
    let mut registers = Box::new(RegisterFile::default());
    for register in registers.iter_mut() {
        *register = from.word64("a register")?;
    }
    Ok(registers)
}

fn read_status(from: &mut Cursor<'_>) -> Result<DiskStatus, Malformed> {
    let start = from.at();
    match from.byte("a disk status")? {
        0 => Ok(DiskStatus::Ok),
        1 => Ok(DiskStatus::IoError),
        2 => Ok(DiskStatus::Unsupported),
        other => Err(Cursor::malformed(start, "a disk status (0 to 2)", other.to_string())),
    }
}

fn read_port(from: &mut Cursor<'_>) -> Result<ConsolePort, Malformed> {
    let start = from.at();
    match from.byte("a console port")? {
        0 => Ok(ConsolePort::Serial),
        1 => Ok(ConsolePort::Virtio),
        other => Err(Cursor::malformed(start, "a console port (0 or 1)", other.to_string())),
    }
}

fn read_intervention(from: &mut Cursor<'_>) -> Result<Intervention, Malformed> {
    let start = from.at();
    match from.byte("an intervention")? {
        0 => Ok(Intervention::Pause),
        1 => Ok(Intervention::Resume),
        2 => Ok(Intervention::Reset),
        other => Err(Cursor::malformed(start, "an intervention (0 to 2)", other.to_string())),
    }
}

fn put_reason(out: &mut Vec<u8>, reason: &EndReason) {
    match reason {
        EndReason::PowerOff { status } => out.extend_from_slice(&[0, *status]),
        EndReason::Reset => out.push(1),
        EndReason::GuestFailure { what } => {
            out.push(2);
            put_blob(out, what.as_bytes());
        }
        EndReason::Stopped => out.push(3),
        EndReason::Limit => out.push(4),
        EndReason::Halted => out.push(5),
    }
}

fn read_reason(from: &mut Cursor<'_>) -> Result<EndReason, Malformed> {
    let start = from.at();
    Ok(match from.byte("an end's reason")? {
        0 => EndReason::PowerOff {
            status: from.byte("a power-off status")?,
        },
        1 => EndReason::Reset,
        2 => {
            let start = from.at();
            let bytes = from.blob(MAX_DATA_BYTES, "a failure's description")?;
            let what = std::str::from_utf8(bytes)
                .map_err(|error| Cursor::malformed(start, "a failure's description in UTF-8", error.to_string()))?;
            EndReason::GuestFailure { what: what.to_owned() }
        }
        3 => EndReason::Stopped,
        4 => EndReason::Limit,
        5 => EndReason::Halted,
        other => return Err(Cursor::malformed(start, "an end's reason (0 to 5)", other.to_string())),
    })
}

/// Appends a chunk: total, offset, CRC (4), bytes.
pub(super) fn put_chunk(out: &mut Vec<u8>, chunk: &Chunk) {
    put_varint(out, chunk.total);
    put_varint(out, chunk.offset);
    out.extend_from_slice(&chunk.crc.to_le_bytes());
    put_blob(out, &chunk.bytes);
}

pub(super) fn read_chunk(from: &mut Cursor<'_>) -> Result<Chunk, Malformed> {
    Ok(Chunk {
        total: from.varint("a record's length")?,
        offset: from.varint("a chunk's offset")?,
        crc: from.word32("a record's checksum")?,
        bytes: from.blob(MAX_DATA_BYTES, "a chunk's bytes")?.to_vec(),
    })
}

/// Pages or blocks: count, numbers as differences, content.
pub(super) fn put_numbered(out: &mut Vec<u8>, numbers: &[u64], content: &[u8]) {
    put_varint(out, numbers.len() as u64);
    let mut base = 0;
    for number in numbers {
        put_step(out, &mut base, *number);
    }
    put_blob(out, content);
}

/// Reads what [`put_numbered`] has written, at most `max` of them, which `limit` says in words.
pub(super) fn read_numbered(
    from: &mut Cursor<'_>,
    max: usize,
    limit: &'static str,
) -> Result<(Vec<u64>, Vec<u8>), Malformed> {
    let start = from.at();
    let count = from.varint(limit)?;
    if count > max as u64 {
        return Err(Cursor::malformed(start, limit, count.to_string()));
    }
    let mut base = 0;
    let numbers = (0..count)
        .map(|_| read_step(from, &mut base, "a number"))
        .collect::<Result<_, _>>()?;
    Ok((numbers, from.blob(MAX_DATA_BYTES, "their content")?.to_vec()))
}

/// The longest byte string in `entry`.
pub fn data_bytes(entry: &LogEntry) -> usize {
    match entry {
        LogEntry::Input { input, .. } => match input {
            Input::Clock(_) | Input::DiskRead { .. } | Input::Control(_) => 0,
            Input::NetRx { frame, .. } => frame.len(),
            Input::DiskDone { data, .. } => data.len(),
            Input::ConsoleRx { bytes, .. } | Input::Entropy { bytes } => bytes.len(),
        },
        LogEntry::Mark(_) | LogEntry::Released { .. } => 0,
        LogEntry::Checkpoint { chunk, .. } => chunk.bytes.len(),
        LogEntry::Checks { bytes, .. } => bytes.len(),
        LogEntry::End { reason, .. } => match reason {
            EndReason::GuestFailure { what } => what.len(),
            _ => 0,
        },
    }
}

/// Reads a log payload: the frame's number, then entries to its end.
pub(super) fn read_log(payload: &[u8]) -> Result<(u64, Vec<LogEntry>), Malformed> {
    let mut from = Cursor::new(payload);
    let number = from.varint("a log frame's number")?;
    let mut base = Base::default();
    let mut entries = Vec::new();
    while !from.is_empty() {
        if entries.len() == MAX_ENTRIES {
            return Err(Cursor::malformed(
                from.at(),
                "at most 65536 entries in a frame",
                "one more",
            ));
        }
        entries.push(base.read(&mut from)?);
    }
    Ok((number, entries))
}
