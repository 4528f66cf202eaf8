//! RESP2 (the Redis serialization protocol) as key-value clients need it: commands out, replies in, piece by piece. Pure.
//!
//! Encoding and decoding are the crate redis-protocol's. What it leaves to its callers is here: a bound on what a server
//! may make a client hold, and a look at the end of bulk strings.

use redis_protocol::error::RedisProtocolError;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode_borrowed;
use redis_protocol::resp2::types::BorrowedFrame;
/// A server's answer.
pub use redis_protocol::resp2::types::OwnedFrame as Reply;

/// Longest reply in bytes, framing included: a client's own values, numbers and error lines are far shorter.
pub const MAX_REPLY: usize = 1024;

/// What is wrong with an answer. The connection is of no use afterwards: nobody knows where the next answer begins.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    #[error("a reply is not RESP: {0}")]
    Malformed(#[from] RedisProtocolError),
    #[error("a reply is longer than {MAX_REPLY} bytes")]
    Long,
    #[error("a reply does not end with CR LF where its length says")]
    End,
}

/// Appends a command, an array of bulk strings, to `out`.
pub fn write_command(out: &mut Vec<u8>, words: &[&str]) {
    let words: Vec<_> = words
        .iter()
        .map(|word| BorrowedFrame::BulkString(word.as_bytes()))
        .collect();
    let command = BorrowedFrame::Array(&words);
    let start = out.len();
    out.resize(start + command.encode_len(false), 0);
    encode_borrowed(&mut out[start..], &command, false).expect("the room is what it asked for");
}

/// Takes the first reply of `bytes` and says how many bytes it was. `None` while it is not complete.
///
/// # Errors
/// See [`RespError`].
pub fn read_reply(bytes: &[u8]) -> Result<Option<(Reply, usize)>, RespError> {
    // Nothing beyond the bound is even looked at, so that what the decoder does is bounded as well.
    let bytes = &bytes[..bytes.len().min(MAX_REPLY)];
    match decode(bytes)? {
        Some((reply, used)) if bytes[..used].ends_with(b"\r\n") => Ok(Some((reply, used))),
        Some(_) => Err(RespError::End),
        None if bytes.len() == MAX_REPLY => Err(RespError::Long),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = b"before".to_vec();
        write_command(&mut out, &["SET", "key:1", ""]);
        assert_eq!(out, b"before*3\r\n$3\r\nSET\r\n$5\r\nkey:1\r\n$0\r\n\r\n");
    }

    #[test]
    fn replies_are_read_only_when_complete() {
        let replies: [(&[u8], Reply); 7] = [
            (b"+OK\r\n", Reply::SimpleString(b"OK".to_vec())),
            (b"-ERR no\r\n", Reply::Error("ERR no".into())),
            (b":-42\r\n", Reply::Integer(-42)),
            (b"$5\r\nhello\r\n", Reply::BulkString(b"hello".to_vec())),
            (b"$2\r\n\r\n\r\n", Reply::BulkString(b"\r\n".to_vec())),
            (b"$0\r\n\r\n", Reply::BulkString(Vec::new())),
            (b"$-1\r\n", Reply::Null),
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
        for bytes in [&b"HTTP/1.1"[..], b":x\r\n", b"$-2\r\n", b"$x\r\n", b"-\xff\r\n"] {
            let read = read_reply(bytes);
            assert!(
                matches!(read, Err(RespError::Malformed(_))),
                "{}: {read:?}",
                bytes.escape_ascii()
            );
        }
        assert_eq!(read_reply(b"$2\r\nabcd"), Err(RespError::End));
    }

    #[test]
    fn replies_are_bounded() {
        let line = |len| [&b"+"[..], &vec![b'x'; len], b"\r\n"].concat();
        let fits = line(MAX_REPLY - 3);
        assert!(matches!(read_reply(&fits), Ok(Some((_, MAX_REPLY)))));
        assert_eq!(read_reply(&fits[..MAX_REPLY - 1]), Ok(None));
        assert_eq!(read_reply(&line(MAX_REPLY - 2)), Err(RespError::Long));
        let bulk = [&b"$99999999\r\n"[..], &[b'x'; MAX_REPLY]].concat();
        assert_eq!(read_reply(&bulk), Err(RespError::Long));
        let nested = b"*1\r\n".repeat(100_000);
        assert_eq!(read_reply(&nested), Err(RespError::Long));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_reply(&bytes);
            let _ = read_reply(&[&b"$"[..], &bytes].concat());
        }
    }
}
