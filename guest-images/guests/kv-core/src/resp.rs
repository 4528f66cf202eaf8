//! Requests of RESP2: arrays of bulk strings, and inline commands.
//!
//! The parser goes on where it stopped when more bytes come, so a client that sends a request byte by byte costs no more
//! than one that sends it whole. Every length is bounded before anything is reserved for it. Errors are worded as Redis
//! words them, because clients show them to people.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Longest argument in bytes. Redis allows 512 MiB; this guest's memory is what bounds it here.
pub const MAX_BULK: usize = 512 << 10;
/// Most arguments of a request; Redis allows 1024 times as many.
pub const MAX_ARGUMENTS: usize = 16 << 10;
/// Longest request in bytes, so that many long arguments cannot fill the memory either.
pub const MAX_REQUEST: usize = 1 << 20;
/// Longest inline command or length line in bytes, as in Redis.
pub const MAX_INLINE: usize = 64 << 10;

/// Why a client's bytes are no request; the connection is closed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// No line end within [`MAX_INLINE`] bytes of an inline command.
    InlineTooLong,
    /// No line end within [`MAX_INLINE`] bytes of an array's length.
    CountLineTooLong,
    /// No line end within [`MAX_INLINE`] bytes of an argument's length.
    BulkLineTooLong,
    /// The array's length is no number or above [`MAX_ARGUMENTS`].
    Count,
    /// Something else than `$` in front of an argument.
    ExpectedBulk(u8),
    /// The argument's length is no number, negative, above [`MAX_BULK`], or takes the request above [`MAX_REQUEST`].
    BulkLength,
    /// An argument does not end with CR LF where its length says.
    BulkEnd,
    /// Quotes of an inline command are not closed, or text follows a closing quote.
    Quotes,
    /// Looks like HTTP: a web page that makes a browser talk to this port.
    Http,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProtocolError::InlineTooLong => f.write_str("too big inline request"),
            ProtocolError::CountLineTooLong => f.write_str("too big mbulk count string"),
            ProtocolError::BulkLineTooLong => f.write_str("too big bulk count string"),
            ProtocolError::Count => f.write_str("invalid multibulk length"),
            ProtocolError::ExpectedBulk(found) => write!(f, "expected '$', got '{}'", found.escape_ascii()),
            ProtocolError::BulkLength => f.write_str("invalid bulk length"),
            ProtocolError::BulkEnd => f.write_str("expected CR LF after the bulk string"),
            ProtocolError::Quotes => f.write_str("unbalanced quotes in request"),
            ProtocolError::Http => f.write_str("this is not an HTTP server"),
        }
    }
}

impl core::error::Error for ProtocolError {}

/// What the bytes so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// A request of that many bytes; [`Parser::arguments`] has its arguments, which may be none.
    Request { len: usize },
}

/// Parses one request; [`Parser::reset`] it for the next.
#[derive(Debug)]
pub struct Parser {
    max_request: usize,
    /// Bytes that are done with.
    at: usize,
    /// Bytes from `at` that hold no line end.
    scanned: usize,
    /// Arguments that are still to come; `None` in front of the first line.
    missing: Option<usize>,
    /// Length of the argument at `at`, if its length line has been read.
    bulk: Option<usize>,
    arguments: Vec<Range<usize>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::with_limit(MAX_REQUEST)
    }
}

impl Parser {
    /// A parser with another limit than [`MAX_REQUEST`].
    #[must_use]
    pub fn with_limit(max_request: usize) -> Self {
        Self {
            max_request,
            at: 0,
            scanned: 0,
            missing: None,
            bulk: None,
            arguments: Vec::new(),
        }
    }

    /// Looks at `input`, which begins where the request does and only ever grows between calls. Inline arguments are
    /// unquoted in place.
    ///
    /// # Errors
    /// The first thing that is wrong; the parser is of no use afterwards.
    pub fn parse(&mut self, input: &mut [u8]) -> Result<Parsed, ProtocolError> {
        if self.missing.is_none() {
            match input.first() {
                None => return Ok(Parsed::Incomplete),
                Some(b'*') => {}
                Some(_) => return self.parse_inline(input),
            }
            let Some(line) = self.line(input, ProtocolError::CountLineTooLong)? else {
                return Ok(Parsed::Incomplete);
            };
            let count = number(&input[1..line.end]).ok_or(ProtocolError::Count)?;
            // Redis skips arrays that are empty or null.
            let count = usize::try_from(count).unwrap_or(0);
            if count > MAX_ARGUMENTS {
                return Err(ProtocolError::Count);
            }
            self.missing = Some(count);
        }
        while let Some(missing) = self.missing.filter(|&missing| missing > 0) {
            if !self.parse_argument(input)? {
                return Ok(Parsed::Incomplete);
            }
            self.missing = Some(missing - 1);
        }
        Ok(Parsed::Request { len: self.at })
    }

    /// The arguments of the request that `parse` found in `input`.
    #[must_use]
    pub fn arguments<'a>(&'a self, input: &'a [u8]) -> Arguments<'a> {
        Arguments {
            input,
            ranges: &self.arguments,
        }
    }

    /// Forgets the request.
    pub fn reset(&mut self) {
        self.at = 0;
        self.scanned = 0;
        self.missing = None;
        self.bulk = None;
        self.arguments.clear();
    }

    /// Parses the argument at `at`; `false` if bytes are missing.
    fn parse_argument(&mut self, input: &[u8]) -> Result<bool, ProtocolError> {
        let len = match self.bulk {
            Some(len) => len,
            None => {
                match input.get(self.at) {
                    None => return Ok(false),
                    Some(b'$') => {}
                    Some(&other) => return Err(ProtocolError::ExpectedBulk(other)),
                }
                let Some(line) = self.line(input, ProtocolError::BulkLineTooLong)? else {
                    return Ok(false);
                };
                let len = number(&input[line.start + 1..line.end]).and_then(|len| usize::try_from(len).ok());
                let len = len.filter(|&len| len <= MAX_BULK).ok_or(ProtocolError::BulkLength)?;
                if self.at + len > self.max_request {
                    return Err(ProtocolError::BulkLength);
                }
                self.bulk = Some(len);
                len
            }
        };
        let end = self.at + len;
        let Some(tail) = input.get(end..end + 2) else {
            return Ok(false);
        };
        if tail != b"\r\n" {
            return Err(ProtocolError::BulkEnd);
        }
        self.arguments.push(self.at..end);
        self.at = end + 2;
        self.bulk = None;
        Ok(true)
    }

    /// The line at `at`, without its end, which may be LF alone; `None` if it is not complete.
    fn line(&mut self, input: &[u8], too_long: ProtocolError) -> Result<Option<Range<usize>>, ProtocolError> {
        let start = self.at;
        let from = start + self.scanned;
        let Some(end) = input[from..].iter().position(|&byte| byte == b'\n').map(|at| from + at) else {
            self.scanned = input.len() - start;
            return if self.scanned > MAX_INLINE {
                Err(too_long)
            } else {
                Ok(None)
            };
        };
        if end - start > MAX_INLINE {
            return Err(too_long);
        }
        self.at = end + 1;
        self.scanned = 0;
        let end = if end > start && input[end - 1] == b'\r' {
            end - 1
        } else {
            end
        };
        Ok(Some(start..end))
    }

    fn parse_inline(&mut self, input: &mut [u8]) -> Result<Parsed, ProtocolError> {
        let Some(line) = self.line(input, ProtocolError::InlineTooLong)? else {
            return Ok(Parsed::Incomplete);
        };
        let mut words = Words {
            line: &mut input[line],
            at: 0,
        };
        while let Some(word) = words.next()? {
            self.arguments.push(word);
        }
        if let Some(first) = self.arguments.first() {
            let first = &input[first.clone()];
            if first.eq_ignore_ascii_case(b"post") || first.eq_ignore_ascii_case(b"host:") {
                return Err(ProtocolError::Http);
            }
        }
        Ok(Parsed::Request { len: self.at })
    }
}

/// A decimal number as lengths are written, at most 9 digits and a sign: more is out of every bound.
fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits
        .iter()
        .fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    Some(if negative { -value } else { value })
}

/// The words of an inline command. A quoted word may hold spaces and, in double quotes, escapes; unquoting makes a word
/// no longer, so it is written over itself.
struct Words<'a> {
    line: &'a mut [u8],
    at: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn next(&mut self) -> Result<Option<Range<usize>>, ProtocolError> {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
        let start = self.at;
        let mut end = start;
        if self.peek().is_none() {
            return Ok(None);
        }
        while let Some(byte) = self.peek().filter(|byte| !byte.is_ascii_whitespace()) {
            self.at += 1;
            if byte == b'"' || byte == b'\'' {
                end = self.quoted(byte, end)?;
            } else {
                self.line[end] = byte;
                end += 1;
            }
        }
        Ok(Some(start..end))
    }

    /// Copies what is in quotes to `end`, and says where it ends there.
    fn quoted(&mut self, quote: u8, mut end: usize) -> Result<usize, ProtocolError> {
        loop {
            let byte = self.peek().ok_or(ProtocolError::Quotes)?;
            self.at += 1;
            let byte = match byte {
                byte if byte == quote => break,
                b'\\' => self.escaped(quote)?,
                byte => byte,
            };
            self.line[end] = byte;
            end += 1;
        }
        match self.peek() {
            Some(byte) if !byte.is_ascii_whitespace() => Err(ProtocolError::Quotes),
            _ => Ok(end),
        }
    }

    fn escaped(&mut self, quote: u8) -> Result<u8, ProtocolError> {
        let byte = self.peek().ok_or(ProtocolError::Quotes)?;
        if quote == b'\'' {
            // Only the quote itself can be escaped here.
            if byte == quote {
                self.at += 1;
                return Ok(quote);
            }
            return Ok(b'\\');
        }
        let digit = |at: usize| self.line.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        if byte == b'x'
            && let (Some(high), Some(low)) = (digit(self.at + 1), digit(self.at + 2))
        {
            self.at += 3;
            return Ok((high * 16 + low).to_le_bytes()[0]);
        }
        self.at += 1;
        Ok(match byte {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'a' => 7,
            other => other,
        })
    }
}

/// The arguments of a request, the command's name first.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    input: &'a [u8],
    ranges: &'a [Range<usize>],
}

impl<'a> Arguments<'a> {
    /// Arguments, the command's name included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether the request was an empty line or array.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The argument at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        self.ranges.get(index).map(|range| &self.input[range.clone()])
    }

    /// The arguments from `index` on.
    pub fn from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + use<'a> {
        let input = self.input;
        self.ranges
            .get(index..)
            .unwrap_or_default()
            .iter()
            .map(move |range| &input[range.clone()])
    }
}

#[cfg(test)]
mod tests;
