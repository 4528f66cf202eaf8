//! Why a demo ends without having shown what it is for.

use std::io;
use std::path::PathBuf;

use ftvm_host::entropy::EntropyError;

use super::act::ActError;
use super::folder::FolderError;
use super::nested::NestedError;

/// Why `ftvm demo` failed; the text is for the user.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A lease that outlives the detection time would make a backup wait for a primary it has given up. Milliseconds.
    #[error("--lease {lease} ms must not exceed --detection {detection} ms")]
    LeaseOverDetection { lease: u64, detection: u64 },
    /// Ctrl-C, SIGTERM or SIGHUP.
    #[error("interrupted")]
    Interrupted,
    /// A kill was not survived, or could not be made.
    #[error(transparent)]
    Run(#[from] RunError),
    /// There is no place for a run.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There is no KVM, here or in an emulated host.
    #[error(transparent)]
    Kvm(#[from] NestedError),
    /// For the kill points.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// Ctrl-C would leave processes behind.
    #[error("cannot watch for signals: {0}")]
    Signals(#[source] io::Error),
    /// Nobody would see what came of it.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[from] io::Error),
    /// The summary has no JSON form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What went wrong with one of the runs.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The connection broke, or a write that was acknowledged is not there.
    #[error("run {number} broke its promise. Everything is kept in {}", .kept.display())]
    BrokenPromise { number: u32, kept: PathBuf },
    /// It did not come that far.
    #[error("run {number}: {source}{}\nEverything is kept in {}", .source.advice(), .kept.display())]
    NotPerformed {
        number: u32,
        kept: PathBuf,
        source: ActError,
    },
}
