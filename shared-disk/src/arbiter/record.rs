//! What a value of the register says: who owns a generation, in a few lines of text.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::{DateTime, date};
use thiserror::Error;

use crate::textfile::{self, Fields, FormatError, decimal, incarnation};

/// The longest record accepted, in bytes. A written one has at most 300.
pub(super) const RECORD_BYTES: usize = 1024;

/// First line of every record; the number changes with the format.
const FIRST_LINE: &str = "ftvm-generation 1";

/// Whether the life that a generation began is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeState {
    /// The owner lives, or has died without a clean end.
    Running,
    /// The owner ended cleanly: the next start may follow (PROTOCOL 18).
    Ended,
}

/// Who owns a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRecord {
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

/// Why a record was not understood; ends a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum RecordError {
    /// It is no record.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file's name says otherwise.
    #[error("it says generation {found}, but its name says {expected}")]
    Misnamed {
        /// By the name.
        expected: u64,
        /// By the content.
        found: u64,
    },
}

impl GenerationRecord {
    /// The record as text.
    pub(super) fn encode(&self) -> String {
        let GenerationRecord {
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
            "{FIRST_LINE}\ngeneration {generation}\nowner {owner:032x}\nstate {state}\nhost {host}\npid {pid}\ntime {time} {utc}\n"
        )
    }

    /// Reads a record that stands in a place for generation `expected`.
    ///
    /// # Errors
    /// [`RecordError::Misnamed`] if it is of another generation; else as [`GenerationRecord::parse_any`].
    pub(super) fn parse(expected: u64, bytes: &[u8]) -> Result<GenerationRecord, RecordError> {
        let record = GenerationRecord::parse_any(bytes)?;
        if record.generation == expected {
            return Ok(record);
        }
        let found = record.generation;
        Err(RecordError::Misnamed { expected, found })
    }

    /// Reads a record of any generation.
    ///
    /// # Errors
    /// [`FormatError`] names the first line that is not as [`GenerationRecord::encode`] writes it.
    pub(super) fn parse_any(bytes: &[u8]) -> Result<GenerationRecord, FormatError> {
        let mut fields = Fields::open(bytes, RECORD_BYTES, FIRST_LINE)?;
        let state = |text| match text {
            "running" => Some(LifeState::Running),
            "ended" => Some(LifeState::Ended),
            _ => None,
        };
        let record = GenerationRecord {
            generation: fields.next("generation", decimal)?,
            owner: fields.next("owner", incarnation)?,
            state: fields.next("state", state)?,
            host: fields.next("host", textfile::host)?,
            pid: fields.next("pid", |text| u32::try_from(decimal(text)?).ok())?,
            // The date behind the number is for people.
            time: fields.next("time", |text| decimal(text.split_once(' ')?.0))?,
        };
        fields.end().map(|()| record)
    }
}

/// For `tests/fuzz`: what is read is written again in the same way, and can be shown.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    let _ = GenerationRecord::parse(1, bytes);
    if let Ok(record) = GenerationRecord::parse_any(bytes) {
        assert_eq!(
            GenerationRecord::parse_any(record.encode().as_bytes()).as_ref(),
            Ok(&record)
        );
        let _ = record.to_string();
    }
}

impl fmt::Display for GenerationRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GenerationRecord {
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

/// Seconds since 1970, shown as a date and time in UTC.
struct Utc(u64);

impl Utc {
    /// `None` beyond the year 9999: such a number is no date but an accident.
    fn date(&self) -> Option<DateTime> {
        let since = SignedDuration::from_secs(i64::try_from(self.0).ok()?);
        date(1970, 1, 1).at(0, 0, 0, 0).checked_add(since).ok()
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.date() {
            Some(date) => write!(f, "{date}Z"),
            None => write!(f, "second {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> GenerationRecord {
        GenerationRecord {
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
        assert_eq!(GenerationRecord::parse(3, text.as_bytes()), Ok(record()));
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
        let broken = |from: &str, to: &str| GenerationRecord::parse(3, good.replacen(from, to, 1).as_bytes());
        let format = |error| Err(RecordError::Format(error));
        let field = |name| format(FormatError::Field(name));
        let first_line = format(FormatError::FirstLine { expected: FIRST_LINE });
        assert_eq!(broken("ftvm-generation 1", "ftvm-generation 2"), first_line);
        assert_eq!(broken("generation 3", "generation 03"), field("generation"));
        assert_eq!(
            broken("generation 3", "generation 4"),
            Err(RecordError::Misnamed { expected: 3, found: 4 })
        );
        assert_eq!(broken("abc", "abcd"), field("owner"));
        assert_eq!(broken("abc", "000"), field("owner"));
        assert_eq!(broken("owner 0", "owner +"), field("owner"));
        assert_eq!(broken("running", "Running"), field("state"));
        assert_eq!(broken("alpha", "al\x1b[2Jpha"), field("host"));
        assert_eq!(broken("alpha", &"a".repeat(65)), field("host"));
        assert!(broken("alpha", &"a".repeat(64)).is_ok());
        assert_eq!(broken("pid 7", "pid 4294967296"), field("pid"));
        assert_eq!(broken("time 1795435200 ", "time 1795435200"), field("time"));
        let parse = |bytes: &[u8]| GenerationRecord::parse(3, bytes);
        assert_eq!(parse(format!("{good}x\n").as_bytes()), format(FormatError::Trailing));
        assert_eq!(parse(b"\xff"), format(FormatError::NotText));
        assert_eq!(parse(b""), first_line);
        let limit = RECORD_BYTES;
        assert_eq!(parse(&[b'x'; RECORD_BYTES + 1]), format(FormatError::TooLong { limit }));
        assert_eq!(parse(&[b'x'; RECORD_BYTES]), first_line);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1100), cut in 0usize..200) {
            let _ = GenerationRecord::parse(3, &bytes);
            let mut text = record().encode().into_bytes();
            text.truncate(cut);
            text.append(&mut bytes);
            let _ = GenerationRecord::parse(3, &text);
        }

        #[test]
        fn written_records_are_short_and_read_back(
            generation in 1u64.., owner in 1u128.., pid: u32, time: u64, host in "[a-z.]{1,64}",
        ) {
            let record = GenerationRecord { generation, owner, state: LifeState::Ended, host, pid, time };
            let text = record.encode();
            prop_assert!(text.len() <= 300);
            prop_assert_eq!(GenerationRecord::parse(generation, text.as_bytes()), Ok(record));
        }
    }
}
