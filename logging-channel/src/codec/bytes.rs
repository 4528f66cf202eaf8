//! Varints, fixed words and byte strings, written and read by hand.
//!
//! A varint is LEB128: seven bits a byte, lowest first, the high bit set on all but the last. Only the shortest form is
//! accepted, so that a value has one encoding.

/// What a reader of bytes expected, what it found instead, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: expected {expected}, found {found}")]
pub struct Malformed {
    /// Offset within the payload.
    pub at: usize,
    pub expected: &'static str,
    pub found: String,
}

/// Appends a varint.
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends a byte string: its length as a varint, then the bytes.
#[inline]
pub(super) fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote. Nothing here allocates more than the bytes that are really there.
#[derive(Debug)]
pub(super) struct ByteCursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ByteCursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> ByteCursor<'a> {
        ByteCursor { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// An error about the byte at `at`.
    pub(super) fn malformed(at: usize, expected: &'static str, found: impl Into<String>) -> Malformed {
        Malformed {
            at,
            expected,
            found: found.into(),
        }
    }

    pub(super) fn take(&mut self, len: usize, expected: &'static str) -> Result<&'a [u8], Malformed> {
        let left = self.bytes.len() - self.at;
        if len > left {
            return Err(Self::malformed(
                self.at,
                expected,
                format!("{left} bytes of {len}, then the end"),
            ));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(super) fn byte(&mut self, expected: &'static str) -> Result<u8, Malformed> {
        Ok(self.take(1, expected)?[0])
    }

    pub(super) fn word32(&mut self, expected: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.take(4, expected)?.try_into().expect("took 4")))
    }

    pub(super) fn word64(&mut self, expected: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.take(8, expected)?.try_into().expect("took 8")))
    }

    #[inline]
    pub(super) fn varint(&mut self, expected: &'static str) -> Result<u64, Malformed> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(expected)?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(Self::malformed(start, expected, "a number above 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Self::malformed(start, expected, "a number not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(Self::malformed(start, expected, "a number above 64 bits"))
    }

    pub(super) fn varint32(&mut self, expected: &'static str) -> Result<u32, Malformed> {
        let start = self.at;
        let value = self.varint(expected)?;
        u32::try_from(value).map_err(|_| Self::malformed(start, expected, format!("{value}, above 32 bits")))
    }

    /// A byte string of at most `max` bytes.
    pub(super) fn blob(&mut self, max: usize, expected: &'static str) -> Result<&'a [u8], Malformed> {
        let start = self.at;
        let len = self.varint(expected)?;
        match usize::try_from(len) {
            Ok(len) if len <= max => self.take(len, expected),
            _ => Err(Self::malformed(
                start,
                expected,
                format!("a length of {len}, above the {max} allowed"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_at_every_width() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                let mut cursor = ByteCursor::new(&out);
                assert_eq!(cursor.varint("n").unwrap(), value);
                assert!(cursor.is_empty());
                for cut in 0..out.len() {
                    assert!(ByteCursor::new(&out[..cut]).varint("n").is_err());
                }
            }
        }
    }

    #[test]
    fn longer_forms_and_overflows_are_refused() {
        assert!(ByteCursor::new(&[0x80, 0x00]).varint("n").is_err());
        assert!(ByteCursor::new(&[0]).varint("n").is_ok());
        let mut max = [0xFF; 10];
        max[9] = 0x01;
        assert_eq!(ByteCursor::new(&max).varint("n").unwrap(), u64::MAX);
        max[9] = 0x02;
        assert!(ByteCursor::new(&max).varint("n").is_err());
        assert!(ByteCursor::new(&[0xFF; 11]).varint("n").is_err());
        let mut wide = Vec::new();
        put_varint(&mut wide, 1 << 32);
        assert!(ByteCursor::new(&wide).varint32("n").is_err());
    }

    #[test]
    fn a_blob_is_bounded_by_its_maximum_and_by_what_is_there() {
        let mut out = Vec::new();
        put_blob(&mut out, b"12345");
        assert_eq!(ByteCursor::new(&out).blob(5, "five").unwrap(), b"12345");
        assert!(
            ByteCursor::new(&out)
                .blob(4, "four")
                .unwrap_err()
                .found
                .contains("length of 5")
        );
        let error = ByteCursor::new(&out[..3]).blob(5, "five").unwrap_err();
        assert_eq!((error.at, error.expected), (1, "five"));
    }
}
