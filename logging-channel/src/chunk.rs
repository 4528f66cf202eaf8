//! Long records in pieces: micro-checkpoints, state records (PROTOCOL 4, 17).
//!
//! A record is cut into [`Chunk`]s small enough that heartbeats, acks and other entries pass between them. Each chunk
//! names the whole record's length and checksum. [`Assembler`] takes the chunks in order and hands the record out only
//! whole and checked; whatever is incomplete or damaged is discarded. Memory grows with the bytes that really arrived,
//! never with the length a chunk claims.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use ftvm_schema::entry::Chunk;

/// Bytes in each chunk but the last. At 1 Gbit/s one takes about 2 ms, well under a quarter of the detection time.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Why chunks make no record. The assembler has discarded what it held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    #[error("a record of {total} bytes is longer than the {cap} allowed here")]
    TooLong { total: u64, cap: u64 },
    #[error("expected the chunk at offset {expected} of {total}, found the one at {found}")]
    OutOfOrder { expected: u64, found: u64, total: u64 },
    #[error(
        "the chunk at offset {offset} belongs to another record: expected {expected_total} bytes with CRC-32C \
         {expected_crc:08x}, found {total} with {crc:08x}"
    )]
    OtherRecord {
        offset: u64,
        expected_total: u64,
        expected_crc: u32,
        total: u64,
        crc: u32,
    },
    #[error("the chunk at offset {offset} with {len} bytes does not fit a record of {total}")]
    DoesNotFit { offset: u64, len: u64, total: u64 },
    #[error("a record of {total} bytes is damaged: expected CRC-32C {expected:08x}, found {found:08x}")]
    Checksum { total: u64, expected: u32, found: u32 },
}

/// Cuts `record` into chunks of [`CHUNK_BYTES`]; an empty record into one empty chunk.
pub fn split(record: &[u8]) -> impl Iterator<Item = Chunk> {
    let crc = crc32c::crc32c(record);
    let total = record.len() as u64;
    let starts = (0..record.len().max(1)).step_by(CHUNK_BYTES);
    starts.map(move |start| Chunk {
        total,
        offset: start as u64,
        crc,
        bytes: record[start..record.len().min(start + CHUNK_BYTES)].to_vec(),
    })
}

/// Cuts one chunk into chunks of at most [`CHUNK_BYTES`].
pub(crate) fn subdivide(chunk: &Chunk) -> impl Iterator<Item = Chunk> {
    let starts = (0..chunk.bytes.len().max(1)).step_by(CHUNK_BYTES);
    starts.map(|start| Chunk {
        total: chunk.total,
        offset: chunk.offset.saturating_add(start as u64),
        crc: chunk.crc,
        bytes: chunk.bytes[start..chunk.bytes.len().min(start + CHUNK_BYTES)].to_vec(),
    })
}

/// True if `chunk` is the last of its record.
#[must_use]
pub fn is_last(chunk: &Chunk) -> bool {
    chunk.offset.checked_add(chunk.bytes.len() as u64) == Some(chunk.total)
}

/// Puts the chunks of one record after another together.
#[derive(Debug)]
pub struct Assembler {
    cap: u64,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    total: u64,
    crc: u32,
    bytes: Vec<u8>,
}

impl Assembler {
    /// An assembler for records of at most `cap` bytes.
    #[must_use]
    pub fn new(cap: u64) -> Assembler {
        Assembler { cap, open: None }
    }

    /// Takes the next chunk; gives the record if this was its last.
    ///
    /// # Errors
    /// The chunk does not continue the record, or the record is too long or damaged. What was held is discarded.
    pub fn add(&mut self, chunk: Chunk) -> Result<Option<Vec<u8>>, ChunkError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open {
                total: chunk.total,
                crc: chunk.crc,
                bytes: Vec::new(),
            },
        };
        open.check(&chunk, self.cap)?;
        if open.bytes.is_empty() {
            open.bytes = chunk.bytes;
        } else {
            open.bytes.extend_from_slice(&chunk.bytes);
        }
        if (open.bytes.len() as u64) < open.total {
            self.open = Some(open);
            return Ok(None);
        }
        let found = crc32c::crc32c(&open.bytes);
        if found == open.crc {
            Ok(Some(open.bytes))
        } else {
            Err(ChunkError::Checksum {
                total: open.total,
                expected: open.crc,
                found,
            })
        }
    }

    /// Bytes held of an incomplete record.
    #[must_use]
    pub fn held(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.bytes.len() as u64)
    }

    /// Discards an incomplete record; says how many of how many bytes were there.
    pub(crate) fn discard(&mut self) -> Option<(u64, u64)> {
        self.open.take().map(|open| (open.bytes.len() as u64, open.total))
    }
}

impl Open {
    fn check(&self, chunk: &Chunk, cap: u64) -> Result<(), ChunkError> {
        let (expected, len) = (self.bytes.len() as u64, chunk.bytes.len() as u64);
        if chunk.total > cap {
            return Err(ChunkError::TooLong {
                total: chunk.total,
                cap,
            });
        }
        if chunk.offset != expected {
            return Err(ChunkError::OutOfOrder {
                expected,
                found: chunk.offset,
                total: self.total,
            });
        }
        if (chunk.total, chunk.crc) != (self.total, self.crc) {
            return Err(ChunkError::OtherRecord {
                offset: chunk.offset,
                expected_total: self.total,
                expected_crc: self.crc,
                total: chunk.total,
                crc: chunk.crc,
            });
        }
        // An empty chunk of a record that is not empty would make no progress, for ever.
        if len > self.total - expected || (len == 0 && self.total > 0) {
            return Err(ChunkError::DoesNotFit {
                offset: chunk.offset,
                len,
                total: self.total,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n % 251).to_le_bytes()[0]).collect()
    }

    fn assemble(chunks: impl IntoIterator<Item = Chunk>) -> Result<Option<Vec<u8>>, ChunkError> {
        let mut assembler = Assembler::new(u64::MAX);
        let mut last = Ok(None);
        for chunk in chunks {
            last = assembler.add(chunk);
            last.as_ref().map_err(Clone::clone)?;
        }
        last
    }

    #[test]
    fn records_around_every_chunk_boundary_come_back() {
        for len in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let record = record(len);
            let chunks: Vec<Chunk> = split(&record).collect();
            assert_eq!(chunks.len(), len.div_ceil(CHUNK_BYTES).max(1));
            assert!(chunks.iter().all(|chunk| chunk.bytes.len() <= CHUNK_BYTES));
            assert_eq!(chunks.iter().filter(|chunk| is_last(chunk)).count(), 1);
            assert_eq!(assemble(chunks).unwrap(), Some(record));
        }
    }

    #[test]
    fn a_subdivided_chunk_is_the_same_record() {
        let record = record(5 * CHUNK_BYTES + 7);
        let (head, tail) = record.split_at(2 * CHUNK_BYTES + 3);
        let whole = |offset: usize, bytes: &[u8]| Chunk {
            total: record.len() as u64,
            offset: offset as u64,
            crc: crc32c::crc32c(&record),
            bytes: bytes.to_vec(),
        };
        let (head, tail) = (whole(0, head), whole(head.len(), tail));
        let chunks: Vec<Chunk> = subdivide(&head).chain(subdivide(&tail)).collect();
        assert!(chunks.iter().all(|chunk| chunk.bytes.len() <= CHUNK_BYTES));
        assert_eq!(assemble(chunks).unwrap(), Some(record));
    }

    #[test]
    fn an_incomplete_record_is_never_handed_out_and_can_be_discarded() {
        let record = record(2 * CHUNK_BYTES + 5);
        let mut assembler = Assembler::new(record.len() as u64);
        for chunk in split(&record).take(2) {
            assert_eq!(assembler.add(chunk).unwrap(), None);
        }
        assert_eq!(assembler.held(), Some(2 * CHUNK_BYTES as u64));
        assert_eq!(assembler.discard(), Some((2 * CHUNK_BYTES as u64, record.len() as u64)));
        assert_eq!(assembler.discard(), None);
        assert_eq!(assemble(split(&record)).unwrap(), Some(record));
    }

    #[test]
    fn the_cap_is_exact_and_a_claimed_length_allocates_nothing() {
        let record = record(10);
        let chunk = split(&record).next().unwrap();
        assert!(Assembler::new(10).add(chunk.clone()).unwrap().is_some());
        assert_eq!(
            Assembler::new(9).add(chunk.clone()),
            Err(ChunkError::TooLong { total: 10, cap: 9 })
        );
        let mut assembler = Assembler::new(u64::MAX);
        let claims = Chunk {
            total: u64::MAX,
            ..chunk
        };
        assert_eq!(assembler.add(claims), Ok(None));
        assert!(assembler.open.unwrap().bytes.capacity() < 1000);
    }

    #[test]
    fn gaps_repeats_mixtures_and_damage_are_errors_and_discard() {
        let record = record(3 * CHUNK_BYTES);
        let chunks: Vec<Chunk> = split(&record).collect();
        let pick = |order: &[usize]| assemble(order.iter().map(|n| chunks[*n].clone()));
        assert!(matches!(pick(&[0, 2]), Err(ChunkError::OutOfOrder { .. })));
        assert!(matches!(pick(&[0, 0]), Err(ChunkError::OutOfOrder { .. })));
        assert!(matches!(pick(&[1]), Err(ChunkError::OutOfOrder { .. })));

        let altered = |n: usize, alter: fn(&mut Chunk)| {
            let mut chunks = chunks.clone();
            alter(&mut chunks[n]);
            assemble(chunks)
        };
        assert!(matches!(
            altered(1, |chunk| chunk.crc ^= 1),
            Err(ChunkError::OtherRecord { .. })
        ));
        assert!(matches!(
            altered(1, |chunk| chunk.total += 1),
            Err(ChunkError::OtherRecord { .. })
        ));
        assert!(matches!(
            altered(1, |chunk| chunk.bytes.clear()),
            Err(ChunkError::DoesNotFit { .. })
        ));
        assert!(matches!(
            altered(2, |chunk| chunk.bytes.push(0)),
            Err(ChunkError::DoesNotFit { .. })
        ));
        assert!(matches!(
            altered(2, |chunk| chunk.bytes[9] ^= 1),
            Err(ChunkError::Checksum { .. })
        ));

        let mut assembler = Assembler::new(u64::MAX);
        assembler.add(chunks[0].clone()).unwrap();
        assembler.add(chunks[2].clone()).unwrap_err();
        assert_eq!(assembler.held(), None);
        assert_eq!(
            assembler.add(chunks[0].clone()),
            Ok(None),
            "it starts over after an error"
        );
    }

    #[test]
    fn an_offset_at_the_end_of_u64_does_not_overflow() {
        let chunk = Chunk {
            total: 5,
            offset: u64::MAX,
            crc: 0,
            bytes: vec![1],
        };
        assert!(!is_last(&chunk));
        assert!(Assembler::new(10).add(chunk).is_err());
    }
}
