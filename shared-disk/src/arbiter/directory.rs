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
use super::register::{self, Register, Started, check_id, foreign, plain_name};
use super::{Arbiter, ArbiterError, Outcome, Record, TestAndSet, nonce};

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

    /// This register, with another way to link(2).
    fn linking<L: Fn(&Path, &Path) -> io::Result<()>>(&self, link: L) -> Linking<'_, L> {
        Linking { share: self, link }
    }

    /// As it is used outside of tests.
    fn register(&self) -> Linking<'_, impl Fn(&Path, &Path) -> io::Result<()>> {
        self.linking(|from, to| fs::hard_link(from, to))
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
            .map_err(|error| foreign(&path.display().to_string(), error))
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
}

/// A [`SharedDirectory`] and its link(2), which tests replace.
struct Linking<'a, L> {
    share: &'a SharedDirectory,
    link: L,
}

impl<L: Fn(&Path, &Path) -> io::Result<()>> Register for Linking<'_, L> {
    type Place = ();

    fn newest(&self) -> Result<(Option<Record>, ()), ArbiterError> {
        self.share.newest().map(|newest| (newest, ()))
    }

    fn attempt(&self, (): (), record: &Record) -> Result<(), ArbiterError> {
        let temporary = self.share.write_temporary(record.encode().as_bytes())?;
        let place = self.share.generation_path(record.generation);
        let answer = (self.link)(&temporary, &place);
        let _ = fs::remove_file(&temporary);
        match answer {
            // A start by someone else took the temporary file away, or the server forgot it: asking again tells.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("link a temporary file to", &place, &error)),
            Ok(()) => Ok(()),
        }
    }

    fn settle(&self) -> Result<(), ArbiterError> {
        self.share.sync(&self.share.directory)
    }

    fn remedy(&self) -> String {
        format!("remove the directory {}", self.share.directory.display())
    }
}

impl TestAndSet for SharedDirectory {
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<Outcome, ArbiterError> {
        register::claim(&self.register(), generation, owner, me)
    }
}

impl Arbiter for SharedDirectory {
    /// Creates the guest's directory, and tidies it.
    fn start(&self, me: u128) -> Result<u64, ArbiterError> {
        check_id(me)?;
        match fs::create_dir(&self.directory) {
            Ok(()) => self.sync(&self.root)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create the directory", &self.directory, &error)),
        }
        let started = register::start(&self.register(), me)?;
        if let Started::Now(generation) = started {
            self.remove_older(generation);
            self.remove_litter();
        }
        Ok(started.generation())
    }

    /// A crash before the end is marked leaves the guest owned, one after it leaves litter for the next start.
    fn end(&self, me: u128) -> Result<(), ArbiterError> {
        self.remove_older(register::end(&self.register(), me)?);
        Ok(())
    }

    fn last(&self) -> Result<Option<Record>, ArbiterError> {
        match fs::symlink_metadata(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.root.is_dir() => Ok(None),
            _ => self.newest(),
        }
    }

    fn disown(&self) -> Result<(), ArbiterError> {
        self.remove_older(register::disown(&self.register())?);
        Ok(())
    }

    /// Creates and links a file: the file system may have no hard links.
    fn check_access(&self) -> Result<(), ArbiterError> {
        let temporary = self.write_temporary(b"access check\n")?;
        let linked = self.temporary_path();
        let answer = fs::hard_link(&temporary, &linked).map_err(|error| failed("link", &linked, &error));
        let _ = fs::remove_file(&linked);
        fs::remove_file(&temporary).map_err(|error| failed("remove", &temporary, &error))?;
        answer
    }

    fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        nonce::write(self, name, bytes)
    }

    fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        nonce::read(self, name)
    }

    fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        nonce::remove(self, name)
    }
}

/// At most `limit` bytes of a regular file. Anything else under the name (a FIFO would block) is an error.
pub(crate) fn read_bounded(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
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
