//! The kernel of the nested host: found on this machine, or fetched from Debian's archive.
//!
//! Any Debian kernel with KVM for AMD will do. The *cloud* flavour is fetched because it is small and boots fast under
//! emulation. It is unpacked into the cache and never installed, so neither root nor a boot loader is involved, and apt
//! is told to keep its own files in the cache too.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::apt::{Apt, run};
use super::modules;

/// The package that names the current kernel package of the flavour.
pub(crate) const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// A kernel without one of these is passed over.
pub(super) const REQUIRED_MODULES: [&str; 3] = ["kvm_amd", "virtio_pci", "virtio_console"];
/// What can go wrong while looking for a kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the cache cannot be used.
    #[error("nested host's cache, {path}: {source}; FTVM_CACHE=DIR chooses another place")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The failure itself.
        source: io::Error,
    },
    /// No kernel is on this machine, and none could be fetched.
    #[error(
        "no kernel for the nested host: none with the modules {REQUIRED_MODULES:?} in {looked}, and fetching Debian's \
         failed: {reason}. Install one with `apt-get install {META_PACKAGE}`"
    )]
    Unavailable {
        /// Where kernels were looked for.
        looked: String,
        /// Why fetching failed.
        reason: String,
    },
}

/// A kernel and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The folder `…/lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Finds a kernel in `cache` or installed on this machine, or fetches one into `cache`. Whoever comes while another
    /// process fetches waits for it.
    ///
    /// # Errors
    /// Fails when there is none and none can be fetched, or when the cache cannot be written.
    pub fn find_or_fetch(cache: &Path) -> Result<Self, Error> {
        let unpacked = cache.join("kernel");
        let places = [unpacked.as_path(), Path::new("/")];
        let failed = |source| Error::Cache {
            path: cache.to_owned(),
            source,
        };
        fs::create_dir_all(cache).map_err(failed)?;
        let lock = File::create(cache.join("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        if let Some(kernel) = places.iter().find_map(|root| Self::find(root)) {
            return Ok(kernel);
        }
        let unavailable = |reason| Error::Unavailable {
            looked: format!("{} or /boot and /lib/modules", unpacked.display()),
            reason,
        };
        fetch(cache, &unpacked).map_err(unavailable)?;
        Self::find(&unpacked).ok_or_else(|| unavailable(format!("the package has no such kernel: {unpacked:?}")))
    }

    /// The best kernel under `root` that this process can read and that has what the nested host needs: Debian's cloud
    /// flavour before others, then the last name.
    fn find(root: &Path) -> Option<Self> {
        let mut versions: Vec<String> = fs::read_dir(root.join("boot"))
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
            .collect();
        versions.sort_by_key(|version| (version.contains("cloud"), version.clone()));
        versions.iter().rev().find_map(|version| {
            let image = root.join(format!("boot/vmlinuz-{version}"));
            File::open(&image).ok()?;
            ["lib/modules", "usr/lib/modules"]
                .map(|dir| root.join(dir).join(version))
                .into_iter()
                .find(|dir| modules::in_load_order(dir, &REQUIRED_MODULES).is_ok())
                .map(|modules| Self {
                    image: image.clone(),
                    modules,
                })
        })
    }
}

/// Fetches the kernel's package and unpacks it to `target`, which appears only when it is complete.
fn fetch(cache: &Path, target: &Path) -> Result<(), String> {
    eprintln!("nested host: fetching Debian's kernel into {} (once)", target.display());
    let work = cache.join("fetch");
    let _ = fs::remove_dir_all(&work);
    let inside = |e: io::Error| format!("{}: {e}", work.display());
    fs::create_dir_all(&work).map_err(inside)?;
    Apt::with_lists(&work, download)?;
    let package = fs::read_dir(&work)
        .map_err(inside)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .ok_or("apt-get download left no package")?;
    run(&work, "dpkg-deb", &["-x", &package.to_string_lossy(), "unpacked"])?;
    let _ = fs::remove_dir_all(target);
    fs::rename(work.join("unpacked"), target).map_err(inside)?;
    fs::remove_dir_all(&work).map_err(inside)
}

fn download(apt: &Apt<'_>) -> Result<(), String> {
    let listing = apt.cache(&["depends", META_PACKAGE])?;
    let package = concrete_package(&listing).ok_or_else(|| format!("{META_PACKAGE} is not in the package lists"))?;
    apt.download(package)
}

/// The kernel package that the listing of `apt-cache depends` names.
pub(crate) fn concrete_package(listing: &str) -> Option<&str> {
    listing
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(root: &Path, version: &str, modules: &[&str]) {
        let tree = root.join("lib/modules").join(version);
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join(format!("boot/vmlinuz-{version}")), "").unwrap();
        fs::write(tree.join("modules.builtin"), "").unwrap();
        for module in modules {
            fs::write(tree.join(format!("{module}.ko")), "").unwrap();
        }
    }

    #[test]
    fn the_cloud_flavour_wins_if_it_has_the_modules() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Kernel::find(root.path()), None);
        installed(root.path(), "6.1.0-9-cloud-amd64", &REQUIRED_MODULES[..2]);
        assert_eq!(Kernel::find(root.path()), None, "a module is missing");
        installed(root.path(), "6.1.0-8-cloud-amd64", &REQUIRED_MODULES);
        installed(root.path(), "6.1.0-9-rt-amd64", &REQUIRED_MODULES);
        let found = Kernel::find(root.path()).unwrap();
        assert_eq!(found.image, root.path().join("boot/vmlinuz-6.1.0-8-cloud-amd64"));
        assert_eq!(found.modules, root.path().join("lib/modules/6.1.0-8-cloud-amd64"));
    }

    #[test]
    fn the_concrete_package_is_read_from_the_listing() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(concrete_package(listing), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(concrete_package("linux-image-cloud-amd64\n"), None);
        assert_eq!(concrete_package("x\n  Depends: <linux-image>\n"), None);
    }

    #[test]
    fn the_cache_that_cannot_be_made_is_named() {
        let error = Kernel::find_or_fetch(Path::new("/proc/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/proc/nowhere") && error.contains("FTVM_CACHE"),
            "{error}"
        );
    }
}
