//! Programs of this machine: where they are, and what to install when they are not.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where programs may be beside `$PATH`: an ordinary user's `$PATH` lacks `ip` and its like.
const MORE_FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Debian's packages for the programs that the tests use.
const PACKAGES: [(&str, &str); 16] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("setpriv", "util-linux"),
    ("ldd", "libc-bin"),
    ("ip", "iproute2"),
    ("bash", "bash"),
    ("dmsetup", "dmsetup"),
    ("iscsistart", "open-iscsi"),
    ("redis-cli", "redis-tools"),
    ("redis-benchmark", "redis-tools"),
    ("apt-get", "apt"),
    ("xz", "xz-utils"),
    ("dpkg-deb", "dpkg"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
];

/// A program is not on this machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{program} is not on this machine (looked in {looked}): run tests/install-deps, or {advice}")]
pub struct Missing {
    /// Name of the program.
    pub program: String,
    looked: String,
    advice: String,
}

/// Finds a program by its name in `$PATH` and in the folders of system tools.
///
/// # Errors
/// Fails when it is in none of them; the error names the package to install.
pub fn find(program: &str) -> Result<PathBuf, Missing> {
    let path = format!("{}:{MORE_FOLDERS}", env::var("PATH").unwrap_or_default());
    let found = env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| is_program(file));
    found.ok_or_else(|| Missing {
        program: program.to_owned(),
        looked: path,
        advice: advice(program),
    })
}

fn is_program(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn advice(program: &str) -> String {
    match PACKAGES.iter().find(|(name, _)| *name == program) {
        Some((_, package)) => format!("`apt-get install {package}`"),
        None => "install the package that has it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_found() {
        assert!(is_program(&find("sh").unwrap()));
    }

    #[test]
    fn a_missing_program_says_what_to_install() {
        let error = find("no-such-program").unwrap_err().to_string();
        assert!(
            error.contains("no-such-program") && error.contains("install the package that has it"),
            "{error}"
        );
        assert_eq!(advice("redis-cli"), "`apt-get install redis-tools`");
    }

    #[test]
    fn a_file_that_cannot_be_executed_is_no_program() {
        assert!(!is_program(Path::new("/etc/passwd")));
        assert!(!is_program(Path::new("/tmp")));
    }
}
