//! The frame: a fixed header of 24 bytes, then the payload.
//!
//! The crate's front page shows the layout. The header has a checksum of its own so that a damaged length is known at
//! once as damage: otherwise a reader would wait for bytes that never come, or call a damaged file a truncated one.

use super::bytes::Malformed;
use ftvm_schema::entry::Generation;

/// Version of the frame and of every payload in it.
pub const FRAME_VERSION: u8 = 2;

/// Length of a frame's header.
pub const HEADER_BYTES: usize = 24;

/// The longest payload, in bytes: twice the longest data of one entry, so that a batch can always take one more entry
/// before it is sealed. A reader holds at most one payload.
pub const MAX_PAYLOAD: usize = 8 << 20;

const MAGIC: [u8; 2] = *b"FT";

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    Join,
    Welcome,
    Proof,
    Refuse,
    State,
    Grant,
    Log,
    Ack,
    Diverged,
    Bye,
    Pages,
    Dismiss,
    Handover,
    Health,
    Boot,
    Blocks,
    FlushBlocks,
    BlocksWritten,
    /// First frame of a log file.
    FileHeader,
    /// Last frame of a log file.
    FileTrailer,
    /// A UDP heartbeat, alone in its datagram.
    Heartbeat,
}

/// Kinds and their bytes in the header.
const KINDS: [(FrameKind, u8); 21] = [
    (FrameKind::Join, 1),
    (FrameKind::Welcome, 2),
    (FrameKind::Proof, 3),
    (FrameKind::Refuse, 4),
    (FrameKind::State, 5),
    (FrameKind::Grant, 6),
    (FrameKind::Log, 7),
    (FrameKind::Ack, 8),
    (FrameKind::Diverged, 9),
    (FrameKind::Bye, 10),
    (FrameKind::Pages, 11),
    (FrameKind::Dismiss, 12),
    (FrameKind::Handover, 13),
    (FrameKind::Health, 14),
    (FrameKind::Boot, 15),
    (FrameKind::Blocks, 0x11),
    (FrameKind::FlushBlocks, 0x12),
    (FrameKind::BlocksWritten, 0x13),
    (FrameKind::FileHeader, 0x21),
    (FrameKind::FileTrailer, 0x22),
    (FrameKind::Heartbeat, 0x31),
];

impl FrameKind {
    fn byte(self) -> u8 {
        KINDS
            .iter()
            .find(|(kind, _)| *kind == self)
            .expect("every kind is in KINDS")
            .1
    }

    fn from_byte(byte: u8) -> Option<FrameKind> {
        KINDS.iter().find(|(_, value)| *value == byte).map(|(kind, _)| *kind)
    }
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    #[error("expected the frame magic \"FT\", found {found:02x?}: this is no ftvm stream or file, or it is damaged")]
    NotAFrame { found: [u8; 2] },
    #[error("expected frame version {FRAME_VERSION}, found {found}: it was written by another release of ftvm")]
    WrongVersion { found: u8 },
    #[error("the header is damaged: expected CRC-32C {expected:08x}, found {found:08x}")]
    HeaderChecksum { expected: u32, found: u32 },
    #[error("expected a known frame kind, found {found:#04x}")]
    UnknownKind { found: u8 },
    #[error("expected flags 0, found {found:#04x}")]
    UnknownFlags { found: u8 },
    #[error("expected at most {limit} bytes of payload, found a length of {len}")]
    TooLong { len: usize, limit: usize },
    #[error("the payload is damaged: expected CRC-32C {expected:08x}, found {found:08x}")]
    PayloadChecksum { expected: u32, found: u32 },
    /// The checksum is good, so the sender meant it: a bug or a stranger, not damage. Never acked (PROTOCOL 6).
    #[error("a {kind:?} frame with a good checksum does not decode: {what}")]
    Undecodable { kind: FrameKind, what: Malformed },
    #[error("a {kind:?} frame has no business here")]
    OutOfPlace { kind: FrameKind },
    #[error("it is cut off: {have} of {need} bytes are there")]
    Truncated { have: usize, need: usize },
    #[error("{buffered} bytes pushed without being taken, more than the {limit} a decoder holds")]
    Overrun { buffered: usize, limit: usize },
}

/// A fault, and in which frame of the stream or file it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame {frame} at byte {offset}: {fault}")]
pub struct FrameError {
    /// Counted from 0.
    pub frame: u64,
    /// Where the frame starts, in bytes from the start of the stream or file.
    pub offset: u64,
    pub fault: FrameFault,
}

/// A header that has passed its checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: FrameKind,
    pub(super) len: usize,
    pub(super) generation: Generation,
    payload_crc: u32,
    seed: u32,
}

impl Header {
    /// Checks a header. `limit` bounds the payload length (at most [`MAX_PAYLOAD`]).
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES], limit: usize) -> Result<Header, FrameFault> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[..2] != MAGIC {
            return Err(FrameFault::NotAFrame {
                found: [bytes[0], bytes[1]],
            });
        }
        if bytes[2] != FRAME_VERSION {
            return Err(FrameFault::WrongVersion { found: bytes[2] });
        }
        let expected = crc32c::crc32c(&bytes[..16]);
        if word(16) != expected {
            return Err(FrameFault::HeaderChecksum {
                expected,
                found: word(16),
            });
        }
        let kind = FrameKind::from_byte(bytes[3]).ok_or(FrameFault::UnknownKind { found: bytes[3] })?;
        if bytes[4] != 0 {
            return Err(FrameFault::UnknownFlags { found: bytes[4] });
        }
        let len = usize::from(bytes[5]) | usize::from(bytes[6]) << 8 | usize::from(bytes[7]) << 16;
        let limit = limit.min(MAX_PAYLOAD);
        if len > limit {
            return Err(FrameFault::TooLong { len, limit });
        }
        Ok(Header {
            kind,
            len,
            generation: Generation(u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"))),
            payload_crc: word(20),
            seed: crc32c::crc32c(&bytes[..20]),
        })
    }

    /// Checks the payload that belongs to this header.
    pub(super) fn check(&self, payload: &[u8]) -> Result<(), FrameFault> {
        let expected = crc32c::crc32c_append(self.seed, payload);
        if self.payload_crc == expected {
            Ok(())
        } else {
            Err(FrameFault::PayloadChecksum {
                expected,
                found: self.payload_crc,
            })
        }
    }
}

/// Fills in the header of a frame whose payload stands behind [`HEADER_BYTES`] bytes of room.
///
/// # Panics
/// If there is no such room or the payload is longer than [`MAX_PAYLOAD`]; the encoder has checked both.
pub(super) fn seal(frame: &mut [u8], kind: FrameKind, generation: Generation) {
    let (header, payload) = frame.split_at_mut(HEADER_BYTES);
    assert!(
        payload.len() <= MAX_PAYLOAD,
        "a payload of {} bytes was not split",
        payload.len()
    );
    header[..2].copy_from_slice(&MAGIC);
    header[2] = FRAME_VERSION;
    header[3] = kind.byte();
    header[4] = 0;
    header[5..8].copy_from_slice(&payload.len().to_le_bytes()[..3]);
    header[8..16].copy_from_slice(&generation.0.to_le_bytes());
    let crc = crc32c::crc32c(&header[..16]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..20]), payload);
    header[20..].copy_from_slice(&crc.to_le_bytes());
}
