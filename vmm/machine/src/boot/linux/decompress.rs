//! What kernels, initrds and modules are compressed with: recognised by content, expanded up to a bound.
//!
//! Formats are those of Linux's `lib/decompress_*.c` and `scripts/Makefile.lib`: gzip, xz, lzma-alone, bzip2, the
//! legacy LZ4 frame, lzop and zstd. The input is hostile: expansion stops at the caller's bound, whatever a header
//! promises. Bytes behind the compressed stream (Linux appends the size) are ignored.

use std::error::Error;
use std::io::Read;

/// Memory that an xz or lzma stream may ask for as its dictionary, in KiB. `xz -9` asks for 64 MiB; Linux's own
/// kernels use 128 MiB at most.
const DICTIONARY_KIB: u32 = 192 << 10;

/// A block of a legacy LZ4 frame expands to at most this (`lib/decompress_unlz4.c`,
/// LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE).
const LZ4_CHUNK: usize = 8 << 20;

/// A block of an lzop file expands to at most this (`lib/decompress_unlzo.c`, LZO_BLOCK_SIZE is 256 KiB; lzop allows
/// more).
const LZO_CHUNK: usize = 64 << 20;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZOP: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];

/// A compression that was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Xz,
    Lzma,
    Bzip2,
    Lz4,
    Lzo,
    Zstd,
}

/// Why something could not be expanded.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// The stream is damaged or cut short.
    #[error("the {format:?} stream is damaged: {source}")]
    Damaged {
        format: Compression,
        /// In the words of the format's decoder.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The stream expands beyond the bound.
    #[error("the {format:?} stream expands to more than {} MiB", limit >> 20)]
    TooBig { format: Compression, limit: u64 },
}

impl Compression {
    /// By the first bytes. Lzma-alone has no magic; its property byte 0x5D and a power-of-two dictionary are taken for
    /// it, as Linux does.
    #[must_use]
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Compression::Bzip2),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            [0x5d, 0, 0, _, ..] => Some(Compression::Lzma),
            _ if bytes.starts_with(&LZ4_LEGACY) => Some(Compression::Lz4),
            _ if bytes.starts_with(&LZOP) => Some(Compression::Lzo),
            _ => None,
        }
    }

    /// The expansion of the stream at the beginning of `bytes`, and how many bytes of it were used where the format
    /// tells.
    ///
    /// # Errors
    /// If it is damaged, or expands to more than `limit` bytes.
    pub fn expand(self, bytes: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
        match self {
            Compression::Gzip => self.read(flate2::bufread::GzDecoder::new(bytes), limit),
            Compression::Bzip2 => self.read(bzip2::bufread::BzDecoder::new(bytes), limit),
            Compression::Xz => self.read(lzma_rust2::XzReader::new_mem_limit(bytes, false, DICTIONARY_KIB), limit),
            Compression::Lzma => {
                let reader = lzma_rust2::LzmaReader::new_mem_limit(bytes, DICTIONARY_KIB, None);
                self.read(reader.map_err(|e| self.damaged(e))?, limit)
            }
            Compression::Zstd => {
                let reader = ruzstd::decoding::StreamingDecoder::new(bytes);
                self.read(reader.map_err(|e| self.damaged(e))?, limit)
            }
            Compression::Lz4 => self.lz4_legacy(bytes, limit),
            Compression::Lzo => self.lzop(bytes, limit),
        }
    }

    fn damaged(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> DecompressError {
        DecompressError::Damaged {
            format: self,
            source: source.into(),
        }
    }

    fn read(self, reader: impl Read, limit: u64) -> Result<Vec<u8>, DecompressError> {
        let mut expanded = Vec::new();
        reader
            .take(limit + 1)
            .read_to_end(&mut expanded)
            .map_err(|e| self.damaged(e))?;
        self.check(expanded.len(), limit)?;
        Ok(expanded)
    }

    fn check(self, length: usize, limit: u64) -> Result<(), DecompressError> {
        if length as u64 > limit {
            return Err(DecompressError::TooBig { format: self, limit });
        }
        Ok(())
    }

    /// Magic, then blocks with their compressed size in front. A size that reaches beyond the end is the kernel's size
    /// behind the last block, as `lib/decompress_unlz4.c` takes it.
    fn lz4_legacy(self, bytes: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
        let mut rest = &bytes[LZ4_LEGACY.len()..];
        let (mut expanded, mut chunk) = (Vec::new(), vec![0; LZ4_CHUNK]);
        while let Some((size, blocks)) = rest.split_first_chunk::<4>() {
            if *size == LZ4_LEGACY {
                rest = blocks;
                continue;
            }
            let Some((block, behind)) = usize::try_from(u32::from_le_bytes(*size))
                .ok()
                .and_then(|size| blocks.split_at_checked(size))
                .filter(|(block, _)| !block.is_empty())
            else {
                break;
            };
            let length = lz4_flex::block::decompress_into(block, &mut chunk).map_err(|e| self.damaged(e))?;
            expanded.extend_from_slice(&chunk[..length]);
            self.check(expanded.len(), limit)?;
            rest = behind;
        }
        if expanded.is_empty() {
            return Err(self.damaged("it has no whole block"));
        }
        Ok(expanded)
    }

    /// The file format of the lzop program (`lib/decompress_unlzo.c`): a header, then blocks with both sizes and a
    /// checksum.
    fn lzop(self, bytes: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
        let short = || self.damaged("it ends in the middle");
        let word = |at: usize| -> Option<usize> {
            let bytes = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
            usize::try_from(u32::from_be_bytes(bytes)).ok()
        };
        // Magic, version, library version, needed version, method, level: 9 + 2 + 2 + 2 + 1 + 1.
        let flags = word(17).ok_or_else(short)?;
        let filter = if flags & 0x800 == 0 { 0 } else { 4 };
        // Flags, filter, mode, time low and high; then the name's length, the name, and the header's checksum.
        let name = 17 + 4 + filter + 12;
        let mut at = name + 1 + usize::from(*bytes.get(name).ok_or_else(short)?) + 4;
        let mut expanded = Vec::new();
        loop {
            let size = word(at).ok_or_else(short)?;
            if size == 0 {
                return Ok(expanded);
            }
            if size > LZO_CHUNK {
                return Err(self.damaged(format!("a block of {size} bytes, at most {LZO_CHUNK} are taken")));
            }
            self.check(expanded.len() + size, limit)?;
            let packed = word(at + 4).ok_or_else(short)?;
            // A checksum of the expansion (Adler-32 or CRC-32), and one of the block if it is compressed.
            let (whole, block) = (flags & 0x101 != 0, flags & 0x202 != 0 && packed < size);
            at += 8 + 4 * usize::from(whole) + 4 * usize::from(block);
            let block = at
                .checked_add(packed)
                .and_then(|end| bytes.get(at..end))
                .ok_or_else(short)?;
            let before = expanded.len();
            if packed < size {
                expanded.resize(before + size, 0);
                let length = lzokay::decompress::decompress(block, &mut expanded[before..])
                    .map_err(|e| self.damaged(format!("{e:?}")))?;
                expanded.truncate(before + length);
            } else {
                expanded.extend_from_slice(block);
            }
            at += packed;
        }
    }
}
