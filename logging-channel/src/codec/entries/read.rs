//! Bytes into entries: hostile input, refused with what was expected and where.

use super::wire::{
    CHECKPOINT, CHECKS, CLOCK, CONSOLE_RX, CONTROL, DISK_DONE, DISK_READ, END, ENTROPY, MARK, NEAR, NEAR_CLOCK,
    NEAR_CLOCK_END, NEAR_CLOCK_GRAINED, NET_RX, RELEASED, WITH_MEMORY_HASH, WITH_REGISTERS,
};
use super::{Base, MAX_DATA_BYTES, MAX_ENTRIES};
use crate::codec::bytes::{ByteCursor, Malformed};
use ftvm_schema::entry::{
    CLOCK_GRAIN_BITS, Chunk, ConsolePort, Digest, DiskStatus, EndReason, ExitSeq, Input, Intervention, LogEntry, Mark,
    OutputSeq, Position, RegisterFile,
};

#[inline]
fn read_step(from: &mut ByteCursor<'_>, base: &mut u64, expected: &'static str) -> Result<u64, Malformed> {
    *base = base.wrapping_add(from.varint(expected)?);
    Ok(*base)
}

impl Base {
    /// Refuses what a tag with the exit in it would have said: an entry has one encoding.
    fn read_far_clock(&mut self, from: &mut ByteCursor<'_>) -> Result<LogEntry, Malformed> {
        let start = from.at();
        let exits = from.varint("an input's exit")?;
        if exits < u64::from(NEAR) {
            return Err(ByteCursor::malformed(start, "64 exits or more", exits.to_string()));
        }
        self.exit = self.exit.wrapping_add(exits);
        Ok(LogEntry::Input {
            at: ExitSeq(self.exit),
            input: Input::Clock(read_step(from, &mut self.clock, "a clock value")?),
        })
    }

    fn read_near_clock(&mut self, from: &mut ByteCursor<'_>, tag: u8) -> Result<LogEntry, Malformed> {
        let start = from.at();
        let steps = from.varint("a clock value")?;
        let later = match tag {
            NEAR_CLOCK_GRAINED.. if steps <= u64::MAX >> CLOCK_GRAIN_BITS => steps << CLOCK_GRAIN_BITS,
            NEAR_CLOCK..NEAR_CLOCK_GRAINED if steps.trailing_zeros() < CLOCK_GRAIN_BITS => steps,
            _ => {
                return Err(ByteCursor::malformed(
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

    /// Reads one entry.
    pub(super) fn read(&mut self, from: &mut ByteCursor<'_>) -> Result<LogEntry, Malformed> {
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
                return Err(ByteCursor::malformed(
                    start,
                    "a log entry's tag (1 to 12, 64 to 191)",
                    other.to_string(),
                ));
            }
        })
    }

    fn read_position(&mut self, from: &mut ByteCursor<'_>) -> Result<Position, Malformed> {
        Ok(Position {
            exit: ExitSeq(read_step(from, &mut self.exit, "a position's exit")?),
            k: from.varint32("a position's input count")?,
        })
    }

    fn read_input(&mut self, from: &mut ByteCursor<'_>, tag: u8) -> Result<Input, Malformed> {
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

    fn read_mark(&mut self, from: &mut ByteCursor<'_>) -> Result<Mark, Malformed> {
        let at = self.read_position(from)?;
        let digest = Digest(from.word64("a digest")?);
        let outputs = OutputSeq(read_step(from, &mut self.outputs, "a mark's output number")?);
        let sent_ns = read_step(from, &mut self.sent, "a mark's send time")?;
        let start = from.at();
        let parts = from.byte("a mark's parts")?;
        if parts & !(WITH_REGISTERS | WITH_MEMORY_HASH) != 0 {
            return Err(ByteCursor::malformed(
                start,
                "a mark's parts (0 to 3)",
                parts.to_string(),
            ));
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

fn read_registers(from: &mut ByteCursor<'_>) -> Result<Box<RegisterFile>, Malformed> {
    let mut registers = Box::new(RegisterFile::default());
    for register in registers.iter_mut() {
        *register = from.word64("a register")?;
    }
    Ok(registers)
}

fn read_status(from: &mut ByteCursor<'_>) -> Result<DiskStatus, Malformed> {
    let start = from.at();
    match from.byte("a disk status")? {
        0 => Ok(DiskStatus::Ok),
        1 => Ok(DiskStatus::IoError),
        2 => Ok(DiskStatus::Unsupported),
        other => Err(ByteCursor::malformed(
            start,
            "a disk status (0 to 2)",
            other.to_string(),
        )),
    }
}

fn read_port(from: &mut ByteCursor<'_>) -> Result<ConsolePort, Malformed> {
    let start = from.at();
    match from.byte("a console port")? {
        0 => Ok(ConsolePort::Serial),
        1 => Ok(ConsolePort::Virtio),
        other => Err(ByteCursor::malformed(
            start,
            "a console port (0 or 1)",
            other.to_string(),
        )),
    }
}

fn read_intervention(from: &mut ByteCursor<'_>) -> Result<Intervention, Malformed> {
    let start = from.at();
    match from.byte("an intervention")? {
        0 => Ok(Intervention::Pause),
        1 => Ok(Intervention::Resume),
        2 => Ok(Intervention::Reset),
        other => Err(ByteCursor::malformed(
            start,
            "an intervention (0 to 2)",
            other.to_string(),
        )),
    }
}

fn read_reason(from: &mut ByteCursor<'_>) -> Result<EndReason, Malformed> {
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
                .map_err(|error| ByteCursor::malformed(start, "a failure's description in UTF-8", error.to_string()))?;
            EndReason::GuestFailure { what: what.to_owned() }
        }
        3 => EndReason::Stopped,
        4 => EndReason::Limit,
        5 => EndReason::Halted,
        other => {
            return Err(ByteCursor::malformed(
                start,
                "an end's reason (0 to 5)",
                other.to_string(),
            ));
        }
    })
}

pub(in crate::codec) fn read_chunk(from: &mut ByteCursor<'_>) -> Result<Chunk, Malformed> {
    Ok(Chunk {
        total: from.varint("a record's length")?,
        offset: from.varint("a chunk's offset")?,
        crc: from.word32("a record's checksum")?,
        bytes: from.blob(MAX_DATA_BYTES, "a chunk's bytes")?.to_vec(),
    })
}

/// Reads what [`put_numbered`] has written, at most `max` of them, which `limit` says in words.
pub(in crate::codec) fn read_numbered(
    from: &mut ByteCursor<'_>,
    max: usize,
    limit: &'static str,
) -> Result<(Vec<u64>, Vec<u8>), Malformed> {
    let start = from.at();
    let count = from.varint(limit)?;
    if count > max as u64 {
        return Err(ByteCursor::malformed(start, limit, count.to_string()));
    }
    let mut base = 0;
    let numbers = (0..count)
        .map(|_| read_step(from, &mut base, "a number"))
        .collect::<Result<_, _>>()?;
    Ok((numbers, from.blob(MAX_DATA_BYTES, "their content")?.to_vec()))
}

/// Reads a log payload: the frame's number, then entries to its end.
pub(in crate::codec) fn read_log(payload: &[u8]) -> Result<(u64, Vec<LogEntry>), Malformed> {
    let mut from = ByteCursor::new(payload);
    let number = from.varint("a log frame's number")?;
    let mut base = Base::default();
    let mut entries = Vec::new();
    while !from.is_empty() {
        if entries.len() == MAX_ENTRIES {
            return Err(ByteCursor::malformed(
                from.at(),
                "at most 65536 entries in a frame",
                "one more",
            ));
        }
        entries.push(base.read(&mut from)?);
    }
    Ok((number, entries))
}
