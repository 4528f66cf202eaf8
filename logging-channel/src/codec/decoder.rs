//! From bytes, as they come, to frames.
//!
//! Incremental and pure: the shell pushes what it read and takes what is complete. A decoder that has failed stays
//! failed: after damage there is no trustworthy frame boundary any more, and a session or file ends there.

use serde::de::DeserializeOwned;

use super::bytes::{ByteCursor, Malformed};
use super::entries::{read_chunk, read_log, read_numbered};
use super::frame::{FrameError, FrameFault, FrameKind, HEADER_BYTES, Header, MAX_PAYLOAD};
use crate::message::{Heartbeat, MAX_BLOCKS, MAX_PAGES, Message};
use ftvm_schema::entry::{Generation, Position};
use ftvm_schema::record::{CodecError, from_bytes};

/// The most a shell should read and push at a time, in bytes.
pub const READ_CHUNK: usize = 256 << 10;

/// A whole frame, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedFrame {
    pub generation: Generation,
    pub message: Message,
    /// Length of the frame, header included.
    pub bytes: usize,
}

/// A whole frame whose checksums are good, its payload not yet decoded.
#[derive(Debug)]
pub struct RawFrame<'a> {
    /// Counted from 0.
    pub frame: u64,
    /// Where the frame starts in the stream or file.
    pub offset: u64,
    pub kind: FrameKind,
    pub generation: Generation,
    pub payload: &'a [u8],
}

impl RawFrame<'_> {
    /// The fault as an error about this frame.
    fn error(&self, fault: FrameFault) -> FrameError {
        FrameError {
            frame: self.frame,
            offset: self.offset,
            fault,
        }
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// [`FrameFault::Undecodable`], or [`FrameFault::OutOfPlace`] for kinds that are no message.
    pub fn message(&self) -> Result<Message, FrameError> {
        let decoded = match self.kind {
            FrameKind::Join => record(self.payload).map(Message::Join),
            FrameKind::Welcome => record(self.payload).map(Message::Welcome),
            FrameKind::Proof => record(self.payload).map(|nonce| Message::Proof { nonce }),
            FrameKind::Refuse => record(self.payload).map(|reason| Message::Refuse { reason }),
            FrameKind::State => whole(self.payload, read_chunk).map(Message::State),
            FrameKind::Grant => record(self.payload).map(Message::Grant),
            FrameKind::Log => read_log(self.payload).map(|(number, entries)| Message::Log { number, entries }),
            FrameKind::Ack => record(self.payload).map(Message::Ack),
            FrameKind::Diverged => {
                record::<(Position, String)>(self.payload).map(|(at, what)| Message::Diverged { at, what })
            }
            FrameKind::Pages => {
                let pages =
                    |from: &mut ByteCursor<'_>| read_numbered(from, MAX_PAGES, "at most 256 pages in a message");
                whole(self.payload, pages).map(|(numbers, content)| Message::Pages { numbers, content })
            }
            FrameKind::Blocks => {
                let blocks = |from: &mut ByteCursor<'_>| {
                    let disk = from.byte("a disk")?;
                    Ok((disk, read_numbered(from, MAX_BLOCKS, "at most 16 blocks in a message")?))
                };
                whole(self.payload, blocks).map(|(disk, (numbers, content))| Message::Blocks { disk, numbers, content })
            }
            FrameKind::FlushBlocks => whole(self.payload, |_| Ok(Message::FlushBlocks)),
            FrameKind::BlocksWritten => {
                record(self.payload).map(|(incarnation, messages)| Message::BlocksWritten { incarnation, messages })
            }
            FrameKind::Bye => whole(self.payload, |_| Ok(Message::Bye)),
            FrameKind::Dismiss => whole(self.payload, |_| Ok(Message::Dismiss)),
            FrameKind::Handover => whole(self.payload, |_| Ok(Message::Handover)),
            FrameKind::Health => record(self.payload).map(Message::Health),
            FrameKind::Boot => whole(self.payload, read_chunk).map(Message::Boot),
            kind @ (FrameKind::FileHeader | FrameKind::FileTrailer | FrameKind::Heartbeat) => {
                return Err(self.error(FrameFault::OutOfPlace { kind }));
            }
        };
        decoded.map_err(|what| self.error(FrameFault::Undecodable { kind: self.kind, what }))
    }

    /// Decodes the record that a frame of `kind` holds.
    ///
    /// # Errors
    /// The frame is of another kind, or [`FrameFault::Undecodable`].
    pub(crate) fn record<T: DeserializeOwned>(&self, kind: FrameKind) -> Result<T, FrameError> {
        if self.kind != kind {
            return Err(self.error(FrameFault::OutOfPlace { kind: self.kind }));
        }
        record(self.payload).map_err(|what| self.error(FrameFault::Undecodable { kind, what }))
    }
}

/// A payload that is one serde record.
fn record<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Malformed> {
    from_bytes(payload, MAX_PAYLOAD).map_err(|error| match error {
        CodecError::Decode {
            type_name,
            offset,
            what,
            ..
        } => ByteCursor::malformed(offset, type_name, what),
        CodecError::Trailing {
            type_name,
            used,
            trailing,
        } => ByteCursor::malformed(used, type_name, format!("{trailing} more bytes after it")),
        other => ByteCursor::malformed(0, "a record", other.to_string()),
    })
}

/// A payload that `read` must use up.
fn whole<T>(payload: &[u8], read: impl FnOnce(&mut ByteCursor<'_>) -> Result<T, Malformed>) -> Result<T, Malformed> {
    let mut from = ByteCursor::new(payload);
    let value = read(&mut from)?;
    if from.is_empty() {
        Ok(value)
    } else {
        let more = payload.len() - from.at();
        Err(ByteCursor::malformed(
            from.at(),
            "the payload's end",
            format!("{more} more bytes"),
        ))
    }
}

/// Cuts a byte stream into frames. Holds at most one incomplete frame and one [`READ_CHUNK`].
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that have been handed out.
    taken: usize,
    frame: u64,
    offset: u64,
    limit: usize,
    failed: Option<FrameError>,
}

impl Default for FrameDecoder {
    fn default() -> FrameDecoder {
        FrameDecoder::new()
    }
}

impl FrameDecoder {
    #[must_use]
    pub fn new() -> FrameDecoder {
        FrameDecoder {
            buffer: Vec::new(),
            taken: 0,
            frame: 0,
            offset: 0,
            limit: MAX_PAYLOAD,
            failed: None,
        }
    }

    /// Bounds the payload of the frames to come, in bytes, at most [`MAX_PAYLOAD`]: a stranger gets less than a peer.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(MAX_PAYLOAD);
    }

    /// Takes bytes as they were read. After each push, take frames until there is none.
    ///
    /// # Errors
    /// [`FrameFault::Overrun`] if more is pushed than an incomplete frame and one [`READ_CHUNK`]; or the error the
    /// decoder has failed with.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let limit = HEADER_BYTES + MAX_PAYLOAD + READ_CHUNK;
        let buffered = self.buffer.len() + bytes.len();
        if buffered > limit {
            return Err(self.fail(FrameFault::Overrun { buffered, limit }));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// What is wrong with the frame, and with every later call the same.
    pub fn next_frame(&mut self) -> Result<Option<DecodedFrame>, FrameError> {
        let decoded = match self.next_raw()? {
            None => return Ok(None),
            Some(raw) => raw.message().map(|message| DecodedFrame {
                generation: raw.generation,
                message,
                bytes: HEADER_BYTES + raw.payload.len(),
            }),
        };
        decoded.map(Some).inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// The next whole frame with good checksums, undecoded.
    ///
    /// # Errors
    /// As [`FrameDecoder::next_frame`], but for [`FrameFault::Undecodable`].
    pub fn next_raw(&mut self) -> Result<Option<RawFrame<'_>>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let Some((bytes, rest)) = self.buffer[self.taken..].split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = match Header::parse(bytes, self.limit) {
            Ok(header) => header,
            Err(fault) => return Err(self.fail(fault)),
        };
        let Some(payload) = rest.get(..header.len) else {
            return Ok(None);
        };
        if let Err(fault) = header.check(payload) {
            return Err(self.fail(fault));
        }
        let start = self.taken + HEADER_BYTES;
        let (frame, offset) = (self.frame, self.offset);
        let bytes = HEADER_BYTES + header.len;
        self.taken += bytes;
        self.frame += 1;
        self.offset += bytes as u64;
        Ok(Some(RawFrame {
            frame,
            offset,
            kind: header.kind,
            generation: header.generation,
            payload: &self.buffer[start..start + header.len],
        }))
    }

    /// Call this when the stream has ended: it must not have ended inside a frame.
    ///
    /// # Errors
    /// [`FrameFault::Truncated`], or the error the decoder has failed with.
    pub fn finish(&self) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let rest = &self.buffer[self.taken..];
        if rest.is_empty() {
            return Ok(());
        }
        let need = rest
            .first_chunk()
            .and_then(|bytes| Header::parse(bytes, self.limit).ok())
            .map_or(HEADER_BYTES, |header| HEADER_BYTES + header.len);
        Err(self.error(FrameFault::Truncated { have: rest.len(), need }))
    }

    /// Where the next frame starts, in bytes from the stream's start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn error(&self, fault: FrameFault) -> FrameError {
        FrameError {
            frame: self.frame,
            offset: self.offset,
            fault,
        }
    }

    fn fail(&mut self, fault: FrameFault) -> FrameError {
        let error = self.error(fault);
        self.failed = Some(error.clone());
        error
    }

    /// Pushes bytes that are known to fit.
    #[cfg(test)]
    pub(crate) fn push_all(&mut self, bytes: &[u8]) {
        self.push(bytes).expect("fits");
    }
}

/// Decodes a heartbeat datagram.
///
/// # Errors
/// Anything but exactly one whole heartbeat frame whose generation is that of its header.
pub fn decode_heartbeat(datagram: &[u8]) -> Result<Heartbeat, FrameError> {
    let mut decoder = FrameDecoder::new();
    decoder.push(datagram)?;
    let heartbeat = match decoder.next_raw()? {
        Some(raw) => raw.record::<Heartbeat>(FrameKind::Heartbeat)?,
        None => {
            decoder.finish()?;
            return Err(decoder.error(FrameFault::Truncated {
                have: 0,
                need: HEADER_BYTES,
            }));
        }
    };
    let trailing = decoder.buffer.len() - decoder.taken;
    if trailing > 0 {
        return Err(decoder.error(FrameFault::Overrun {
            buffered: datagram.len(),
            limit: datagram.len() - trailing,
        }));
    }
    Ok(heartbeat)
}
