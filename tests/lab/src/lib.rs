//! Tests of the whole, and what they share.
//!
//! [`nested`] boots machines with `/dev/kvm` where there is none. [`kvm_test!`] declares a test that needs KVM: it runs
//! here if this machine has a KVM that works, and otherwise by itself in a nested host. Either way it runs, or fails
//! saying what is missing; it never passes unrun. The emulated machine is slow, so tests scale the times they wait for
//! with [`scaled`], and find the program under test with [`ftvm`]. [`linux`] builds the Linux guest.

#![forbid(unsafe_code)]

pub mod arbiter;
pub mod dm;
pub mod etcd;
pub mod failover;
pub mod ft_host;
pub mod kv;
pub mod kvm;
pub mod linux;
pub mod lio;
pub mod nested;
pub mod pair;
pub mod soak;
pub mod stage;
pub mod tap;
pub mod tun;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much slower the nested host may be than a machine with KVM. Its exits cost about the same as a software KVM's,
/// but a signal can take 7.5 ms to reach its vCPU, and its Linux guests take 10 s to boot.
const NESTED_TIME_FACTOR: u32 = 10;

/// By how much a time that a test waits for is to be multiplied: 1 on this machine's KVM, more in a nested host.
pub fn time_factor() -> u32 {
    if kvm::inside_nested_host() {
        NESTED_TIME_FACTOR
    } else {
        1
    }
}

/// A time that a test waits for, stated for a machine with KVM, as it should be here.
pub fn scaled(time: Duration) -> Duration {
    time * time_factor()
}

/// The `ftvm` program under test: `$FTVM_BIN`, or what cargo built beside this test.
///
/// # Errors
/// Fails when it is not there; the error says how to build it.
pub fn ftvm() -> Result<PathBuf, String> {
    env::var_os(kvm::FTVM_BIN).map_or_else(|| program("ftvm", "vmm"), |given| there(given.into(), "ftvm", "vmm"))
}

/// A program of this workspace that cargo built beside this test, from package `package`.
///
/// # Errors
/// Fails when it is not there; the error says how to build it.
pub fn program(name: &str, package: &str) -> Result<PathBuf, String> {
    let own = env::current_exe().map_err(|e| e.to_string())?;
    let folder =
        profile_folder(&own).ok_or_else(|| format!("this test was not built by cargo; set FTVM_BIN for {name}"))?;
    there(folder.join(name), name, package)
}

fn there(found: PathBuf, name: &str, package: &str) -> Result<PathBuf, String> {
    if found.is_file() {
        return Ok(found);
    }
    let release = if found.components().any(|part| part.as_os_str() == "debug") {
        ""
    } else {
        " --release"
    };
    Err(format!(
        "the program {name} is not at {}: build it with `cargo build{release} -p {package} --bin {name}`",
        found.display()
    ))
}

/// `…/release` for `…/release/deps/test-0123` and for `…/release/program`.
fn profile_folder(executable: &Path) -> Option<&Path> {
    let folder = executable.parent()?;
    if folder.ends_with("deps") {
        folder.parent()
    } else {
        Some(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_beside_tests_and_programs() {
        for executable in ["/t/release/deps/test-01", "/t/release/nested-host"] {
            assert_eq!(profile_folder(Path::new(executable)), Some(Path::new("/t/release")));
        }
    }
}
