//! What travels between a primary and its backup, or from a recording to its replay.
//!
//! The log is the heart of ftvm: every input a guest receives, at which of its exits. The crate `ftvm-schema` says what
//! an entry is; this one says how it looks as bytes, how it flows from one host to another or onto a disk, and when
//! what has flowed may be relied upon. Everything but [`transport`], [`clock`], the files of [`mod@file`] and the
//! drivers in [`session`] is a pure function of its arguments, so that production and simulation run the same code;
//! host clocks and random numbers are denied by lint in [`codec`], [`chunk`], [`flow`], [`message`] and [`session`].
//!
//! | module | what it is |
//! |---|---|
//! | [`message`] | what the two sides say to each other |
//! | [`codec`] | messages and entries as bytes; frames |
//! | [`chunk`] | long records in pieces |
//! | [`mod@file`] | a log on disk |
//! | [`flow`] | horizon, acks, execution lag, lease |
//! | [`session`] | the handshake |
//! | [`transport`] | frames over TCP or any other stream |
//! | [`clock`] | CLOCK_BOOTTIME |
//!
//! # A frame
//!
//! Numbers are little endian. A connection and a file are both a sequence of frames, each decodable alone; a heartbeat
//! is one frame in a datagram.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic `FT` |
//! | 2 | 1 | frame version, [`codec::FRAME_VERSION`] |
//! | 3 | 1 | kind, [`codec::FrameKind`] |
//! | 4 | 1 | flags, 0 |
//! | 5 | 3 | payload length, at most [`codec::MAX_PAYLOAD`] |
//! | 8 | 8 | generation (PROTOCOL 10) |
//! | 16 | 4 | CRC-32C of bytes 0 to 15: a damaged length is known at once |
//! | 20 | 4 | CRC-32C of bytes 0 to 19 and the payload |
//! | 24 | | payload |
//!
//! The payload of a log frame is its number and its entries, each a tag and differences to the entries before it in the
//! frame: a timer tick takes 7 bytes. Other payloads are a chunk or one record in a general encoding.
//! `codec/golden.txt` pins the bytes of every kind.
//!
//! # A file
//!
//! Frames: `FileHeader`, then `State` chunks if the recording starts from a state, then `Log` frames numbered from 1,
//! then `FileTrailer` with totals that must agree. Without a trailer the recording was cut off, and can be replayed up
//! to there.

#![forbid(unsafe_code)]

pub mod chunk;
pub mod clock;
pub mod codec;
pub mod file;
pub mod flow;
#[cfg(test)]
mod golden_errors;
pub mod message;
pub mod session;
pub mod transport;
