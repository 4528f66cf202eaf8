//! Entries into bytes.

use super::Base;
use super::wire::{
    CHECKPOINT, CHECKS, CLOCK, CONSOLE_RX, CONTROL, DISK_DONE, DISK_READ, END, ENTROPY, MARK, NEAR, NEAR_CLOCK,
    NEAR_CLOCK_GRAINED, NET_RX, RELEASED, WITH_MEMORY_HASH, WITH_REGISTERS,
};
use crate::codec::bytes::{put_blob, put_varint};
use ftvm_schema::entry::{
    CLOCK_GRAIN_BITS, Chunk, ConsolePort, DiskStatus, EndReason, Input, Intervention, LogEntry, Mark, Position,
};

/// Writes `value` as its difference to `base`, which becomes `value`.
#[inline]
fn put_step(out: &mut Vec<u8>, base: &mut u64, value: u64) {
    put_varint(out, value.wrapping_sub(*base));
    *base = value;
}

impl Base {
    /// Appends `entry`. The caller has checked its data against [`MAX_DATA_BYTES`].
    pub(in crate::codec) fn put(&mut self, out: &mut Vec<u8>, entry: &LogEntry) {
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

/// Appends a chunk: total, offset, CRC (4), bytes.
pub(in crate::codec) fn put_chunk(out: &mut Vec<u8>, chunk: &Chunk) {
    put_varint(out, chunk.total);
    put_varint(out, chunk.offset);
    out.extend_from_slice(&chunk.crc.to_le_bytes());
    put_blob(out, &chunk.bytes);
}

/// Pages or blocks: count, numbers as differences, content.
pub(in crate::codec) fn put_numbered(out: &mut Vec<u8>, numbers: &[u64], content: &[u8]) {
    put_varint(out, numbers.len() as u64);
    let mut base = 0;
    for number in numbers {
        put_step(out, &mut base, *number);
    }
    put_blob(out, content);
}
