//! Builds the Linux guest from Debian's packages: a kernel, an initial RAM file system, and a disk.
//!
//! [`build`] needs neither root nor Debian's tools for images: packages are fetched by apt into a cache, verified
//! against the hashes in `guest-images/linux/packages.lock`, unpacked and never installed. The same packages and
//! sources give the same bytes, because order, owners and times are all set here: a workload that is to be recorded on
//! one day and replayed on another has to run on one and the same guest.
//!
//! Parts: `lock` (which packages), `packages` (resolving, fetching, unpacking), `initrd` and `disk` (what is written),
//! `power_off` and `rdtsc` (programs of the guest's; `executable` is their file).
//! What the guest is and does stands in `guest-images/linux/README.md`.

mod disk;
mod executable;
mod initrd;
pub mod lock;
mod packages;
mod power_off;
mod rdtsc;

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::nested::{cache, cpio, modules, programs};
use lock::{Lock, Set};
use packages::{Store, Unpacked};

/// Sizes of a disk in MiB: all services need 60, and 16 GiB is more than any test writes.
pub const DISK_MIB: RangeInclusive<u32> = 64..=16_384;

/// What can go wrong while the guest is built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not on this machine.
    #[error(transparent)]
    Missing(#[from] programs::Missing),
    /// The lock file does not serve.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// A package is not to be had.
    #[error(transparent)]
    Packages(#[from] packages::Error),
    /// The kernel lacks a module.
    #[error(transparent)]
    Modules(#[from] modules::Error),
    /// The initial RAM file system cannot be written.
    #[error(transparent)]
    Archive(#[from] cpio::Error),
    /// A setting is out of range.
    #[error("{0}")]
    Setting(String),
    /// The disk cannot be written.
    #[error("the Linux guest's disk: {0}")]
    Disk(String),
    /// The operating system refused something.
    #[error("the Linux guest: {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The failure itself.
        source: io::Error,
    },
}

impl Error {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// What to build.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder for the files.
    pub out: PathBuf,
    /// A script that the guest runs when it is up, unless the kernel's command line names a command.
    pub run: Option<PathBuf>,
    /// The disk: none, or its size in MiB (see [`DISK_MIB`]).
    pub disk_mib: Option<u32>,
    /// Services and programs on the disk.
    pub sets: Vec<Set>,
    /// Fail where Debian's archive does not have a locked version any more, instead of building with what it has now.
    pub locked: bool,
}

/// What was built, from the packages that the file `packages.lock` beside it lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The bzImage, `vmlinuz`.
    pub kernel: PathBuf,
    /// The initial RAM file system, `initrd`: an uncompressed cpio archive.
    pub initrd: PathBuf,
    /// The disk, `disk`: a raw ext4 file system without partitions, sparse.
    pub disk: Option<PathBuf>,
}

/// Builds the guest. The files appear in the folder one by one, each only when it is complete.
///
/// # Errors
/// Fails when a setting is out of range, a package is not available (as the lock file says, if `locked`), a program of
/// `tests/install-deps` is missing, or the folder or the cache cannot be written.
pub fn build(settings: &Settings) -> Result<Built, Error> {
    if let Some(mib) = settings.disk_mib.filter(|mib| !DISK_MIB.contains(mib)) {
        let (least, most) = (DISK_MIB.start(), DISK_MIB.end());
        return Err(Error::Setting(format!(
            "expected a disk of {least} to {most} MiB, found {mib}"
        )));
    }
    if settings.disk_mib.is_none() && !settings.sets.is_empty() {
        return Err(Error::Setting("services and programs need a disk to be on".to_owned()));
    }
    let lock = Lock::read(&sources().join("packages.lock"))?;
    let store = Store::open(&cache().join("linux"))?;
    let lock = if settings.locked {
        lock
    } else {
        store.available(lock, &[&[Set::Base], &settings.sets[..]].concat())?
    };
    fs::create_dir_all(&settings.out).map_err(Error::io(&settings.out))?;
    let list = settings.out.join("packages.lock");
    complete(&list, |file| fs::write(file, lock.to_string()).map_err(Error::io(file)))?;
    let base = store.unpack(&lock, &[Set::Base])?;
    let kernel = settings.out.join("vmlinuz");
    complete(&kernel, |file| {
        let image = base.kernel_image()?;
        fs::copy(&image, file).map(drop).map_err(Error::io(image))
    })?;
    let initrd = settings.out.join("initrd");
    complete(&initrd, |file| initrd::write(&base, settings.run.as_deref(), file))?;
    let disk = match settings.disk_mib {
        Some(mib) => Some(write_disk(settings, mib, &store, &lock, &base)?),
        None => None,
    };
    Ok(Built { kernel, initrd, disk })
}

fn write_disk(settings: &Settings, mib: u32, store: &Store, lock: &Lock, base: &Unpacked) -> Result<PathBuf, Error> {
    let disk = settings.out.join("disk");
    let packages = store.unpack(lock, &settings.sets)?;
    complete(&disk, |file| disk::write(base, &packages, &settings.sets, mib, file))?;
    Ok(disk)
}

/// Names of the workloads in the guest: `NAME` is run as `/ftvm/workloads/NAME.sh`.
///
/// # Errors
/// Fails when their folder cannot be read.
pub fn workloads() -> Result<Vec<String>, Error> {
    let files = initrd::workloads()?;
    Ok(files
        .iter()
        .filter_map(|name| name.strip_suffix(".sh"))
        .map(str::to_owned)
        .collect())
}

/// Writes the lock file anew, with the packages that this machine's apt offers now.
///
/// # Errors
/// Fails when apt cannot resolve or fetch a package, or the file cannot be written.
pub fn update_lock() -> Result<Lock, Error> {
    let store = Store::open(&cache().join("linux"))?;
    let lock = store.resolve()?;
    let path = sources().join("packages.lock");
    complete(&path, |file| fs::write(file, lock.to_string()).map_err(Error::io(file)))?;
    Ok(lock)
}

/// The folder of what is in the guest beside packages.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-images/linux")
}

/// Lets `write` fill a file beside `path`, and then moves it there.
fn complete(path: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(folder).map_err(Error::io(folder))?;
    write(temporary.path())?;
    // Readable for all, as a file made without a detour.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(temporary.path(), mode).map_err(Error::io(path))?;
    temporary.persist(path).map(drop).map_err(|e| Error::io(path)(e.error))
}

/// The files below a folder, as paths relative to it, in the order of their names.
fn walk(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        for entry in fs::read_dir(&full).map_err(Error::io(&full))? {
            let entry = entry.map_err(Error::io(&full))?;
            let path = folder.join(entry.file_name());
            if entry.file_type().map_err(Error::io(&full))?.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(Error::io(path))
}
