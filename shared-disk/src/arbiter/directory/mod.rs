//! The test-and-set as files in a directory that both hosts mount.
//!
//! The guest's directory holds one small file per generation, `gen-1`, `gen-2`, ...; the newest one is the register's
//! value. A file comes into being whole, by link(2) from a temporary file that is already stable, and link(2) fails if
//! the name exists, on NFS too: that is the compare-and-swap. The answer of link(2) is not believed, because a server
//! may answer EEXIST to one's own success, or nothing at all. The directory is read again instead.
//!
//! # Why a generation is never won twice
//! The newest file is never removed, and a number that was removed never comes back, so the newest generation only
//! grows. A claim from G is won only if, *after* the link, G+1 is the newest and holds the claimant's id. Suppose that
//! someone had won G+1 before. Either that file still exists, and the link fails. Or it was removed, which happens only
//! when there is a newer file: then G+1 is not the newest, and the claim is lost. It makes no difference where in
//! between the claimant slept. On NFS this rests on close-to-open consistency, which is the default: do not mount the
//! share with `nocto`.
//!
//! # Start and end
//! A clean end is a swap too, to a file that says `ended`. Simply removing the files would be wrong in any order. If
//! the newest goes first, a loser that wakes up finds its own generation to be the newest again, and wins the next one.
//! If all go at once, a claim that was already on its way lands in an empty directory. With the end written down,
//! everything older may be removed at leisure, a crash in between is harmless, and the next start goes on from there:
//! the first start of a guest is the swap 0 -> 1, a later one E -> E+1, where E is the generation of the end. The
//! directory of an owner that died without a clean end stays, and a start is refused until a person has removed it.

mod nonce;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::RECORD_BYTES;
use super::register::{self, GenerationRegister, Started, check_id, check_name, foreign};
use super::{Arbiter, ArbiterError, ClaimOutcome, GenerationRecord, TestAndSet};
use crate::textfile::{decimal, read_bounded, this_host};

/// The most files accepted in a guest's directory. A life adds one per failover, so one with more is no directory of
/// ours.
const ENTRIES: usize = 65_536;

/// How often a directory is read that changes meanwhile. Each change is someone's start or end.
const LOOKS: u32 = 8;

const GENERATION_PREFIX: &str = "gen-";
const TEMPORARY_PREFIX: &str = "tmp-";
const NONCE_PREFIX: &str = "nonce-";

/// What a directory, or the file system that it lies on, answers.
#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{} does not exist; is the share mounted?", .0.display())]
    Missing(PathBuf),
    #[error("{} holds more than {ENTRIES} files", .0.display())]
    Crowded(PathBuf),
    #[error("{} changes while it is read", .0.display())]
    Changing(PathBuf),
}

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
        check_name("guest", guest)?;
        let root = root.into();
        let directory = root.join(guest);
        Ok(SharedDirectory { root, directory })
    }

    /// The guest's directory.
    fn path(&self) -> &Path {
        &self.directory
    }

    /// This register, with `link` in place of link(2).
    fn linking<L: Fn(&Path, &Path) -> io::Result<()>>(&self, link: L) -> Linking<'_, L> {
        Linking { share: self, link }
    }

    /// This register, with link(2) itself.
    fn register(&self) -> Linking<'_, impl Fn(&Path, &Path) -> io::Result<()>> {
        self.linking(|from, to| fs::hard_link(from, to))
    }

    /// The newest generation's record.
    fn newest(&self) -> Result<Option<GenerationRecord>, ArbiterError> {
        for _ in 0..LOOKS {
            let listed = self.listed()?.into_iter().max();
            let newest = self.newest_from(listed)?;
            if newest.is_some() || listed.is_none() {
                return Ok(newest);
            }
        }
        Err(ArbiterError::unreachable(DirectoryError::Changing(
            self.directory.clone(),
        )))
    }

    /// The newest record, if `listed` is the newest generation in a listing. A network file system may list a directory
    /// as it was some seconds ago, so the numbers that follow are tried as well, up to the first that has no file.
    fn newest_from(&self, listed: Option<u64>) -> Result<Option<GenerationRecord>, ArbiterError> {
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
            // Perhaps the share is just not mounted yet, which is no reason to give a guest up.
            io::ErrorKind::NotFound => ArbiterError::unreachable(DirectoryError::Missing(self.directory.clone())),
            _ => failed("list", &self.directory, error),
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(list)? {
            // A name that is not text is none of ours.
            names.extend(entry.map_err(list)?.file_name().into_string().ok());
            if names.len() > ENTRIES {
                let crowded = DirectoryError::Crowded(self.directory.clone());
                return Err(ArbiterError::broken(crowded, "Give ftvm a shared directory of its own"));
            }
        }
        Ok(names)
    }

    fn read_generation(&self, generation: u64) -> Result<Option<GenerationRecord>, ArbiterError> {
        let path = self.generation_path(generation);
        let bytes = match read_bounded(&path, RECORD_BYTES + 1) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, error)),
        };
        GenerationRecord::parse(generation, &bytes)
            .map(Some)
            .map_err(|error| foreign(path.display().to_string(), error))
    }

    /// A new stable file with `bytes` under a name that nobody else uses.
    fn write_temporary(&self, bytes: &[u8]) -> Result<PathBuf, ArbiterError> {
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
            failed("write", &path, error)
        })
    }

    /// Removes the generations below `newest`, which must be stable, the oldest first. What cannot be removed is left
    /// to the next start or end.
    fn remove_older(&self, newest: u64) {
        let mut older = self.listed().unwrap_or_default();
        older.retain(|generation| *generation < newest);
        older.sort_unstable();
        self.remove(older.into_iter().map(|generation| self.generation_path(generation)));
    }

    /// Removes temporary files and nonces, whoever left them. Only for the winner of a start: nobody has joined it yet,
    /// so no nonce is needed, and whoever else is about to link a temporary file has lost.
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

    /// Makes the names in `directory` stable.
    fn sync(&self, directory: &Path) -> Result<(), ArbiterError> {
        let synced = File::open(directory).and_then(|handle| handle.sync_all());
        synced.map_err(|error| failed("fsync", directory, error))
    }

    fn generation_path(&self, generation: u64) -> PathBuf {
        self.directory.join(format!("{GENERATION_PREFIX}{generation}"))
    }

    /// A name that nobody else uses. Host, process and counter are not enough for that, as a process number may come
    /// again after a crash, so the time is part of it.
    fn temporary_path(&self) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let host = this_host();
        let nanoseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let (process, count) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        self.directory
            .join(format!("{TEMPORARY_PREFIX}{host}-{process}-{nanoseconds}-{count}"))
    }
}

/// A [`SharedDirectory`] and its link(2), in place of which tests put what a file server might do.
struct Linking<'a, L> {
    share: &'a SharedDirectory,
    link: L,
}

impl<L: Fn(&Path, &Path) -> io::Result<()>> GenerationRegister for Linking<'_, L> {
    type Place = ();

    fn newest(&self) -> Result<(Option<GenerationRecord>, ()), ArbiterError> {
        self.share.newest().map(|newest| (newest, ()))
    }

    fn attempt(&self, (): (), record: &GenerationRecord) -> Result<(), ArbiterError> {
        let temporary = self.share.write_temporary(record.encode().as_bytes())?;
        let place = self.share.generation_path(record.generation);
        let answer = (self.link)(&temporary, &place);
        let _ = fs::remove_file(&temporary);
        match answer {
            // The winner of a start has removed the temporary file, or the server has forgotten it. Reading again
            // tells.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("link a temporary file to", &place, error)),
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
    fn claim(&self, generation: u64, owner: u128, me: u128) -> Result<ClaimOutcome, ArbiterError> {
        register::claim(&self.register(), generation, owner, me)
    }
}

impl Arbiter for SharedDirectory {
    /// Creates the guest's directory if it is not there. The winner removes what earlier lives have left in it.
    fn start(&self, me: u128) -> Result<u64, ArbiterError> {
        check_id(me)?;
        match fs::create_dir(&self.directory) {
            Ok(()) => self.sync(&self.root)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create the directory", &self.directory, error)),
        }
        let started = register::start(&self.register(), me)?;
        if let Started::Now(generation) = started {
            self.remove_older(generation);
            self.remove_litter();
        }
        Ok(started.generation())
    }

    /// A crash before the end is written down leaves the guest owned; one after that leaves old files for the next
    /// start.
    fn end(&self, me: u128) -> Result<(), ArbiterError> {
        self.remove_older(register::end(&self.register(), me)?);
        Ok(())
    }

    fn last(&self) -> Result<Option<GenerationRecord>, ArbiterError> {
        match fs::symlink_metadata(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.root.is_dir() => Ok(None),
            _ => self.newest(),
        }
    }

    fn disown(&self) -> Result<(), ArbiterError> {
        self.remove_older(register::disown(&self.register())?);
        Ok(())
    }

    /// Creates and links a file, for the file system may have no hard links.
    fn check_access(&self) -> Result<(), ArbiterError> {
        let temporary = self.write_temporary(b"access check\n")?;
        let linked = self.temporary_path();
        let answer = fs::hard_link(&temporary, &linked).map_err(|error| failed("link", &linked, error));
        let _ = fs::remove_file(&linked);
        fs::remove_file(&temporary).map_err(|error| failed("remove", &temporary, error))?;
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

/// Whether to wait or to act: only what waiting certainly cannot mend is [`ArbiterError::Broken`].
fn failed(action: &'static str, path: &Path, cause: io::Error) -> ArbiterError {
    use io::ErrorKind as Kind;
    let kind = cause.kind();
    let path = path.to_owned();
    let cause = DirectoryError::Io { action, path, cause };
    let advice = match kind {
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
        _ => return ArbiterError::unreachable(cause),
    };
    ArbiterError::broken(cause, advice)
}

#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod tests;
