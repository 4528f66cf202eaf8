//! What is known of a host's copy of a private disk: a small file beside the image.
//!
//! With private disks each host has an image of its own, and the host on which the guest lived last has the newest. If
//! a guest that ended cleanly were started from an older copy, it would lose data without a word. So every copy has a
//! mark, which says under which generation, and by which incarnation, its content was last the guest's. The arbiter's
//! record of a clean end names the same two (PROTOCOL 10), and [`may_start`] compares them. It asks only whether they
//! are equal, never which is greater: generations begin again at 1 when a person removes a guest's directory, and
//! incarnations are random.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::arbiter::{GenerationRecord, LifeState};
use crate::textfile::{self, Fields, FormatError, decimal, incarnation, read_bounded, this_host, unix_seconds};

/// The longest mark accepted, in bytes. A written one has at most 300.
const MARK_BYTES: usize = 1024;

/// First line of every mark; the number changes with the format.
const FIRST_LINE: &str = "ftvm-mark 1";

/// What a copy of a private disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// What the live guest has written, or had written when it ended.
    Current,
    /// What a backup has executed so far: whole, but the guest may have written more since.
    Following,
    /// A mixture of old and new: a backup was joining, and not all blocks had come.
    Incomplete,
}

/// What is known of a host's copy of a private disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskMark {
    /// What the copy holds.
    pub held: CopyState,
    /// The generation under which it came to hold that.
    pub generation: u64,
    /// The incarnation that owned that generation, never 0.
    pub owner: u128,
    /// Where it was written. For people only.
    pub host: String,
    /// When, in seconds since 1970 UTC. For people only.
    pub time: u64,
}

/// Why a mark cannot be read or written.
#[derive(Debug, Error)]
pub enum MarkError {
    /// The file system refuses.
    #[error("cannot {action} {}, which says how new the private disk beside it is: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The mark.
        path: PathBuf,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// The file is no mark.
    #[error("{} was not written by this version of ftvm: {cause}", path.display())]
    Malformed {
        /// The mark.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: FormatError,
    },
}

impl DiskMark {
    /// A mark of this host and moment.
    #[must_use]
    pub fn now(held: CopyState, generation: u64, owner: u128) -> Self {
        DiskMark {
            held,
            generation,
            owner,
            host: this_host(),
            time: unix_seconds(),
        }
    }

    /// Reads the mark at `path`; `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read or is no mark.
    pub fn load(path: &Path) -> Result<Option<DiskMark>, MarkError> {
        match read_bounded(path, MARK_BYTES + 1) {
            Ok(bytes) => DiskMark::parse(&bytes).map(Some).map_err(|cause| MarkError::Malformed {
                path: path.to_owned(),
                cause,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(io_error("read", path, cause)),
        }
    }

    /// Replaces the mark at `path`; whole and stable when it returns.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn store(&self, path: &Path) -> Result<(), MarkError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let temporary = PathBuf::from(name);
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(self.encode().as_bytes())?;
            file.sync_all()
        });
        written.map_err(|cause| io_error("write", &temporary, cause))?;
        fs::rename(&temporary, path).map_err(|cause| io_error("replace", path, cause))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|cause| io_error("fsync the directory of", path, cause))
    }

    fn encode(&self) -> String {
        let DiskMark {
            held,
            generation,
            owner,
            host,
            time,
        } = self;
        let held = match held {
            CopyState::Current => "current",
            CopyState::Following => "following",
            CopyState::Incomplete => "incomplete",
        };
        format!("{FIRST_LINE}\nheld {held}\ngeneration {generation}\nowner {owner:032x}\nhost {host}\ntime {time}\n")
    }

    fn parse(bytes: &[u8]) -> Result<DiskMark, FormatError> {
        let mut fields = Fields::open(bytes, MARK_BYTES, FIRST_LINE)?;
        let held = |text| match text {
            "current" => Some(CopyState::Current),
            "following" => Some(CopyState::Following),
            "incomplete" => Some(CopyState::Incomplete),
            _ => None,
        };
        let mark = DiskMark {
            held: fields.next("held", held)?,
            generation: fields.next("generation", decimal)?,
            owner: fields.next("owner", incarnation)?,
            host: fields.next("host", textfile::host)?,
            time: fields.next("time", decimal)?,
        };
        fields.end().map(|()| mark)
    }
}

/// For `tests/fuzz`: what is read is written again in the same way, and can be shown.
#[cfg(feature = "fuzzing")]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(mark) = DiskMark::parse(bytes) {
        assert_eq!(DiskMark::parse(mark.encode().as_bytes()).as_ref(), Ok(&mark));
        let _ = (mark.to_string(), may_start(Some(&mark), None).is_ok());
    }
}

impl fmt::Display for DiskMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskMark { generation, host, .. } = self;
        match self.held {
            CopyState::Current => write!(
                f,
                "it was the guest's own as generation {generation} (marked on host {host})"
            ),
            CopyState::Following => write!(
                f,
                "it is a backup's of generation {generation} and may lack what came last (marked on host {host})"
            ),
            CopyState::Incomplete => write!(
                f,
                "it is a mixture of old and new, as a backup was joining generation {generation} (marked on host {host})"
            ),
        }
    }
}

/// Why a copy is not known to be the newest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}; {}", last.as_ref().map_or_else(
    || "the shared storage knows of no earlier life of the guest".to_owned(),
    |record| format!("the guest was last ended by {record}")
), mark.as_ref().map_or_else(
    || "this copy has no mark that says it was the guest's then".to_owned(),
    |mark| format!("of this copy its mark says: {mark}")
))]
pub struct Stale {
    /// The copy's mark, if it has one.
    pub mark: Option<DiskMark>,
    /// What the arbiter knows of the guest's last life, if there was one.
    pub last: Option<GenerationRecord>,
}

/// Whether a guest may be started from a copy with this `mark`, if the arbiter's record of its last life is `last`. If
/// that life has not ended, the copy does not matter: the arbiter itself refuses the start.
///
/// # Errors
/// [`Stale`]: another host may have a newer copy.
pub fn may_start(mark: Option<&DiskMark>, last: Option<&GenerationRecord>) -> Result<(), Box<Stale>> {
    let newest = match (mark, last) {
        (None, None) => true,
        (_, Some(record)) if record.state == LifeState::Running => true,
        (Some(mark), Some(record)) => {
            // The end is a generation of its own, the one after the last life's.
            mark.held == CopyState::Current
                && mark.generation.checked_add(1) == Some(record.generation)
                && mark.owner == record.owner
        }
        (None, Some(_)) | (Some(_), None) => false,
    };
    if newest {
        return Ok(());
    }
    Err(Box::new(Stale {
        mark: mark.cloned(),
        last: last.cloned(),
    }))
}

fn io_error(action: &'static str, path: &Path, cause: io::Error) -> MarkError {
    MarkError::Io {
        action,
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(held: CopyState, generation: u64, owner: u128) -> DiskMark {
        DiskMark {
            held,
            generation,
            owner,
            host: "alpha".into(),
            time: 7,
        }
    }

    fn record(state: LifeState, generation: u64, owner: u128) -> GenerationRecord {
        GenerationRecord {
            generation,
            owner,
            state,
            host: "beta".into(),
            pid: 1,
            time: 0,
        }
    }

    #[test]
    fn only_the_copy_of_the_last_life_starts() {
        let ended = record(LifeState::Ended, 4, 0xa);
        let current = mark(CopyState::Current, 3, 0xa);
        assert_eq!(may_start(Some(&current), Some(&ended)), Ok(()));
        for stale in [
            mark(CopyState::Following, 3, 0xa),
            mark(CopyState::Incomplete, 3, 0xa),
            mark(CopyState::Current, 2, 0xa),
            mark(CopyState::Current, 4, 0xa),
            mark(CopyState::Current, u64::MAX, 0xa),
            mark(CopyState::Current, 3, 0xb),
        ] {
            let error = may_start(Some(&stale), Some(&ended)).unwrap_err();
            assert_eq!(error.mark, Some(stale));
            assert!(error.to_string().contains("host beta"), "{error}");
        }
    }

    #[test]
    fn without_a_mark_only_a_new_guest_starts_and_with_one_only_a_known_guest() {
        assert_eq!(may_start(None, None), Ok(()));
        let ended = record(LifeState::Ended, 2, 0xa);
        let error = may_start(None, Some(&ended)).unwrap_err();
        assert!(error.to_string().contains("no mark"), "{error}");
        let error = may_start(Some(&mark(CopyState::Current, 1, 0xa)), None).unwrap_err();
        assert!(error.to_string().contains("no earlier life"), "{error}");
        assert_eq!(may_start(None, Some(&record(LifeState::Running, 2, 0xa))), Ok(()));
    }

    #[test]
    fn a_mark_reads_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.ftvm");
        assert_eq!(DiskMark::load(&path).unwrap(), None);
        for held in [CopyState::Incomplete, CopyState::Following, CopyState::Current] {
            let mark = mark(held, 9, 0xabc);
            mark.store(&path).unwrap();
            assert_eq!(DiskMark::load(&path).unwrap(), Some(mark));
        }
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["disk.ftvm"]);
    }

    #[test]
    fn each_broken_line_is_named() {
        let good = mark(CopyState::Current, 3, 0xabc).encode();
        let broken = |from: &str, to: &str| DiskMark::parse(good.replacen(from, to, 1).as_bytes());
        let field = |name| Err(FormatError::Field(name));
        let first_line = Err(FormatError::FirstLine { expected: FIRST_LINE });
        assert_eq!(broken("ftvm-mark 1", "ftvm-mark 2"), first_line);
        assert_eq!(broken("current", "newest"), field("held"));
        assert_eq!(broken("generation 3", "generation 03"), field("generation"));
        assert_eq!(broken("abc", "000"), field("owner"));
        assert_eq!(broken("alpha", "al\x1b[2Jpha"), field("host"));
        assert_eq!(broken("time 7", "time x"), field("time"));
        let parse = |bytes: &[u8]| DiskMark::parse(bytes);
        assert_eq!(parse(format!("{good}x\n").as_bytes()), Err(FormatError::Trailing));
        assert_eq!(parse(b"\xff"), Err(FormatError::NotText));
        assert_eq!(
            parse(&[b'x'; MARK_BYTES + 1]),
            Err(FormatError::TooLong { limit: MARK_BYTES })
        );
    }
}
