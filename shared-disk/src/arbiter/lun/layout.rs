//! What lies where on a device that serves as arbiter, byte by byte.
//!
//! ```text
//! block 0          header: kind "FTVMHEAD", no name, the text "ftvm-arbiter 1 blocks of B bytes"
//! block 1 + 2 i    register of slot i: kind "FTVMSLOT", the guest's name, its record (empty: none yet)
//! block 2 + 2 i    nonce of slot i: kind "FTVMNONC", the nonce's name, the nonce; all zero: none
//! ```
//!
//! There are 64 slots. They are given out from the first on and never taken back, so all free ones lie behind the used
//! ones, and two hosts that start a guest of the same name meet in the same slot. Every block that is not all zero has
//! this form in its first 512 bytes, with little-endian numbers, and zeros after them:
//!
//! ```text
//! 0..8 kind    8..10 length n of the name    10..12 length m of the content
//! 12..12+n name    76..76+m content    508..512 CRC-32C of bytes 0 to 507
//! ```

use thiserror::Error;

use crate::SECTOR_LEN;
use crate::arbiter::register::{NAME_BYTES, NONCE_BYTES};

/// How many guests a device has room for.
pub(super) const SLOTS: u64 = 64;

/// Blocks in use: the header, and two for each slot.
pub(super) const BLOCKS: u64 = 1 + 2 * SLOTS;

/// Bytes under the checksum, and of the checksum: the smallest block.
const SEALED: usize = SECTOR_LEN;
const NAME: usize = 12;
const CONTENT: usize = NAME + NAME_BYTES;
const CRC: usize = SEALED - 4;

/// The longest content, in bytes.
pub(super) const CONTENT_BYTES: usize = CRC - CONTENT;

const _: () = assert!(NONCE_BYTES <= CONTENT_BYTES, "a nonce fits a block");

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CellKind {
    Header,
    Register,
    Nonce,
}

impl CellKind {
    fn bytes(self) -> &'static [u8; 8] {
        match self {
            CellKind::Header => b"FTVMHEAD",
            CellKind::Register => b"FTVMSLOT",
            CellKind::Nonce => b"FTVMNONC",
        }
    }
}

/// What a block says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// Why a block is none of ours; ends a sentence about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum CellError {
    #[error("it does not begin with ftvm's mark")]
    Mark,
    #[error("its checksum is wrong")]
    Crc,
    #[error("its lengths or its name are impossible")]
    Form,
}

/// A block of `block_bytes`, which are at least 512.
///
/// # Panics
/// If name or content are too long.
pub(super) fn encode(kind: CellKind, name: &str, content: &[u8], block_bytes: usize) -> Vec<u8> {
    assert!(
        name.len() <= NAME_BYTES && content.len() <= CONTENT_BYTES,
        "checked by the caller"
    );
    let mut block = vec![0; block_bytes];
    let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
    block[..8].copy_from_slice(kind.bytes());
    block[8..10].copy_from_slice(&short(name.len()));
    block[10..12].copy_from_slice(&short(content.len()));
    block[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
    block[CONTENT..CONTENT + content.len()].copy_from_slice(content);
    let crc = crc32c::crc32c(&block[..CRC]);
    block[CRC..SEALED].copy_from_slice(&crc.to_le_bytes());
    block
}

/// Reads a block of this kind; `None` if it is all zero.
pub(super) fn decode(kind: CellKind, block: &[u8]) -> Result<Option<Cell>, CellError> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sealed = block.get(..SEALED).ok_or(CellError::Form)?;
    if sealed[..8] != *kind.bytes() {
        return Err(CellError::Mark);
    }
    if sealed[CRC..] != crc32c::crc32c(&sealed[..CRC]).to_le_bytes() {
        return Err(CellError::Crc);
    }
    let length = |at: usize| usize::from(u16::from_le_bytes([sealed[at], sealed[at + 1]]));
    let name = sealed[NAME..CONTENT].get(..length(8)).ok_or(CellError::Form)?;
    let content = sealed[CONTENT..CRC].get(..length(10)).ok_or(CellError::Form)?;
    Ok(Some(Cell {
        name: std::str::from_utf8(name).map_err(|_| CellError::Form)?.to_owned(),
        content: content.to_vec(),
    }))
}

/// The header of a device with such blocks.
pub(super) fn header(block_bytes: usize) -> Vec<u8> {
    let text = format!("ftvm-arbiter 1 blocks of {block_bytes} bytes");
    encode(CellKind::Header, "", text.as_bytes(), block_bytes)
}

/// The number of the block with a slot's register. Its nonce is in the next one.
pub(super) fn register_block(slot: u64) -> u64 {
    1 + 2 * slot
}

/// For `tests/fuzz`: a block of any kind is empty, damaged, or a cell that is written again in the same way.
#[cfg(feature = "fuzzing")]
pub fn fuzz(block: &[u8]) {
    for kind in [CellKind::Header, CellKind::Register, CellKind::Nonce] {
        if let Ok(Some(cell)) = decode(kind, block) {
            let again = encode(kind, &cell.name, &cell.content, block.len());
            assert_eq!(decode(kind, &again), Ok(Some(cell)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_has_the_documented_bytes() {
        let block = encode(CellKind::Register, "guest", b"content", 4096);
        assert_eq!(block.len(), 4096);
        assert_eq!(&block[..12], b"FTVMSLOT\x05\0\x07\0");
        assert_eq!(&block[12..17], b"guest");
        assert_eq!(&block[76..83], b"content");
        assert!(block[83..508].iter().chain(&block[512..]).all(|byte| *byte == 0));
        let text = &header(512)[76..76 + 34];
        assert_eq!(text, b"ftvm-arbiter 1 blocks of 512 bytes");
    }

    #[test]
    fn every_damage_is_seen() {
        let block = encode(CellKind::Nonce, "n", &[7; CONTENT_BYTES], 512);
        for at in 0..512 {
            let mut damaged = block.clone();
            damaged[at] ^= 1;
            assert!(decode(CellKind::Nonce, &damaged).is_err(), "byte {at}");
        }
        assert_eq!(decode(CellKind::Register, &block), Err(CellError::Mark), "another kind");
        assert_eq!(decode(CellKind::Nonce, &block[..511]), Err(CellError::Form));
        assert_eq!(decode(CellKind::Nonce, &[0; 512]), Ok(None));
    }

    #[test]
    fn impossible_lengths_under_a_good_checksum_are_refused() {
        for (at, most) in [(8, NAME_BYTES), (10, CONTENT_BYTES)] {
            for (length, fits) in [(most, true), (most + 1, false), (usize::from(u16::MAX), false)] {
                let mut block = encode(CellKind::Register, "", &[], 512);
                block[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
                let crc = crc32c::crc32c(&block[..CRC]).to_le_bytes();
                block[CRC..].copy_from_slice(&crc);
                assert_eq!(decode(CellKind::Register, &block).is_ok(), fits, "{at}: {length}");
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_read_as_written(name in "[a-z0-9.]{0,64}", content in proptest::collection::vec(any::<u8>(), 0..=CONTENT_BYTES)) {
            let block = encode(CellKind::Register, &name, &content, 512);
            prop_assert_eq!(decode(CellKind::Register, &block), Ok(Some(Cell { name, content })));
        }
    }
}
