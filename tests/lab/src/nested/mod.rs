//! A nested host: a Linux machine with `/dev/kvm`, emulated by QEMU, for tests on machines that have no KVM.
//!
//! [`Host::locate`] finds or fetches what is needed, [`Host::start`] boots a fresh machine, whose whole world is an
//! image in memory, and runs one command in it as root; [`Running::wait`] says how that ended. A machine takes about
//! five seconds to boot. Several may run at once. Everything written goes to the cache: `$FTVM_CACHE`, or
//! `nested-host` in cargo's target folder.
//!
//! Parts: `kernel` and `modules` (what boots), `cpio` and `image` (what it finds), `qemu` (the machine), `channel`
//! (bytes in and out), `share` (folders that several hosts have), `run` (from start to outcome).

pub(crate) mod apt;
mod channel;
pub mod cpio;
mod folder;
pub mod image;
pub mod kernel;
pub mod modules;
pub mod programs;
mod qemu;
mod run;
mod share;

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

pub use channel::Capture;
pub use qemu::Nic;
pub use run::{Outcome, Run, Running, Streams};
pub use share::Share;

/// What can go wrong with a nested host. The exit code of the command is not among it: see [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not on this machine.
    #[error(transparent)]
    Missing(#[from] programs::Missing),
    /// There is no kernel to boot.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The kernel lacks a module.
    #[error(transparent)]
    Modules(#[from] modules::Error),
    /// The image cannot be built.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// A setting is out of range.
    #[error("{0}")]
    Setting(String),
    /// The operating system refused something.
    #[error("nested host: cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The failure itself.
        source: io::Error,
    },
    /// The kernel did not come up.
    #[error("the nested host did not boot within {after:?}; its console ends with:\n{console}")]
    Boot {
        /// How long it was given.
        after: Duration,
        /// Last lines of the kernel's console.
        console: String,
    },
    /// The command ran longer than it may.
    #[error(
        "timeout: the command in the nested host was still running after {after:?}; the console ends with:\n{console}"
    )]
    Timeout {
        /// How long it was given.
        after: Duration,
        /// Last lines of the kernel's console.
        console: String,
    },
    /// The kernel panicked.
    #[error("the kernel of the nested host panicked:\n{console}")]
    Panic {
        /// Last lines of the kernel's console.
        console: String,
    },
    /// QEMU ended before the command did: a bad command line, a shutdown inside, or a signal.
    #[error("QEMU ended ({status}) before the command did; it said:\n{said}\nthe console ends with:\n{console}")]
    Qemu {
        /// How QEMU ended.
        status: ExitStatus,
        /// What QEMU wrote to its stderr.
        said: String,
        /// Last lines of the kernel's console.
        console: String,
    },
    /// The command ended, but what it wrote did not arrive.
    #[error("the command in the nested host ended ({ended}), but then no more of its output arrived for {after:?}")]
    Incomplete {
        /// The report of how it ended.
        ended: String,
        /// How long nothing arrived.
        after: Duration,
    },
    /// Something other than a report came on the control channel.
    #[error("expected a report on the nested host's control channel, found {0:?}")]
    Control(String),
    /// What the command wrote cannot be written here.
    #[error("cannot write the nested host's {channel}: {reason}")]
    Output {
        /// `stdout`, `stderr` or `out`.
        channel: &'static str,
        /// The failure itself.
        reason: String,
    },
}

/// What is needed to boot nested hosts on this machine.
#[derive(Debug, Clone)]
pub struct Host {
    kernel: kernel::Kernel,
    cache: PathBuf,
}

impl Host {
    /// Finds QEMU, its helpers and a kernel; fetches the kernel if there is none.
    ///
    /// # Errors
    /// Fails when something is missing; the error says what to install.
    pub fn locate() -> Result<Self, Error> {
        for program in ["qemu-system-x86_64", "setpriv", "busybox", "ldd"] {
            programs::find(program)?;
        }
        let cache = cache();
        let kernel = kernel::Kernel::find_or_fetch(&cache)?;
        Ok(Self { kernel, cache })
    }

    /// The bzImage of the kernel that machines run.
    #[must_use]
    pub fn kernel_image(&self) -> &Path {
        &self.kernel.image
    }

    /// Boots a machine and starts the command in it. The machine ends with the calling thread, at the latest.
    ///
    /// # Errors
    /// Fails when a setting is out of range, the image cannot be built, or QEMU cannot be started.
    pub fn start(&self, run: &Run, streams: Streams) -> Result<Running, Error> {
        Running::start(&self.kernel, &self.cache, run, streams)
    }
}

/// Folder for everything that nested hosts write.
pub fn cache() -> PathBuf {
    let from = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let target =
        || from("CARGO_TARGET_DIR").unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    from("FTVM_CACHE").unwrap_or_else(|| target().join("nested-host"))
}

/// Whom a nested host can stand beside itself on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nobody: it measures times, or needs more than one processor.
    Alone,
    /// Others like it: what it shows does not depend on how fast it runs.
    Shared,
}

/// Waits until this machine is free for a nested host, as far as `turn` asks, and then has it until the file is dropped.
/// Nextest's configuration sees to that within one run; `cargo test` has nothing of the kind.
///
/// # Errors
/// Fails when the cache cannot be written.
pub fn take_turn(turn: Turn) -> Result<File, Error> {
    let cache = cache();
    let file = fs::create_dir_all(&cache).and_then(|()| File::create(cache.join("turn")));
    let taken = file.and_then(|file| {
        match turn {
            Turn::Alone => file.lock(),
            Turn::Shared => file.lock_shared(),
        }
        .map(|()| file)
    });
    taken.map_err(|source| Error::Io {
        what: format!("lock the file `turn` in {}", cache.display()),
        source,
    })
}
