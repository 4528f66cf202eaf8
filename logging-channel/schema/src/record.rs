//! Any serde type to bytes and back: machine state, configuration, the small messages.
//!
//! bincode's standard configuration: little endian, variable-length integers, enum variants by index, no field names.
//! The bytes say nothing about their type, so a record must be kept with a version beside it.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::DecoderImpl;
use bincode::de::read::Reader;
use bincode::error::DecodeError;
use bincode::serde::Compat;
use bincode::{Decode, de::Decoder};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// bincode takes its limit at compile time and counts what values occupy in memory; [`from_bytes`] claims all but
/// [`CLAIM_PER_BYTE`] bytes of memory per input byte of it beforehand, which leaves a limit known only at run time.
const CLAIM_CEILING: usize = usize::MAX / 2;

/// The most memory one encoded byte can honestly stand for: a u128 whose value is below 251.
const CLAIM_PER_BYTE: usize = 16;

/// Why a value could not be turned into bytes or back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The value refused to be serialised.
    #[error("cannot encode a {type_name}: {what}")]
    Encode { type_name: &'static str, what: String },
    /// More bytes than the caller allows.
    #[error("a {type_name} of {len} bytes is longer than the {limit} allowed here")]
    TooLong {
        type_name: &'static str,
        len: usize,
        limit: usize,
    },
    /// The bytes are no such value.
    #[error("expected a {type_name}, found bytes that do not decode at offset {offset} of {len}: {what}")]
    Decode {
        type_name: &'static str,
        offset: usize,
        len: usize,
        what: String,
    },
    /// A whole value, and then more.
    #[error("expected a {type_name} of {used} bytes, found {trailing} more after it")]
    Trailing {
        type_name: &'static str,
        used: usize,
        trailing: usize,
    },
}

/// Encodes `value`.
///
/// # Errors
/// Only if the type itself refuses (a sequence of unknown length, for example).
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    append(value, &mut out)?;
    Ok(out)
}

/// Encodes `value` behind what `out` already holds.
pub fn append<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match bincode::serde::encode_into_std_write(value, out, bincode::config::standard()) {
        Ok(_) => Ok(()),
        Err(error) => Err(CodecError::Encode {
            type_name: std::any::type_name::<T>(),
            what: error.to_string(),
        }),
    }
}

/// Decodes a `T` that fills `bytes` exactly.
///
/// A length inside the bytes cannot make this allocate more than 16 bytes per input byte plus 1 MiB per level of
/// nesting (serde's own caution). `T` must hold no sequence of elements that encode to nothing (`Vec<()>`): those have
/// no cost on the wire and so no bound.
///
/// # Errors
/// Longer than `limit` bytes, not a `T`, or trailing bytes.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    let type_name = std::any::type_name::<T>();
    let len = bytes.len();
    if len > limit {
        return Err(CodecError::TooLong { type_name, len, limit });
    }
    let allowed = len.saturating_mul(CLAIM_PER_BYTE).min(CLAIM_CEILING);
    let mut reader = Tracked { rest: bytes };
    let config: Configuration<LittleEndian, Varint, Limit<CLAIM_CEILING>> = bincode::config::standard().with_limit();
    let mut decoder = DecoderImpl::new(&mut reader, config, ());
    let decoded = decoder
        .claim_bytes_read(CLAIM_CEILING - allowed)
        .and_then(|()| Compat::<T>::decode(&mut decoder));
    let trailing = reader.rest.len();
    let offset = len - trailing;
    match decoded {
        Ok(_) if trailing > 0 => Err(CodecError::Trailing {
            type_name,
            used: offset,
            trailing,
        }),
        Ok(Compat(value)) => Ok(value),
        Err(error) => Err(CodecError::Decode {
            type_name,
            offset,
            len,
            what: describe(&error),
        }),
    }
}

/// bincode's errors in words, where they have a field worth showing.
fn describe(error: &DecodeError) -> String {
    match error {
        DecodeError::UnexpectedEnd { additional } => format!("it ends {additional} bytes too early"),
        DecodeError::LimitExceeded => "it claims to be longer than all the bytes there are".to_owned(),
        DecodeError::OtherString(what) => what.clone(),
        other => other.to_string(),
    }
}

/// A slice reader that still knows, after an error, how far it came.
struct Tracked<'a> {
    rest: &'a [u8],
}

impl Reader for Tracked<'_> {
    #[inline]
    fn read(&mut self, into: &mut [u8]) -> Result<(), DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(into.len()) else {
            return Err(DecodeError::UnexpectedEnd {
                additional: into.len() - self.rest.len(),
            });
        };
        into.copy_from_slice(taken);
        self.rest = rest;
        Ok(())
    }

    #[inline]
    fn peek_read(&mut self, n: usize) -> Option<&[u8]> {
        self.rest.get(..n)
    }

    #[inline]
    fn consume(&mut self, n: usize) {
        self.rest = self.rest.get(n..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{DiskStatus, Input};
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Nested {
        name: String,
        numbers: Vec<u128>,
        inner: Vec<Vec<u64>>,
        maybe: Option<Box<Nested>>,
    }

    fn nested() -> Nested {
        Nested {
            name: "pic".into(),
            numbers: vec![0; 100],
            inner: vec![vec![1; 50]; 20],
            maybe: Some(Box::new(Nested {
                name: String::new(),
                numbers: vec![],
                inner: vec![],
                maybe: None,
            })),
        }
    }

    #[test]
    fn round_trip_even_where_one_byte_stands_for_sixteen() {
        let value = nested();
        let bytes = to_bytes(&value).unwrap();
        assert_eq!(from_bytes::<Nested>(&bytes, bytes.len()).unwrap(), value);
    }

    #[test]
    fn limit_holds_on_both_sides() {
        let bytes = to_bytes(&nested()).unwrap();
        assert!(from_bytes::<Nested>(&bytes, bytes.len()).is_ok());
        let error = from_bytes::<Nested>(&bytes, bytes.len() - 1).unwrap_err();
        assert!(
            matches!(error, CodecError::TooLong { limit, .. } if limit == bytes.len() - 1),
            "{error}"
        );
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = to_bytes(&7u64).unwrap();
        bytes.push(0);
        let error = from_bytes::<u64>(&bytes, 100).unwrap_err();
        assert!(
            matches!(
                error,
                CodecError::Trailing {
                    used: 1,
                    trailing: 1,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn hostile_lengths_do_not_allocate() {
        // Lengths of 2^62 and of 1 GiB, in front of one byte: an allocation of the first would abort, of the second
        // hurt.
        for len in [1u64 << 62, 1 << 30, u64::MAX] {
            let mut bytes = to_bytes(&len).unwrap();
            bytes.push(b'x');
            assert!(matches!(
                from_bytes::<String>(&bytes, 1 << 40),
                Err(CodecError::Decode { .. })
            ));
            assert!(matches!(
                from_bytes::<Vec<u8>>(&bytes, 1 << 40),
                Err(CodecError::Decode { .. })
            ));
            assert!(matches!(
                from_bytes::<Vec<Vec<u64>>>(&bytes, 1 << 40),
                Err(CodecError::Decode { .. })
            ));
            assert!(matches!(
                from_bytes::<Vec<String>>(&bytes, 1 << 40),
                Err(CodecError::Decode { .. })
            ));
        }
    }

    #[test]
    fn errors_say_what_and_where() {
        let bytes = to_bytes(&(1u8, DiskStatus::IoError)).unwrap();
        let cut = from_bytes::<(u8, DiskStatus)>(&bytes[..1], 10).unwrap_err().to_string();
        assert!(
            cut.contains("DiskStatus") && cut.contains("offset 1 of 1") && cut.contains("1 bytes too early"),
            "{cut}"
        );
        let wrong = from_bytes::<(u8, DiskStatus)>(&[1, 9], 10).unwrap_err().to_string();
        assert!(wrong.contains("offset 2") && wrong.contains('9'), "{wrong}");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = from_bytes::<Input>(&bytes, 1 << 20);
            let _ = from_bytes::<Nested>(&bytes, 1 << 20);
        }
    }
}
