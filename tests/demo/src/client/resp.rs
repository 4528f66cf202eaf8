//! The little of RESP (the Redis serialization protocol, version 2) that a key-value client needs. Pure.

/// Longest line of a reply, its end not counted: simple strings, errors, numbers.
const MAX_LINE: usize = 1024;

/// Longest bulk string: the client's own values are far shorter.
const MAX_BULK: usize = 64 * 1024;

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// `+OK`
    Simple(Vec<u8>),
    /// `-ERR ...`
    Error(Vec<u8>),
    /// `:1`
    Integer(i64),
    /// `$5` and five bytes; `$-1`, nothing there.
    Bulk(Option<Vec<u8>>),
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    #[error("a reply begins with byte {0:#04x}; expected one of + - : $")]
    Kind(u8),
    #[error("a reply's line is longer than {MAX_LINE} bytes")]
    LongLine,
    #[error("{0:?} is no length or number")]
    Number(String),
    #[error("a reply of {0} bytes; at most {MAX_BULK} were expected")]
    LongBulk(usize),
    #[error("a bulk reply does not end with CR LF where its length says")]
    End,
}

/// Appends a command: an array of bulk strings.
pub(super) fn write_command(out: &mut Vec<u8>, words: &[&str]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

/// Takes the first reply of `bytes` and says how many bytes it was. `None` while it is not complete.
pub(super) fn read_reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, RespError> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    if !b"+-:$".contains(&kind) {
        return Err(RespError::Kind(kind));
    }
    let Some(line) = first_line(&bytes[1..])? else {
        return Ok(None);
    };
    let used = 1 + line.len() + 2;
    let reply = match kind {
        b'+' => Reply::Simple(line.to_vec()),
        b'-' => Reply::Error(line.to_vec()),
        b':' => Reply::Integer(number(line)?),
        _ => return read_bulk(number(line)?, &bytes[used..], used),
    };
    Ok(Some((reply, used)))
}

fn read_bulk(len: i64, rest: &[u8], used: usize) -> Result<Option<(Reply, usize)>, RespError> {
    if len == -1 {
        return Ok(Some((Reply::Bulk(None), used)));
    }
    let len = usize::try_from(len).map_err(|_| RespError::Number(len.to_string()))?;
    if len > MAX_BULK {
        return Err(RespError::LongBulk(len));
    }
    let Some(body) = rest.get(..len + 2) else {
        return Ok(None);
    };
    match body.strip_suffix(b"\r\n") {
        Some(bytes) => Ok(Some((Reply::Bulk(Some(bytes.to_vec())), used + len + 2))),
        None => Err(RespError::End),
    }
}

/// The bytes before the first CR LF.
fn first_line(bytes: &[u8]) -> Result<Option<&[u8]>, RespError> {
    let end = bytes.windows(2).take(MAX_LINE + 1).position(|pair| pair == b"\r\n");
    match end {
        Some(end) => Ok(Some(&bytes[..end])),
        None if bytes.len() > MAX_LINE + 1 => Err(RespError::LongLine),
        None => Ok(None),
    }
}

fn number(line: &[u8]) -> Result<i64, RespError> {
    let text = std::str::from_utf8(line).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| RespError::Number(String::from_utf8_lossy(line).into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        write_command(&mut out, &["SET", "key:1", ""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$5\r\nkey:1\r\n$0\r\n\r\n");
    }

    #[test]
    fn replies_are_read_only_when_complete() {
        let replies: [(&[u8], Reply); 7] = [
            (b"+OK\r\n", Reply::Simple(b"OK".to_vec())),
            (b"-ERR no\r\n", Reply::Error(b"ERR no".to_vec())),
            (b":-42\r\n", Reply::Integer(-42)),
            (b"$5\r\nhello\r\n", Reply::Bulk(Some(b"hello".to_vec()))),
            (b"$2\r\n\r\n\r\n", Reply::Bulk(Some(b"\r\n".to_vec()))),
            (b"$0\r\n\r\n", Reply::Bulk(Some(Vec::new()))),
            (b"$-1\r\n", Reply::Bulk(None)),
        ];
        for (bytes, reply) in replies {
            for cut in 0..bytes.len() {
                assert_eq!(read_reply(&bytes[..cut]), Ok(None), "{:?}", &bytes[..cut]);
            }
            let with_more = [bytes, b"+next"].concat();
            assert_eq!(read_reply(&with_more), Ok(Some((reply, bytes.len()))));
        }
    }

    #[test]
    fn broken_replies_are_named() {
        assert_eq!(read_reply(b"HTTP/1.1"), Err(RespError::Kind(b'H')));
        assert_eq!(read_reply(b":x\r\n"), Err(RespError::Number("x".into())));
        assert_eq!(read_reply(b"$-2\r\n"), Err(RespError::Number("-2".into())));
        assert_eq!(read_reply(b"$99999999\r\n"), Err(RespError::LongBulk(99_999_999)));
        assert_eq!(read_reply(b"$2\r\nabcd"), Err(RespError::End));
    }

    #[test]
    fn lines_are_bounded() {
        let fits = [&b"+"[..], &[b'x'; MAX_LINE], b"\r\n"].concat();
        assert!(matches!(read_reply(&fits), Ok(Some(_))));
        assert_eq!(read_reply(&fits[..=MAX_LINE]), Ok(None));
        let too_long = [&b"+"[..], &[b'x'; MAX_LINE + 1], b"\r\n"].concat();
        assert_eq!(read_reply(&too_long), Err(RespError::LongLine));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_reply(&bytes);
            let _ = read_reply(&[&b"$"[..], &bytes].concat());
        }
    }
}
