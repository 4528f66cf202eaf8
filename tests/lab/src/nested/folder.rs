//! The folder of a run, in the cache: the image and the sockets of its channels.
//!
//! It is locked as long as the run lives. So the next run can tell what one that was killed left behind, and remove it:
//! an image has tens of megabytes.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A folder of its own for a run; removed when dropped.
#[derive(Debug)]
pub(super) struct Folder {
    temporary: tempfile::TempDir,
    _alive: File,
}

impl Folder {
    const PREFIX: &str = "run-";

    pub(super) fn new(cache: &Path) -> io::Result<Self> {
        // Nobody may look at a folder between its creation and its locking.
        let creation = File::create(cache.join("lock"))?;
        creation.lock()?;
        for entry in fs::read_dir(cache)? {
            let entry = entry?;
            let of_a_run = entry.file_name().as_bytes().starts_with(Self::PREFIX.as_bytes());
            // A run that ends just now removes its folder itself.
            if of_a_run && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let temporary = tempfile::Builder::new().prefix(Self::PREFIX).tempdir_in(cache)?;
        let alive = File::open(temporary.path())?;
        alive.lock()?;
        Ok(Self {
            temporary,
            _alive: alive,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.temporary.path()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn only_what_dead_runs_left_is_removed() {
        let cache = tempfile::tempdir().unwrap();
        let names = || -> Vec<OsString> {
            fs::read_dir(&cache)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect()
        };
        fs::create_dir(cache.path().join("kernel")).unwrap();
        let living = Folder::new(cache.path()).unwrap();
        fs::create_dir(cache.path().join("run-dead")).unwrap();
        fs::write(cache.path().join("run-dead/image"), "").unwrap();
        assert_eq!(names().len(), 4, "kernel, lock, and two of runs: {:?}", names());
        let next = Folder::new(cache.path()).unwrap();
        assert!(living.path().exists() && next.path().exists());
        assert!(!names().contains(&"run-dead".into()));
        drop((living, next));
        assert_eq!(names().len(), 2);
    }
}
