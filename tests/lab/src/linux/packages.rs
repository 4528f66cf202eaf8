//! Debian packages: which are needed, and their files, in a cache.
//!
//! Dependencies are followed from a set's roots, the first alternative that the archive has, without recommendations.
//! Left out is what only the packages' installation scripts call, since nothing is installed: half of what Debian
//! considers essential. The archive's hash of each package goes into the lock file; every package is verified against
//! it before it is unpacked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::lock::{self, Lock, Package, Set};
use crate::nested::apt::{Apt, run};
use crate::nested::kernel::{META_PACKAGE, concrete_package};
use crate::nested::programs::{self, Missing};

/// Packages that only installation scripts, or the machine that starts services, need. What they need is not needed.
const NOT_NEEDED: [&str; 9] = [
    "adduser",
    "debconf",
    "debconf-2.0",
    "dpkg",
    "init-system-helpers",
    "iproute2",
    "lsb-base",
    "perl-base",
    "sysvinit-utils",
];
/// A closure of more packages than this means that something essential is missing from [`NOT_NEEDED`].
const MAX_PACKAGES: usize = 64;

/// What can go wrong with packages.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not on this machine.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// A file or folder of the cache cannot be used.
    #[error("cache of Debian packages, {path}: {source}; FTVM_CACHE=DIR chooses another place")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The failure itself.
        source: io::Error,
    },
    /// The archive does not have the version (any more), or is out of reach.
    #[error(
        "Debian's archive did not give {package}: {reason}. If guest-images/linux/packages.lock names it and the archive has a \
         newer version by now, take that with `cargo run --release --bin guest-image -- update-lock`"
    )]
    Unavailable {
        /// Name and version.
        package: String,
        /// What apt said.
        reason: String,
    },
    /// The file is not the one that was locked.
    #[error("{package} has the SHA-256 {found}; expected {expected} as in guest-images/linux/packages.lock")]
    Hash {
        /// Name and version.
        package: String,
        /// The hash in the lock file.
        expected: String,
        /// The file's hash.
        found: String,
    },
    /// apt cannot tell what is needed.
    #[error("cannot resolve the packages of the set {set}: {reason}")]
    Resolve {
        /// The set's name.
        set: &'static str,
        /// What was expected and what was found.
        reason: String,
    },
    /// The package cannot be unpacked.
    #[error("cannot unpack {package}: {reason}")]
    Unpack {
        /// Name and version.
        package: String,
        /// What dpkg-deb said.
        reason: String,
    },
    /// A package lacks a file that the guest needs.
    #[error("the packages of the set base have no {0}")]
    Incomplete(&'static str),
    /// The lock file does not serve.
    #[error(transparent)]
    Lock(#[from] lock::Error),
}

fn cache_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Cache { path, source }
}

/// The cache of packages, fetched and unpacked. One process at a time has it.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    _lock: File,
}

/// Folders with the contents of packages.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// One for each package, by the package's name.
    pub(super) folders: BTreeMap<String, PathBuf>,
}

impl Unpacked {
    /// The kernel's bzImage.
    pub(super) fn kernel_image(&self) -> Result<PathBuf, Error> {
        Ok(self.kernel_folder()?.join(format!("boot/vmlinuz-{}", self.version()?)))
    }

    /// The folder of the kernel's modules.
    pub(super) fn modules(&self) -> Result<PathBuf, Error> {
        Ok(self.kernel_folder()?.join("lib/modules").join(self.version()?))
    }

    /// The static busybox.
    pub(super) fn busybox(&self) -> Result<PathBuf, Error> {
        let folder = self.folders.get("busybox-static");
        Ok(folder.ok_or(Error::Incomplete("busybox-static"))?.join("bin/busybox"))
    }

    fn version(&self) -> Result<&str, Error> {
        let mut names = self.folders.keys();
        names
            .find_map(|name| name.strip_prefix("linux-image-"))
            .ok_or(Error::Incomplete("kernel"))
    }

    fn kernel_folder(&self) -> Result<&Path, Error> {
        let mut folders = self.folders.iter();
        folders
            .find_map(|(name, folder)| name.starts_with("linux-image-").then_some(folder.as_path()))
            .ok_or(Error::Incomplete("kernel"))
    }
}

impl Store {
    /// Opens the cache in `dir`; waits while another process has it.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        for program in ["apt-get", "dpkg-deb", "xz"] {
            programs::find(program)?;
        }
        fs::create_dir_all(dir).map_err(cache_error(dir))?;
        let lock = File::create(dir.join("lock")).map_err(cache_error(dir))?;
        lock.lock().map_err(cache_error(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// The packages of some sets, fetched if need be, verified and unpacked.
    pub(super) fn unpack(&self, lock: &Lock, sets: &[Set]) -> Result<Unpacked, Error> {
        let mut folders = BTreeMap::new();
        for package in lock.packages(sets)? {
            folders.insert(package.name.clone(), self.unpack_one(package)?);
        }
        Ok(Unpacked { folders })
    }

    /// The lock to build `sets` by: this one or, where the archive has replaced a version of it, what the archive has now. A
    /// guest with Debian's newest updates is better than none, and tests have to run a year from now.
    pub(super) fn available(&self, lock: Lock, sets: &[Set]) -> Result<Lock, Error> {
        let path = self.dir.join(format!("instead-of-{:.16}.lock", lock.fingerprint()));
        // Where this has been found out before, the archive need not be asked again.
        if let Some(instead) = Lock::read(&path).ok()
            && self.unpack(&instead, sets).is_ok()
        {
            eprintln!("{}", replaced(&path.display()));
            return Ok(instead);
        }
        let unavailable = match self.unpack(&lock, sets) {
            Ok(_) => return Ok(lock),
            Err(error @ Error::Unavailable { .. }) => error,
            Err(other) => return Err(other),
        };
        // If the archive is out of reach, or has what it does not give, that is what is wrong.
        let Some(instead) = self.resolve().ok().filter(|now| *now != lock) else {
            return Err(unavailable);
        };
        eprintln!("{}", replaced(&unavailable));
        self.unpack(&instead, sets)?;
        fs::write(&path, instead.to_string()).map_err(cache_error(&path))?;
        Ok(instead)
    }

    fn unpack_one(&self, package: &Package) -> Result<PathBuf, Error> {
        let title = format!("{} {}", package.name, package.version);
        // The name says everything that the contents depend on, and the folder appears only when it is complete.
        let folder = self.dir.join(format!("{}-{}", package.name, &package.sha256[..16]));
        if folder.is_dir() {
            return Ok(folder);
        }
        let work = self.dir.join("work");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).map_err(cache_error(&work))?;
        let file = fetch(&work, package)?;
        let failed = |reason| Error::Unpack {
            package: title.clone(),
            reason,
        };
        run(&work, "dpkg-deb", &["-x", &file.to_string_lossy(), "unpacked"]).map_err(failed)?;
        fs::rename(work.join("unpacked"), &folder).map_err(cache_error(&folder))?;
        fs::remove_dir_all(&work).map_err(cache_error(&work))?;
        Ok(folder)
    }

    /// What the archive offers now, for all sets.
    pub(super) fn resolve(&self) -> Result<Lock, Error> {
        let work = self.dir.join("work");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).map_err(cache_error(&work))?;
        let mut sets = BTreeMap::new();
        for set in Set::ALL {
            let resolved = Apt::with_lists(&work, |apt| resolve(apt, set));
            let resolved = resolved.map_err(|reason| Error::Resolve {
                set: set.name(),
                reason,
            })?;
            sets.insert(set, resolved);
        }
        fs::remove_dir_all(&work).map_err(cache_error(&work))?;
        Ok(Lock::new(sets))
    }
}

fn replaced(why: &impl std::fmt::Display) -> String {
    format!(
        "guest-image: WARNING: this guest is built with what Debian's archive has now, not as guest-images/linux/packages.lock \
         says, so that it differs from others ({why})"
    )
}

/// Fetches a package into `work` and verifies it.
fn fetch(work: &Path, package: &Package) -> Result<PathBuf, Error> {
    let title = format!("{} {}", package.name, package.version);
    eprintln!("guest-image: fetching {title}");
    let name = format!("{}={}", package.name, package.version);
    Apt::with_lists(work, |apt| apt.download(&name)).map_err(|reason| Error::Unavailable {
        package: title.clone(),
        reason,
    })?;
    let file = fs::read_dir(work)
        .map_err(cache_error(work))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .ok_or_else(|| Error::Unavailable {
            package: title.clone(),
            reason: "apt-get download left no package".to_owned(),
        })?;
    verify(&file, package)?;
    Ok(file)
}

fn verify(file: &Path, package: &Package) -> Result<(), Error> {
    let mut hash = Sha256::new();
    let mut bytes = File::open(file).map_err(cache_error(file))?;
    io::copy(&mut bytes, &mut hash).map_err(cache_error(file))?;
    let found = format!("{:x}", hash.finalize());
    if found == package.sha256 {
        return Ok(());
    }
    Err(Error::Hash {
        package: format!("{} {}", package.name, package.version),
        expected: package.sha256.clone(),
        found,
    })
}

fn roots(apt: &Apt<'_>, set: Set) -> Result<Vec<String>, String> {
    Ok(match set {
        Set::Base => {
            let listing = apt.cache(&["depends", META_PACKAGE])?;
            let kernel = concrete_package(&listing).ok_or_else(|| format!("{META_PACKAGE} names no kernel"))?;
            vec![kernel.to_owned(), "busybox-static".to_owned()]
        }
        Set::Redis => vec!["redis-server".to_owned()],
        Set::Nginx => vec!["nginx".to_owned()],
        Set::Sqlite => vec!["sqlite3".to_owned()],
    })
}

/// The packages of a set, by name: its roots and what they need. The kernel needs only what installs it.
fn resolve(apt: &Apt<'_>, set: Set) -> Result<Vec<Package>, String> {
    let mut found: BTreeMap<String, Package> = BTreeMap::new();
    let mut wanted: Vec<Vec<String>> = roots(apt, set)?.into_iter().map(|name| vec![name]).collect();
    while let Some(alternatives) = wanted.pop() {
        let settled = |name: &String| found.contains_key(name) || NOT_NEEDED.contains(&name.as_str());
        if alternatives.iter().any(settled) {
            continue;
        }
        let described = alternatives.iter().find_map(|name| {
            let text = apt.cache(&["show", "--no-all-versions", name]).ok()?;
            description(&text)
        });
        let (package, needs) = described.ok_or_else(|| format!("the archive has none of {alternatives:?}"))?;
        found.insert(package.name.clone(), package);
        if found.len() > MAX_PACKAGES {
            return Err(format!(
                "more than {MAX_PACKAGES} packages are needed: {:?}",
                found.keys()
            ));
        }
        if set != Set::Base {
            wanted.extend(needs);
        }
    }
    Ok(found.into_values().collect())
}

/// Reads what `apt-cache show` prints about a package: the package, and its dependencies, each with its alternatives.
fn description(text: &str) -> Option<(Package, Vec<Vec<String>>)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::to_owned)
    };
    let package = Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
        sha256: field("SHA256")?,
    };
    let needs = [field("Pre-Depends"), field("Depends")].into_iter().flatten();
    let needs = needs.flat_map(|list| list.split(", ").map(alternatives).collect::<Vec<_>>());
    Some((package, needs.collect()))
}

/// The names in `a (>= 1) | b:any`.
fn alternatives(dependency: &str) -> Vec<String> {
    let name = |text: &str| text.trim().split([' ', ':']).next().unwrap_or_default().to_owned();
    dependency.split('|').map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_packages_are_understood() {
        let text = "Package: a\nVersion: 1:2-3\nArchitecture: amd64\nPre-Depends: b (>= 1)\n\
                    Depends: c:any | d (= 2), e\nSHA256: 00\nDescription: x\n";
        let (package, needs) = description(text).unwrap();
        assert_eq!(package.to_string(), "a 1:2-3 amd64 00");
        let names: Vec<Vec<&str>> = needs
            .iter()
            .map(|one| one.iter().map(String::as_str).collect())
            .collect();
        assert_eq!(names, [vec!["b"], vec!["c", "d"], vec!["e"]]);
        assert_eq!(description("Package: a\nVersion: 1\n"), None);
    }

    #[test]
    fn only_the_locked_bytes_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.deb");
        let mut package = description("Package: a\nVersion: 1\nArchitecture: all\nSHA256: \n")
            .unwrap()
            .0;
        // SHA-256 of "abc": FIPS 180-4's example.
        package.sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        fs::write(&file, "abc").unwrap();
        verify(&file, &package).unwrap();
        fs::write(&file, "abd").unwrap();
        let error = verify(&file, &package).unwrap_err().to_string();
        assert!(error.contains("a 1") && error.contains(&package.sha256), "{error}");
    }

    #[test]
    fn what_replaced_a_locked_version_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let lock = |name: &str| {
            let sha256 = format!("{:x}", Sha256::digest(name));
            let text = format!("Package: {name}\nVersion: 1\nArchitecture: all\nSHA256: {sha256}\n");
            Lock::new(BTreeMap::from([(Set::Base, vec![description(&text).unwrap().0])]))
        };
        let (old, new) = (lock("old"), lock("new"));
        let unpacked = |lock: &Lock| {
            let package = lock.packages(&[Set::Base]).unwrap()[0].clone();
            dir.path().join(format!("{}-{}", package.name, &package.sha256[..16]))
        };
        // Both are in the cache, so that nothing is asked of the archive.
        fs::create_dir(unpacked(&old)).unwrap();
        assert_eq!(store.available(old.clone(), &[Set::Base]).unwrap(), old);
        fs::create_dir(unpacked(&new)).unwrap();
        let instead = dir.path().join(format!("instead-of-{:.16}.lock", old.fingerprint()));
        fs::write(instead, new.to_string()).unwrap();
        assert_eq!(store.available(old, &[Set::Base]).unwrap(), new);
        assert_eq!(store.available(new.clone(), &[Set::Base]).unwrap(), new);
    }
}
