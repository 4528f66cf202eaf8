//! Replies of RESP2.

use alloc::vec::Vec;
use core::fmt::{self, Write};

/// Appends replies to a connection's output.
#[derive(Debug)]
pub struct Reply<'a> {
    output: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
}

impl<'a> Reply<'a> {
    /// Replies to one request, at most `limit` bytes of bulk strings for those that [`Reply::is_too_long`] is asked about.
    pub fn new(output: &'a mut Vec<u8>, limit: usize) -> Self {
        let start = output.len();
        Self { output, start, limit }
    }

    /// Whether the reply has outgrown its limit, so that it should be given up for an error.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        self.output.len() - self.start > self.limit
    }

    /// Takes back everything written so far.
    pub fn clear(&mut self) {
        self.output.truncate(self.start);
    }

    /// `+text`.
    pub fn simple(&mut self, text: &str) {
        self.line('+', format_args!("{text}"));
    }

    /// `+OK`.
    pub fn ok(&mut self) {
        self.output.extend_from_slice(b"+OK\r\n");
    }

    /// `-text`; control characters in it become spaces, so that it stays one line.
    pub fn error(&mut self, text: impl fmt::Display) {
        let from = self.output.len();
        self.line('-', format_args!("{text}"));
        let end = self.output.len() - 2;
        for byte in &mut self.output[from..end] {
            if byte.is_ascii_control() {
                *byte = b' ';
            }
        }
    }

    /// `:value`.
    pub fn integer(&mut self, value: i64) {
        self.number(b':', value);
    }

    /// A count as an integer.
    pub fn count(&mut self, count: usize) {
        self.size(b':', count);
    }

    /// A bulk string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.size(b'$', bytes.len());
        self.output.extend_from_slice(bytes);
        self.output.extend_from_slice(b"\r\n");
    }

    /// The null bulk string.
    pub fn null(&mut self) {
        self.output.extend_from_slice(b"$-1\r\n");
    }

    /// A bulk string or null.
    pub fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.null(),
        }
    }

    /// The beginning of an array of `len` replies.
    pub fn array(&mut self, len: usize) {
        self.size(b'*', len);
    }

    fn size(&mut self, kind: u8, size: usize) {
        self.number(kind, i64::try_from(size).unwrap_or(i64::MAX));
    }

    fn number(&mut self, kind: u8, value: i64) {
        self.output.push(kind);
        self.output.extend_from_slice(Decimal::new(value).as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }

    fn line(&mut self, kind: char, text: fmt::Arguments<'_>) {
        // Writing to a `Text` cannot fail.
        let _ = write!(Text(self.output), "{kind}{text}\r\n");
    }
}

/// Formats into bytes.
#[derive(Debug)]
pub struct Text<'a>(pub &'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// A number as decimal text, without an allocation.
#[derive(Debug)]
pub struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    /// The text of a number.
    #[must_use]
    pub fn new(value: i64) -> Self {
        let mut decimal = Self {
            digits: [0; 20],
            start: 20,
        };
        let mut left = value.unsigned_abs();
        loop {
            decimal.push_front(b'0' + (left % 10).to_le_bytes()[0]);
            left /= 10;
            if left == 0 {
                break;
            }
        }
        if value < 0 {
            decimal.push_front(b'-');
        }
        decimal
    }

    fn push_front(&mut self, byte: u8) {
        self.start -= 1;
        self.digits[self.start] = byte;
    }

    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_resp() {
        let mut output = b"before".to_vec();
        let mut reply = Reply::new(&mut output, 100);
        reply.array(7);
        reply.ok();
        reply.simple("PONG");
        reply.error("ERR a\r\nb\x07");
        reply.integer(-5);
        reply.bulk(b"a\r\n");
        reply.optional(None);
        assert_eq!(
            output.escape_ascii().to_string(),
            "before*7\\r\\n+OK\\r\\n+PONG\\r\\n-ERR a  b \\r\\n:-5\\r\\n$3\\r\\na\\r\\n\\r\\n$-1\\r\\n"
        );
    }

    #[test]
    fn clear_takes_back_this_reply_only() {
        let mut output = b"before".to_vec();
        let mut reply = Reply::new(&mut output, 8);
        reply.bulk(b"12");
        assert!(!reply.is_too_long());
        reply.bulk(b"");
        assert!(reply.is_too_long());
        reply.clear();
        assert_eq!(output, b"before");
    }

    #[test]
    fn decimals_reach_the_ends_of_their_range() {
        for value in [0, 9, 10, -1, i64::MAX, i64::MIN] {
            assert_eq!(Decimal::new(value).as_bytes(), value.to_string().as_bytes());
        }
    }
}
