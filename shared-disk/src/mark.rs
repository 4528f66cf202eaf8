//! What is known of a host's copy of a private disk: a small file beside the image.
//!
//! With private disks each host has a copy of its own, and the one that lived last has the newest. A guest that ended
//! cleanly must not be started from an older copy, which would lose data without a word. So every copy has a mark: under
//! which generation, and by which incarnation, its content was last the guest's. The arbiter's record of the end names the
//! same two (PROTOCOL 10), and [`may_start`] compares. Nothing but equality counts: generations begin again when a person
//! removes a guest's directory, and incarnations are random.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::arbiter::{LifeState, Record, decimal, hex_id, host_name, is_host, read_bounded};

/// The longest mark accepted. A written one has at most 300 bytes.
const MARK_BYTES: usize = 1024;

/// First line of every mark; the number changes with the format.
const MAGIC: &str = "ftvm-mark 1";

/// What a copy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// What the guest's live side has, or had when it ended.
    Current,
    /// What a backup of that generation has executed so far: whole, but perhaps not the newest.
    Following,
    /// A mixture: a backup was joining, and not all had come.
    Incomplete,
}

/// What is known of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub held: Held,
    pub generation: u64,
    /// The incarnation that owned it, never 0.
    pub owner: u128,
    /// Where it was written. For people only.
    pub host: String,
    /// When, in seconds since 1970 UTC. For people only.
    pub time: u64,
}

/// Why a mark cannot be read or written.
#[derive(Debug, Error)]
pub enum MarkError {
    #[error("cannot {action} {}, which says how new the private disk beside it is: {cause}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("{} was not written by this version of ftvm: its '{field}' line is missing or malformed", path.display())]
    Malformed { path: PathBuf, field: &'static str },
}

impl Mark {
    /// A mark of this host and moment.
    #[must_use]
    pub fn now(held: Held, generation: u64, owner: u128) -> Self {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        Mark {
            held,
            generation,
            owner,
            host: host_name(rustix::system::uname().nodename().to_bytes()),
            time: time.map_or(0, |since| since.as_secs()),
        }
    }

    /// Reads the mark at `path`; `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read or is no mark.
    pub fn load(path: &Path) -> Result<Option<Mark>, MarkError> {
        match read_bounded(path, MARK_BYTES + 1) {
            Ok(bytes) => Mark::parse(&bytes).map(Some).map_err(|field| MarkError::Malformed {
                path: path.to_owned(),
                field,
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
        let Mark {
            held,
            generation,
            owner,
            host,
            time,
        } = self;
        let held = match held {
            Held::Current => "current",
            Held::Following => "following",
            Held::Incomplete => "incomplete",
        };
        format!("{MAGIC}\nheld {held}\ngeneration {generation}\nowner {owner:032x}\nhost {host}\ntime {time}\n")
    }

    /// The first line that is not as [`Mark::encode`] writes it is the error.
    fn parse(bytes: &[u8]) -> Result<Mark, &'static str> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MARK_BYTES);
        let mut lines = text.ok_or(MAGIC)?.lines();
        if lines.next() != Some(MAGIC) {
            return Err(MAGIC);
        }
        let mut field = |name: &'static str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(' ')).ok_or(name)
        };
        let mark = Mark {
            held: match field("held")? {
                "current" => Held::Current,
                "following" => Held::Following,
                "incomplete" => Held::Incomplete,
                _ => return Err("held"),
            },
            generation: decimal(field("generation")?).ok_or("generation")?,
            owner: hex_id(field("owner")?).ok_or("owner")?,
            host: Some(field("host")?)
                .filter(|host| is_host(host))
                .ok_or("host")?
                .to_owned(),
            time: decimal(field("time")?).ok_or("time")?,
        };
        match lines.next() {
            None => Ok(mark),
            Some(_) => Err("end"),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { generation, host, .. } = self;
        match self.held {
            Held::Current => write!(
                f,
                "it was the guest's own as generation {generation} (marked on host {host})"
            ),
            Held::Following => write!(
                f,
                "it is a backup's of generation {generation} and may lack what came last (marked on host {host})"
            ),
            Held::Incomplete => write!(
                f,
                "it is a mixture of old and new, as a backup was joining generation {generation} (marked on host {host})"
            ),
        }
    }
}

/// A copy that is not known to be the newest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}; {}", last.as_ref().map_or_else(
    || "the shared storage knows of no earlier life of the guest".to_owned(),
    |record| format!("the guest was last ended by {record}")
), mark.as_ref().map_or_else(
    || "this copy has no mark that says it was the guest's then".to_owned(),
    |mark| format!("of this copy its mark says: {mark}")
))]
pub struct Stale {
    pub mark: Option<Mark>,
    pub last: Option<Record>,
}

/// Whether a guest whose last life the arbiter knows as `last` may be started from a copy with this `mark`. Of a life that
/// has not ended nothing is said: the arbiter refuses the start.
///
/// # Errors
/// [`Stale`]: another host may have a newer copy.
pub fn may_start(mark: Option<&Mark>, last: Option<&Record>) -> Result<(), Box<Stale>> {
    let newest = match (mark, last) {
        (None, None) => true,
        (_, Some(record)) if record.state == LifeState::Running => true,
        (Some(mark), Some(record)) => {
            // The end is a generation of its own, the one after the last life's.
            mark.held == Held::Current
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

    fn mark(held: Held, generation: u64, owner: u128) -> Mark {
        Mark {
            held,
            generation,
            owner,
            host: "alpha".into(),
            time: 7,
        }
    }

    fn record(state: LifeState, generation: u64, owner: u128) -> Record {
        Record {
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
        let current = mark(Held::Current, 3, 0xa);
        assert_eq!(may_start(Some(&current), Some(&ended)), Ok(()));
        for stale in [
            mark(Held::Following, 3, 0xa),
            mark(Held::Incomplete, 3, 0xa),
            mark(Held::Current, 2, 0xa),
            mark(Held::Current, 4, 0xa),
            mark(Held::Current, u64::MAX, 0xa),
            mark(Held::Current, 3, 0xb),
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
        let error = may_start(Some(&mark(Held::Current, 1, 0xa)), None).unwrap_err();
        assert!(error.to_string().contains("no earlier life"), "{error}");
        assert_eq!(may_start(None, Some(&record(LifeState::Running, 2, 0xa))), Ok(()));
    }

    #[test]
    fn a_mark_reads_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.ftvm");
        assert_eq!(Mark::load(&path).unwrap(), None);
        for held in [Held::Incomplete, Held::Following, Held::Current] {
            let mark = mark(held, 9, 0xabc);
            mark.store(&path).unwrap();
            assert_eq!(Mark::load(&path).unwrap(), Some(mark));
        }
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["disk.ftvm"]);
    }

    #[test]
    fn each_broken_line_is_named() {
        let good = mark(Held::Current, 3, 0xabc).encode();
        let broken = |from: &str, to: &str| Mark::parse(good.replacen(from, to, 1).as_bytes());
        assert_eq!(broken("ftvm-mark 1", "ftvm-mark 2"), Err(MAGIC));
        assert_eq!(broken("current", "newest"), Err("held"));
        assert_eq!(broken("generation 3", "generation 03"), Err("generation"));
        assert_eq!(broken("abc", "000"), Err("owner"));
        assert_eq!(broken("alpha", "al\x1b[2Jpha"), Err("host"));
        assert_eq!(broken("time 7", "time x"), Err("time"));
        assert_eq!(Mark::parse(format!("{good}x\n").as_bytes()), Err("end"));
        assert_eq!(Mark::parse(b"\xff"), Err(MAGIC));
        assert_eq!(Mark::parse(&vec![b'x'; MARK_BYTES + 1]), Err(MAGIC));
    }
}
