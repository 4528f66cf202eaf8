//! The test-and-set as files in a directory that both hosts mount.
//!
//! The guest's directory holds one small file per generation, `gen-1`, `gen-2`, ...; the newest one is the register's
//! value. A file comes into being whole, by link(2) from a temporary file that is already stable, and link(2) fails if
//! the name exists, on NFS too: that is the compare-and-swap. Whatever link(2) answers, the directory is read back and
//! believed instead, because a server may answer EEXIST to one's own success, or nothing at all.
//!
//! # Why a generation is never won twice
//! The newest file is never removed and a removed number never comes back, so the newest generation only grows. A claim
//! from G is won only if, *after* the link, G+1 is the newest and holds my id. Had anyone won G+1 before, either that
//! file still exists, and my link fails, or it was tidied away, which happens only below a newer file: then G+1 is not
//! the newest, and I lose. A claimant that slept anywhere in between is caught the same way. On NFS this rests on
//! close-to-open consistency, which is the default: the share must not be mounted with `nocto`.
//!
//! # Start and end
//! A clean end is a swap too, to a file that says `ended`. Simply removing the files would be wrong in any order:
//! newest first, a loser that wakes up finds its own generation to be the newest again and wins the next; all at once,
//! a claim that was already on its way lands in an empty directory. With the end marked, everything older may be
//! removed at leisure, a crash in between is harmless, and the next start goes on from the mark: the first start of a
//! guest is the swap 0 -> 1, a later one E -> E+1. An owner that died without a clean end keeps its directory, and
//! a start is refused until a person has removed it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::{RECORD_BYTES, decimal, host_name};
use super::{ArbiterError, LifeState, Outcome, Record, TestAndSet};

/// The longest name of a guest or nonce, in bytes: with a prefix it fits any file system.
const NAME_BYTES: usize = 64;

/// Files accepted in a guest's directory. A life adds one per failover; more than this is no directory of ours.
const ENTRIES: usize = 65_536;

/// How often a directory that changes while it is read is read again. Each change is someone's start or end.
const LOOKS: u32 = 8;

const GENERATION_PREFIX: &str = "gen-";
const TEMPORARY_PREFIX: &str = "tmp-";
pub(super) const NONCE_PREFIX: &str = "nonce-";

/// A generation register in a directory of a shared file system that has hard links (NFS, OCFS2, GFS2, or a local file
/// system for a pair on one host). Every call may block for as long as the file server is silent: see
/// [`Claimant`](super::Claimant).
#[derive(Clone, Debug)]
pub struct SharedDirectory {
    root: PathBuf,
    directory: PathBuf,
}

impl SharedDirectory {
    /// The register of `guest` below `root`, an existing directory on the shared file system. Touches nothing yet.
    ///
    /// # Errors
    /// When `guest` is no plain name: 1 to 64 letters, digits, `.`, `-` or `_`, not beginning with a dot.
    pub fn new(root: impl Into<PathBuf>, guest: &str) -> Result<Self, ArbiterError> {
        plain_name("guest", guest)?;
        let root = root.into();
        let directory = root.join(guest);
        Ok(SharedDirectory { root, directory })
    }

    /// The guest's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Starts a life of the guest as incarnation `me`: the swap from "never started" or "ended" to owned. Returns the
    /// generation won, 1 for a first start. Creates the guest's directory, and tidies it. A repeated start by the owner
    /// succeeds.
    ///
    /// # Errors
    /// [`ArbiterError::Taken`] when the guest has an owner that has not ended; else as [`TestAndSet::claim`].
    pub fn start(&self, me: u128) -> Result<u64, ArbiterError> {
        check_id(me)?;
        match fs::create_dir(&self.directory) {
            Ok(()) => self.sync(&self.root)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create the directory", &self.directory, &error)),
        }
        let ended = match self.newest()? {
            Some(record) if record.is(record.generation, me) => {
                self.sync(&self.directory)?;
                return Ok(record.generation);
            }
            Some(record) if record.state == LifeState::Running => return Err(self.taken(record)),
            Some(record) => record.generation,
            None => 0,
        };
        let newest = self.swap(&self.record(next(ended)?, me, LifeState::Running), |from, to| {
            fs::hard_link(from, to)
        })?;
        if !newest.is(newest.generation, me) {
            return Err(self.taken(newest));
        }
        self.sync(&self.directory)?;
        self.remove_older(newest.generation);
        self.remove_litter();
        Ok(newest.generation)
    }

    /// Ends the guest's life cleanly (PROTOCOL 18), so that the next start works. Only the owner can; repeating it is
    /// harmless. A crash before the end is marked leaves the guest owned, one after it leaves litter for the next start.
    ///
    /// # Errors
    /// [`ArbiterError::Taken`] when someone else owns the newest generation; else as [`TestAndSet::claim`].
    pub fn end(&self, me: u128) -> Result<(), ArbiterError> {
        check_id(me)?;
        let mut newest = self.newest()?.ok_or_else(|| self.emptied())?;
        if newest.owner != me {
            return Err(self.taken(newest));
        }
        if newest.state == LifeState::Running {
            let mark = self.record(next(newest.generation)?, me, LifeState::Ended);
            newest = self.swap(&mark, |from, to| fs::hard_link(from, to))?;
        }
        if (newest.owner, newest.state) != (me, LifeState::Ended) {
            return Err(self.taken(newest));
        }
        self.sync(&self.directory)?;
        self.remove_older(newest.generation);
        Ok(())
    }

    /// Tries what a claim needs, creating and linking a file, and leaves nothing behind: a backup finds out before it
    /// matters that it may not write here, or that the file system has no hard links.
    ///
    /// # Errors
    /// As [`TestAndSet::claim`]; the guest's directory must exist.
    pub fn check_access(&self) -> Result<(), ArbiterError> {
        let temporary = self.write_temporary(b"access check\n")?;
        let linked = self.temporary_path();
        let answer = fs::hard_link(&temporary, &linked).map_err(|error| failed("link", &linked, &error));
        let _ = fs::remove_file(&linked);
        fs::remove_file(&temporary).map_err(|error| failed("remove", &temporary, &error))?;
        answer
    }

    /// Puts `record` into its place unless something is there, and returns the newest record afterwards, whosever it
    /// is. `link` is link(2); its answer matters only if the directory shows no trace of the attempt.
    fn swap(&self, record: &Record, link: impl FnOnce(&Path, &Path) -> io::Result<()>) -> Result<Record, ArbiterError> {
        let temporary = self.write_temporary(record.encode().as_bytes())?;
        let place = self.generation_path(record.generation);
        let answer = link(&temporary, &place);
        let _ = fs::remove_file(&temporary);
        match self.newest()? {
            Some(newest) if newest.generation >= record.generation => Ok(newest),
            _ => Err(match answer {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    failed("link a temporary file to", &place, &error)
                }
                // A start by someone else took the temporary file away, or the server forgot it: asking again tells.
                _ => ArbiterError::Unreachable {
                    what: format!("{} was linked but is not seen", place.display()),
                },
            }),
        }
    }

    fn claim_with(
        &self,
        (generation, owner, me): (u64, u128, u128),
        link: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> Result<Outcome, ArbiterError> {
        check_id(me)?;
        let claimed = next(generation)?;
        let mut newest = self.newest()?;
        if newest.as_ref().is_some_and(|held| held.is(generation, owner)) {
            newest = Some(self.swap(&self.record(claimed, me, LifeState::Running), link)?);
        }
        match newest {
            Some(held) if held.is(claimed, me) => {
                self.sync(&self.directory)?;
                Ok(Outcome::Won { generation: claimed })
            }
            Some(held) => Ok(Outcome::Lost {
                generation: held.generation,
                owner: held.owner,
            }),
            None => Ok(Outcome::Lost {
                generation: 0,
                owner: 0,
            }),
        }
    }

    /// The newest generation's record.
    fn newest(&self) -> Result<Option<Record>, ArbiterError> {
        for _ in 0..LOOKS {
            let listed = self.listed()?.into_iter().max();
            let newest = self.newest_from(listed)?;
            if newest.is_some() || listed.is_none() {
                return Ok(newest);
            }
        }
        Err(ArbiterError::Unreachable {
            what: format!("{} changes while it is read", self.directory.display()),
        })
    }

    /// The last record of those from `listed` on without a gap. A network file system may list a directory as it was
    /// some seconds ago, so the names above the newest one listed are tried as well.
    fn newest_from(&self, listed: Option<u64>) -> Result<Option<Record>, ArbiterError> {
        let mut newest = None;
        let mut candidate = listed.or(Some(1));
        while let Some(record) = candidate.map_or(Ok(None), |generation| self.read_generation(generation))? {
            candidate = record.generation.checked_add(1);
            newest = Some(record);
        }
        Ok(newest)
    }

    /// The generations for which a file is listed, in no order.
    fn listed(&self) -> Result<Vec<u64>, ArbiterError> {
        let names = self.names()?;
        let numbers = names.iter().filter_map(|name| name.strip_prefix(GENERATION_PREFIX));
        Ok(numbers
            .filter_map(decimal)
            .filter(|generation| *generation > 0)
            .collect())
    }

    fn names(&self) -> Result<Vec<String>, ArbiterError> {
        let list = |error: io::Error| match error.kind() {
            // The share may just not be mounted: no ground to give up a life.
            io::ErrorKind::NotFound => ArbiterError::Unreachable {
                what: format!("{} does not exist; is the share mounted?", self.directory.display()),
            },
            _ => failed("list", &self.directory, &error),
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(list)? {
            // A name that is not text is none of ours.
            names.extend(entry.map_err(list)?.file_name().into_string().ok());
            if names.len() > ENTRIES {
                return Err(ArbiterError::Broken {
                    what: format!("{} holds more than {ENTRIES} files", self.directory.display()),
                    advice: "Give ftvm a shared directory of its own",
                });
            }
        }
        Ok(names)
    }

    fn read_generation(&self, generation: u64) -> Result<Option<Record>, ArbiterError> {
        let path = self.generation_path(generation);
        let bytes = match read_bounded(&path, RECORD_BYTES + 1) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        Record::parse(generation, &bytes)
            .map(Some)
            .map_err(|error| ArbiterError::Broken {
                what: format!("{} was not written by this version of ftvm: {error}", path.display()),
                advice: "Find out who wrote it before you remove it: it may protect a running guest",
            })
    }

    /// A new stable file with `bytes` under a name that nobody else uses.
    pub(super) fn write_temporary(&self, bytes: &[u8]) -> Result<PathBuf, ArbiterError> {
        let path = self.temporary_path();
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            });
        written.map(|()| path.clone()).map_err(|error| {
            let _ = fs::remove_file(&path);
            failed("write", &path, &error)
        })
    }

    /// Removes the generations below `newest`, oldest first, once `newest` is stable. Best effort: the next start or
    /// end tries again.
    fn remove_older(&self, newest: u64) {
        let mut older = self.listed().unwrap_or_default();
        older.retain(|generation| *generation < newest);
        older.sort_unstable();
        self.remove(older.into_iter().map(|generation| self.generation_path(generation)));
    }

    /// Removes temporary files and nonces, whoever left them. Only for the winner of a start: nobody has joined it yet,
    /// and whoever else is about to link a temporary file has lost.
    fn remove_litter(&self) {
        let is_litter = |name: &String| name.starts_with(TEMPORARY_PREFIX) || name.starts_with(NONCE_PREFIX);
        let names = self.names().unwrap_or_default().into_iter();
        self.remove(names.filter(is_litter).map(|name| self.directory.join(name)));
    }

    fn remove(&self, paths: impl Iterator<Item = PathBuf>) {
        for path in paths {
            if let Err(error) = fs::remove_file(&path) {
                tracing::debug!("{} is left lying: {error}", path.display());
            }
        }
    }

    /// Makes names in `directory` stable.
    pub(super) fn sync(&self, directory: &Path) -> Result<(), ArbiterError> {
        let synced = File::open(directory).and_then(|handle| handle.sync_all());
        synced.map_err(|error| failed("fsync", directory, &error))
    }

    fn record(&self, generation: u64, owner: u128, state: LifeState) -> Record {
        let host = host_name(rustix::system::uname().nodename().to_bytes());
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Record {
            generation,
            owner,
            state,
            host,
            pid: std::process::id(),
            time,
        }
    }

    fn generation_path(&self, generation: u64) -> PathBuf {
        self.directory.join(format!("{GENERATION_PREFIX}{generation}"))
    }

    /// Host, process, moment and counter make the name unique: a process number may come again after a crash.
    fn temporary_path(&self) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let host = host_name(rustix::system::uname().nodename().to_bytes());
        let nanoseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let (process, count) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        self.directory
            .join(format!("{TEMPORARY_PREFIX}{host}-{process}-{nanoseconds}-{count}"))
    }

    fn taken(&self, record: Record) -> ArbiterError {
        ArbiterError::Taken {
            directory: self.directory.clone(),
            record: Box::new(record),
        }
    }

    fn emptied(&self) -> ArbiterError {
        ArbiterError::Broken {
            what: format!("{} holds no generation", self.directory.display()),
            advice: "Someone has emptied it while the guest ran; the guest can be started again",
        }
    }
}

impl TestAndSet for SharedDirectory {
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<Outcome, ArbiterError> {
        self.claim_with((generation, owner, me), |from, to| fs::hard_link(from, to))
    }
}

impl Record {
    fn is(&self, generation: u64, owner: u128) -> bool {
        (self.generation, self.owner, self.state) == (generation, owner, LifeState::Running)
    }
}

fn next(generation: u64) -> Result<u64, ArbiterError> {
    generation.checked_add(1).ok_or_else(|| ArbiterError::Broken {
        what: "the generation is the last number there is".to_owned(),
        advice: "Nobody can have got there by failing over: remove the guest's directory if the guest is not running",
    })
}

fn check_id(me: u128) -> Result<(), ArbiterError> {
    if me != 0 {
        return Ok(());
    }
    Err(ArbiterError::Broken {
        what: "incarnation 0 stands for nobody and cannot own a guest".to_owned(),
        advice: "This is a bug in ftvm: please report it with the log",
    })
}

pub(super) fn plain_name(what: &str, name: &str) -> Result<(), ArbiterError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if (1..=NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(ArbiterError::Broken {
        what: format!(
            "{what} name {:?} is not usable as a file name",
            name.chars().take(NAME_BYTES).collect::<String>()
        ),
        advice: "Use 1 to 64 letters, digits, '.', '-' or '_', not beginning with a dot",
    })
}

/// At most `limit` bytes of a regular file. Anything else under the name (a FIFO would block) is an error.
pub(super) fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(u64::try_from(limit).unwrap_or(u64::MAX))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Sorts an error into "wait" and "act". Only what waiting certainly cannot mend is [`ArbiterError::Broken`].
pub(super) fn failed(action: &str, path: &Path, error: &io::Error) -> ArbiterError {
    use io::ErrorKind as Kind;
    let what = format!("cannot {action} {}: {error}", path.display());
    let advice = match error.kind() {
        Kind::PermissionDenied => {
            "ftvm must be able to create, link and remove files there; a file system without hard links does not serve, \
             and NFS maps root to nobody unless exported with no_root_squash"
        }
        Kind::ReadOnlyFilesystem => "Mount the shared file system read-write",
        Kind::Unsupported | Kind::InvalidInput => {
            "The shared file system must have hard links and fsync: NFS, OCFS2, GFS2, ext4 and XFS do"
        }
        Kind::NotFound => "Create the shared directory or mount it; both hosts must mount the same one",
        Kind::NotADirectory => "The shared directory must be a directory",
        Kind::InvalidFilename => "Choose a shorter guest name or path",
        Kind::InvalidData => "Remove it, or give ftvm a shared directory of its own",
        _ => return ArbiterError::Unreachable { what },
    };
    ArbiterError::Broken { what, advice }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
