//! The lock file: for each set of packages, every package with its version and hash.
//!
//! A set stands with all packages that it needs, so a guest can be built without asking apt what depends on what: the
//! answer changes with every update of the archive. One line is `NAME VERSION ARCHITECTURE SHA256`, below a heading
//! `[SET]`; lines that begin with `#` are comments. Debian's archive signs the same hashes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Largest lock file that is read, in bytes: twenty times what is needed.
const MAX_SIZE: u64 = 256 * 1024;

/// Packages that go into a guest together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// The kernel and busybox: in every guest.
    Base,
    /// redis-server and redis-cli.
    Redis,
    /// The web server nginx.
    Nginx,
    /// The command line shell of SQLite.
    Sqlite,
}

impl Set {
    /// All sets.
    pub const ALL: [Self; 4] = [Self::Base, Self::Redis, Self::Nginx, Self::Sqlite];

    /// The name in the lock file and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Redis => "redis",
            Self::Nginx => "nginx",
            Self::Sqlite => "sqlite",
        }
    }

    /// The set of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }
}

/// What is wrong with a lock file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("the lock file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The failure itself.
        source: io::Error,
    },
    /// It is larger than any lock file.
    #[error("the lock file {path} has {size} bytes; at most {MAX_SIZE} are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A line makes no sense.
    #[error("the lock file, line {line}: {reason}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What was expected and what was found.
        reason: String,
    },
    /// Two sets want different versions of a package.
    #[error("the lock file has two versions of {0}: write it anew with `guest-image update-lock`")]
    Conflict(String),
    /// A set is missing.
    #[error("the lock file has no set {0}: write it anew with `guest-image update-lock`")]
    NoSet(&'static str),
}

/// One package, exactly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, as Debian writes it.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// SHA-256 of the `.deb`, in lower-case hexadecimal.
    pub sha256: String,
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {} {}",
            self.name, self.version, self.architecture, self.sha256
        )
    }
}

/// The packages of all sets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lock {
    sets: BTreeMap<Set, Vec<Package>>,
}

impl Lock {
    /// A lock file of these sets.
    pub fn new(sets: BTreeMap<Set, Vec<Package>>) -> Self {
        Self { sets }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Fails when the file cannot be read, is too large, or a line makes no sense.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let size = fs::metadata(path).map_err(failed)?.len();
        if size > MAX_SIZE {
            return Err(Error::TooLarge {
                path: path.to_owned(),
                size,
            });
        }
        Self::parse(&fs::read_to_string(path).map_err(failed)?)
    }

    /// SHA-256 of its text, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        format!("{:x}", Sha256::digest(self.to_string()))
    }

    fn parse(text: &str) -> Result<Self, Error> {
        let mut sets: BTreeMap<Set, Vec<Package>> = BTreeMap::new();
        let mut current = None;
        for (number, line) in text.lines().enumerate() {
            let wrong = |reason| Error::Line {
                line: number + 1,
                reason,
            };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let set = Set::find(name).ok_or_else(|| wrong(format!("there is no set {name:?}")))?;
                if sets.insert(set, Vec::new()).is_some() {
                    return Err(wrong(format!("[{name}] is there twice")));
                }
                current = Some(set);
                continue;
            }
            let package = package(line).map_err(wrong)?;
            current
                .and_then(|set| sets.get_mut(&set))
                .ok_or_else(|| wrong("expected a heading such as [base] above the first package".to_owned()))?
                .push(package);
        }
        Ok(Self { sets })
    }

    /// The packages of some sets, each once, by name.
    ///
    /// # Errors
    /// Fails when a set is missing, or two sets have a package in different versions.
    pub fn packages(&self, sets: &[Set]) -> Result<Vec<&Package>, Error> {
        let mut all: BTreeMap<&str, &Package> = BTreeMap::new();
        for set in sets {
            for package in self.sets.get(set).ok_or(Error::NoSet(set.name()))? {
                if *all.entry(&package.name).or_insert(package) != package {
                    return Err(Error::Conflict(package.name.clone()));
                }
            }
        }
        Ok(all.into_values().collect())
    }
}

/// Reads one line. The parts become names of files and arguments of programs, so their characters are checked.
fn package(line: &str) -> Result<Package, String> {
    let parts: Vec<&str> = line.split(' ').collect();
    let &[name, version, architecture, sha256] = &parts[..] else {
        return Err(format!("expected NAME VERSION ARCHITECTURE SHA256, found {line:?}"));
    };
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if !plain(name, "+-.") || !plain(version, "+-.:~") {
        return Err(format!(
            "expected a Debian package's name and version, found {name:?} {version:?}"
        ));
    }
    if !["amd64", "all"].contains(&architecture) {
        return Err(format!(
            "expected the architecture amd64 or all, found {architecture:?}"
        ));
    }
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("expected a SHA-256 of 64 hexadecimal digits, found {sha256:?}"));
    }
    let [name, version, architecture, sha256] = [name, version, architecture, sha256].map(str::to_owned);
    Ok(Package {
        name,
        version,
        architecture,
        sha256,
    })
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Debian packages of the Linux guest: NAME VERSION ARCHITECTURE SHA256.\n\
             # Written by: cargo run --release --bin guest-image -- update-lock"
        )?;
        for (set, packages) in &self.sets {
            writeln!(f, "\n[{}]", set.name())?;
            for package in packages {
                writeln!(f, "{package}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744";

    fn refusal(text: &str) -> String {
        Lock::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let text = format!("# note\n\n[redis]\na+b 1:2~3-4 all {HASH}\n[base]\nc 1 amd64 {HASH}\n");
        let lock = Lock::parse(&text).unwrap();
        assert_eq!(Lock::parse(&lock.to_string()).unwrap(), lock);
        let names = |sets: &[Set]| -> Vec<String> {
            let packages = lock.packages(sets).unwrap();
            packages.iter().map(|package| package.name.clone()).collect()
        };
        assert_eq!(names(&[Set::Redis]), ["a+b"]);
        assert_eq!(names(&[Set::Base, Set::Redis]), ["a+b", "c"]);
        assert!(matches!(lock.packages(&[Set::Nginx]), Err(Error::NoSet("nginx"))));
    }

    #[test]
    fn the_lock_file_of_this_repository_serves() {
        let lock = Lock::read(&super::super::sources().join("packages.lock")).unwrap();
        assert!(lock.packages(&Set::ALL).unwrap().len() > 20);
    }

    #[test]
    fn two_versions_of_a_package_are_a_conflict() {
        let lock = Lock::parse(&format!("[redis]\na 1 all {HASH}\n[nginx]\na 2 all {HASH}\n")).unwrap();
        assert!(matches!(lock.packages(&[Set::Redis, Set::Nginx]), Err(Error::Conflict(name)) if name == "a"));
        assert_eq!(lock.packages(&[Set::Nginx]).unwrap().len(), 1);
    }

    #[test]
    fn damage_is_refused_with_its_line() {
        let short = &HASH[1..];
        let cases = [
            (format!("a 1 all {HASH}\n"), "line 1: expected a heading"),
            ("[other]\n".to_owned(), "line 1: there is no set"),
            ("[base]\n[base]\n".to_owned(), "line 2: [base] is there twice"),
            ("[base]\na 1 all\n".to_owned(), "line 2: expected NAME"),
            (
                format!("[base]\n../a 1 all {HASH}\n"),
                "line 2: expected a Debian package's name",
            ),
            (
                format!("[base]\n-o 1 all {HASH}\n"),
                "line 2: expected a Debian package's name",
            ),
            (
                format!("[base]\na 1/2 all {HASH}\n"),
                "line 2: expected a Debian package's name",
            ),
            (
                format!("[base]\na 1 arm64 {HASH}\n"),
                "line 2: expected the architecture",
            ),
            (format!("[base]\na 1 all {short}\n"), "line 2: expected a SHA-256"),
            (
                format!("[base]\na 1 all {}\n", HASH.to_uppercase()),
                "line 2: expected a SHA-256",
            ),
        ];
        for (text, expected) in cases {
            let found = refusal(&text);
            assert!(found.contains(expected), "{text:?}: {found}");
        }
    }
}
