//! What a generation's file says: a few lines of text that a person can read with `cat`.
//!
//! The file lies on storage that others can write to, so [`Record::parse`] takes nothing on trust: the length is
//! bounded by the reader ([`RECORD_BYTES`]), every line must be known, and what is echoed in messages is limited to
//! printable characters that mean nothing to a terminal.

use std::fmt;

use thiserror::Error;

/// The longest record accepted. A written one has at most 300 bytes.
pub(super) const RECORD_BYTES: usize = 1024;

/// First line of every record; the number changes with the format.
const MAGIC: &str = "ftvm-generation 1";

/// The longest host name kept (`HOST_NAME_MAX` of Linux).
const HOST_BYTES: usize = 64;

/// Whether the life that a generation began is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeState {
    /// The owner lives, or died without a word.
    Running,
    /// The owner ended cleanly: the next start may follow (PROTOCOL 18).
    Ended,
}

/// Who owns a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The generation, from 1.
    pub generation: u64,
    /// The owner's incarnation, never 0.
    pub owner: u128,
    /// Whether its life is over.
    pub state: LifeState,
    /// The owner's host name: letters, digits, `.`, `-` and `_`. For people only.
    pub host: String,
    /// The owner's process. For people only.
    pub pid: u32,
    /// When it was written, by its writer's clock, in seconds since 1970 UTC. For people only.
    pub time: u64,
}

/// Why a generation's file was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Longer than any record.
    #[error("it is longer than {RECORD_BYTES} bytes")]
    TooLong,
    /// Not text.
    #[error("it is not plain text")]
    NotText,
    /// Another first line.
    #[error("its first line is not '{MAGIC}': it is no generation file, or one of another version of ftvm")]
    Magic,
    /// A line that is missing, repeated or malformed.
    #[error("its '{0}' line is missing or malformed")]
    Field(&'static str),
    /// Something after the last line.
    #[error("it has more lines than it should")]
    Trailing,
    /// The file's name says otherwise.
    #[error("it says generation {found}, but its name says {expected}")]
    Misnamed {
        /// By the name.
        expected: u64,
        /// By the content.
        found: u64,
    },
}

impl Record {
    /// The file's content.
    pub(super) fn encode(&self) -> String {
        let Record {
            generation,
            owner,
            state,
            host,
            pid,
            time,
        } = self;
        let state = match state {
            LifeState::Running => "running",
            LifeState::Ended => "ended",
        };
        let utc = Utc(*time);
        format!(
            "{MAGIC}\ngeneration {generation}\nowner {owner:032x}\nstate {state}\nhost {host}\npid {pid}\ntime {time} {utc}\n"
        )
    }

    /// Reads the content of `gen-<expected>`.
    ///
    /// # Errors
    /// [`RecordError`] names the first line that is not as [`Record::encode`] writes it.
    pub(super) fn parse(expected: u64, bytes: &[u8]) -> Result<Record, RecordError> {
        let record = Record::parse_any(bytes)?;
        if record.generation == expected {
            return Ok(record);
        }
        let found = record.generation;
        Err(RecordError::Misnamed { expected, found })
    }

    /// Reads a record that stands in a place with no number of its own.
    ///
    /// # Errors
    /// As [`Record::parse`].
    pub(super) fn parse_any(bytes: &[u8]) -> Result<Record, RecordError> {
        if bytes.len() > RECORD_BYTES {
            return Err(RecordError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| RecordError::NotText)?;
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Err(RecordError::Magic);
        }
        let mut field = |name: &'static str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(' '))
                .ok_or(RecordError::Field(name))
        };
        let generation = decimal(field("generation")?).ok_or(RecordError::Field("generation"))?;
        let owner = hex_id(field("owner")?).ok_or(RecordError::Field("owner"))?;
        let state = match field("state")? {
            "running" => LifeState::Running,
            "ended" => LifeState::Ended,
            _ => return Err(RecordError::Field("state")),
        };
        let host = Some(field("host")?)
            .filter(|host| is_host(host))
            .ok_or(RecordError::Field("host"))?;
        let pid = decimal(field("pid")?)
            .and_then(|pid| u32::try_from(pid).ok())
            .ok_or(RecordError::Field("pid"))?;
        let (seconds, _) = field("time")?.split_once(' ').ok_or(RecordError::Field("time"))?;
        let time = decimal(seconds).ok_or(RecordError::Field("time"))?;
        if lines.next().is_some() {
            return Err(RecordError::Trailing);
        }
        Ok(Record {
            generation,
            owner,
            state,
            host: host.to_owned(),
            pid,
            time,
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            generation,
            owner,
            host,
            pid,
            time,
            ..
        } = self;
        write!(
            f,
            "incarnation {owner:032x} (host {host}, process {pid}, generation {generation}, since {})",
            Utc(*time)
        )
    }
}

/// The number written without sign, blanks or leading zeros: one spelling for each, since it also names files.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    (canonical && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// An incarnation: exactly 32 hexadecimal digits, not all 0.
pub(crate) fn hex_id(text: &str) -> Option<u128> {
    let well_formed = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = well_formed.then(|| u128::from_str_radix(text, 16).ok())??;
    (id != 0).then_some(id)
}

pub(crate) fn is_host(text: &str) -> bool {
    (1..=HOST_BYTES).contains(&text.len()) && text.bytes().all(is_host_byte)
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// `name` as a record may hold it; `unknown` if nothing is left.
pub(crate) fn host_name(name: &[u8]) -> String {
    let kept = name.iter().copied().filter(|byte| is_host_byte(*byte)).take(HOST_BYTES);
    let host: String = kept.map(char::from).collect();
    if host.is_empty() { "unknown".to_owned() } else { host }
}

/// Seconds since 1970, shown as a date and time in UTC.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut day, second) = (self.0 / 86_400, self.0 % 86_400);
        // Beyond the year 9999 the field is no date but an accident.
        if self.0 >= 253_402_300_800 {
            return write!(f, "second {}", self.0);
        }
        let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970;
        while day >= 365 + u64::from(is_leap(year)) {
            day -= 365 + u64::from(is_leap(year));
            year += 1;
        }
        let february = 28 + u64::from(is_leap(year));
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if day < length {
                break;
            }
            day -= length;
            month += 1;
        }
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(
            f,
            "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{:02}Z",
            day + 1,
            second % 60
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            generation: 3,
            owner: 0xabc,
            state: LifeState::Running,
            host: "alpha".into(),
            pid: 7,
            time: 1_795_435_200,
        }
    }

    #[test]
    fn a_record_reads_as_written() {
        let text = record().encode();
        assert_eq!(
            text,
            "ftvm-generation 1\ngeneration 3\nowner 00000000000000000000000000000abc\nstate running\nhost alpha\npid 7\n\
             time 1795435200 2026-11-23T12:00:00Z\n"
        );
        assert_eq!(Record::parse(3, text.as_bytes()), Ok(record()));
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (68_169_599, "1972-02-28T23:59:59Z"),
            (68_169_600, "1972-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (253_402_300_800, "second 253402300800"),
            (u64::MAX, "second 18446744073709551615"),
        ] {
            assert_eq!(Utc(seconds).to_string(), text);
        }
    }

    #[test]
    fn each_broken_line_is_named() {
        let good = record().encode();
        let broken = |from: &str, to: &str| Record::parse(3, good.replacen(from, to, 1).as_bytes());
        assert_eq!(
            broken("ftvm-generation 1", "ftvm-generation 2"),
            Err(RecordError::Magic)
        );
        assert_eq!(
            broken("generation 3", "generation 03"),
            Err(RecordError::Field("generation"))
        );
        assert_eq!(
            broken("generation 3", "generation 4"),
            Err(RecordError::Misnamed { expected: 3, found: 4 })
        );
        assert_eq!(broken("abc", "abcd"), Err(RecordError::Field("owner")));
        assert_eq!(broken("abc", "000"), Err(RecordError::Field("owner")));
        assert_eq!(broken("owner 0", "owner +"), Err(RecordError::Field("owner")));
        assert_eq!(broken("running", "Running"), Err(RecordError::Field("state")));
        assert_eq!(broken("alpha", "al\x1b[2Jpha"), Err(RecordError::Field("host")));
        assert_eq!(broken("alpha", &"a".repeat(65)), Err(RecordError::Field("host")));
        assert!(broken("alpha", &"a".repeat(64)).is_ok());
        assert_eq!(broken("pid 7", "pid 4294967296"), Err(RecordError::Field("pid")));
        assert_eq!(
            broken("time 1795435200 ", "time 1795435200"),
            Err(RecordError::Field("time"))
        );
        assert_eq!(
            Record::parse(3, format!("{good}x\n").as_bytes()),
            Err(RecordError::Trailing)
        );
        assert_eq!(Record::parse(3, b"\xff"), Err(RecordError::NotText));
        assert_eq!(Record::parse(3, b""), Err(RecordError::Magic));
        assert_eq!(Record::parse(3, &[b'x'; RECORD_BYTES + 1]), Err(RecordError::TooLong));
        assert_eq!(Record::parse(3, &[b'x'; RECORD_BYTES]), Err(RecordError::Magic));
    }

    #[test]
    fn a_host_name_is_made_safe() {
        assert_eq!(host_name(b"node-1.example"), "node-1.example");
        assert_eq!(host_name(b"a\n\x1b b"), "ab");
        assert_eq!(host_name(b"\n"), "unknown");
        assert_eq!(host_name(&[b'x'; 100]).len(), HOST_BYTES);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1100), cut in 0usize..200) {
            let _ = Record::parse(3, &bytes);
            let mut text = record().encode().into_bytes();
            text.truncate(cut);
            text.append(&mut bytes);
            let _ = Record::parse(3, &text);
        }

        #[test]
        fn written_records_are_short_and_read_back(
            generation in 1u64.., owner in 1u128.., pid: u32, time: u64, host in "[a-z.]{1,64}",
        ) {
            let record = Record { generation, owner, state: LifeState::Ended, host, pid, time };
            let text = record.encode();
            prop_assert!(text.len() <= 300);
            prop_assert_eq!(Record::parse(generation, text.as_bytes()), Ok(record));
        }
    }
}
