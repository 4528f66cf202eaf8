//! The folder of one run: disk, sockets, events, and what the processes said.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ftvm_host::entropy::{EntropyError, random_u64};

/// Only its owner looks into a demo.
const MODE: u32 = 0o700;

/// Why a run has no folder.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be made, or is there already.
    #[error("cannot make the folder {}: {source}", .path.display())]
    Make { path: PathBuf, source: std::io::Error },
    /// For its name.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

/// Whether a folder outlives the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeping {
    /// The user asked for it (`--keep`).
    Kept,
    Temporary,
}

/// A run's folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    keeping: Keeping,
}

impl Folder {
    /// A new folder for the try `attempt` (from 1) of run `number`, in `keep` if there is one, otherwise in the system's temporary directory.
    ///
    /// # Errors
    /// If it cannot be made, or `keep` has that run already.
    pub fn create(keep: Option<&Path>, number: u32, attempt: u32) -> Result<Folder, FolderError> {
        let (path, keeping) = match keep {
            Some(keep) if attempt == 1 => (keep.join(format!("run-{number}")), Keeping::Kept),
            Some(keep) => (keep.join(format!("run-{number}-try-{attempt}")), Keeping::Kept),
            None => {
                let name = format!("ftvm-demo-{}-{:08x}", std::process::id(), random_u64()? >> 32);
                (std::env::temp_dir().join(name), Keeping::Temporary)
            }
        };
        let failed = |path: &Path, source| FolderError::Make {
            path: path.to_owned(),
            source,
        };
        if let Some(keep) = keep {
            DirBuilder::new()
                .recursive(true)
                .mode(MODE)
                .create(keep)
                .map_err(|e| failed(keep, e))?;
        }
        DirBuilder::new()
            .mode(MODE)
            .create(&path)
            .map_err(|e| failed(&path, e))?;
        Ok(Folder { path, keeping })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes it, unless the user wants it, or something in it explains a failure.
    pub fn remove_unless(&self, telling: bool) {
        if self.keeping == Keeping::Temporary
            && !telling
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
