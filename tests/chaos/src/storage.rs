//! The shared directory of a chaos run, which can be full or gone.
//!
//! Full: a file takes all that is left of its file system, a small tmpfs of its own, so that every write to it fails
//! with ENOSPC. Gone: the directory above it has another name for a while, so that every path to it fails with ENOENT, as
//! with a share that is not mounted. A file server that hangs is another matter, which the simulator has.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room for the test-and-set's files: one of a page for every generation.
const SIZE: &str = "size=8m";

/// The directory. It is taken down when this is dropped.
#[derive(Debug)]
pub struct Storage {
    above: PathBuf,
    away: PathBuf,
    mounted: bool,
}

impl Storage {
    /// An empty one below `folder`.
    ///
    /// # Errors
    /// A sentence, if it cannot be made.
    pub fn new(folder: &Path) -> Result<Self, String> {
        let mut storage = Storage {
            above: folder.join("storage"),
            away: folder.join("storage-away"),
            mounted: false,
        };
        let shared = storage.shared();
        fs::create_dir_all(&shared).map_err(|e| format!("{}: {e}", shared.display()))?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "tmpfs"])
            .arg(&shared)
            .output();
        storage.mounted = mounted.is_ok_and(|output| output.status.success());
        Ok(storage)
    }

    /// What `--shared` names.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.above.join("shared")
    }

    /// Whether it can be filled: that needs a file system of its own, and so root.
    #[must_use]
    pub fn can_be_full(&self) -> bool {
        self.mounted
    }

    fn filler(&self) -> PathBuf {
        self.shared().join("filler")
    }

    /// Takes all the room.
    ///
    /// # Errors
    /// If that fails otherwise than for want of room.
    pub fn fill(&self) -> io::Result<()> {
        let mut file = File::create(self.filler())?;
        loop {
            match file.write_all(&[0; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// If the file is not there.
    pub fn empty(&self) -> io::Result<()> {
        fs::remove_file(self.filler())
    }

    /// Takes the directory away.
    ///
    /// # Errors
    /// If it is away.
    pub fn take_away(&self) -> io::Result<()> {
        fs::rename(&self.above, &self.away)
    }

    /// Brings it back.
    ///
    /// # Errors
    /// If it is not away.
    pub fn bring_back(&self) -> io::Result<()> {
        fs::rename(&self.away, &self.above)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // It may be away, if the run ended early.
        let _ = self.bring_back();
        if self.mounted {
            // A mount that stays is said by whoever removes the folder.
            let _ = Command::new("umount").arg(self.shared()).output();
        }
    }
}
