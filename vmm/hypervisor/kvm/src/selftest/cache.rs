//! Remembers the start-up self-test for as long as the host is up.
//!
//! The file is bound to this boot, this program's version and the KVM modules with their parameters. It lies in a
//! folder of the user's own where there is one; elsewhere only a file that belongs to this user and that nobody else
//! can write is believed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Capabilities;

/// No self-test says more than this.
const MAX_BYTES: u64 = 64 * 1024;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MODULES: &str = "/sys/module";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    identity: Identity,
    capabilities: Capabilities,
}

/// What the result is valid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    boot_id: String,
    program: String,
    /// KVM's modules with their parameters, sorted.
    modules: Vec<String>,
}

impl Identity {
    fn now() -> Option<Self> {
        let boot_id = fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Some(Identity {
            boot_id,
            program,
            modules: kvm_modules(Path::new(MODULES)),
        })
    }
}

fn kvm_modules(modules: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(modules) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("kvm") {
            continue;
        }
        found.push(name.clone());
        for parameter in fs::read_dir(entry.path().join("parameters"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let value = fs::read_to_string(parameter.path()).unwrap_or_default();
            found.push(format!(
                "{name}.{}={}",
                parameter.file_name().to_string_lossy(),
                value.trim()
            ));
        }
    }
    found.sort();
    found
}

fn user_id() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn file() -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute());
    let folder = folder.unwrap_or_else(|| {
        if user_id() == 0 {
            PathBuf::from("/run")
        } else {
            std::env::temp_dir()
        }
    });
    folder.join(format!("ftvm-selftest-{}.json", user_id()))
}

/// The result of an earlier test that still holds.
pub(super) fn load() -> Option<Capabilities> {
    load_from(&file(), &Identity::now()?)
}

/// Keeps `capabilities` for the next start. Where the file cannot be written, each start tests anew.
pub(super) fn store(capabilities: &Capabilities) {
    let Some(identity) = Identity::now() else { return };
    let file = file();
    if let Err(error) = store_to(&file, &identity, capabilities) {
        tracing::debug!(file = %file.display(), %error, "the self-test's result is not kept");
    }
}

fn load_from(path: &Path, identity: &Identity) -> Option<Capabilities> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let private = metadata.is_file() && metadata.uid() == user_id() && metadata.mode() & 0o022 == 0;
    if !private || metadata.len() > MAX_BYTES {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let remembered: Remembered = serde_json::from_slice(&bytes).ok()?;
    (remembered.identity == *identity).then_some(remembered.capabilities)
}

fn store_to(path: &Path, identity: &Identity, capabilities: &Capabilities) -> std::io::Result<()> {
    let remembered = Remembered {
        identity: identity.clone(),
        capabilities: capabilities.clone(),
    };
    let bytes = serde_json::to_vec(&remembered).map_err(std::io::Error::other)?;
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(&bytes)?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use ftvm_hypervisor::CpuError;

    fn capabilities() -> Capabilities {
        Capabilities::without_kvm(&CpuError::Unsupported("for the test".into()))
    }

    fn identity() -> Identity {
        Identity {
            boot_id: "one".into(),
            program: "1".into(),
            modules: vec!["kvm".into()],
        }
    }

    #[test]
    fn a_result_holds_for_the_same_boot_program_and_modules_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.json");
        assert_eq!(load_from(&path, &identity()), None);
        store_to(&path, &identity(), &capabilities()).unwrap();
        assert_eq!(load_from(&path, &identity()), Some(capabilities()));
        for changed in [
            Identity {
                boot_id: "two".into(),
                ..identity()
            },
            Identity {
                program: "2".into(),
                ..identity()
            },
            Identity {
                modules: vec!["kvm".into(), "kvm.npt=0".into()],
                ..identity()
            },
        ] {
            assert_eq!(load_from(&path, &changed), None, "{changed:?}");
        }
        store_to(&path, &identity(), &capabilities()).expect("replaces an older result");
    }

    #[test]
    fn a_file_that_others_could_have_written_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.json");
        store_to(&path, &identity(), &capabilities()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(load_from(&path, &identity()), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(load_from(&link, &identity()), None);
        assert_eq!(load_from(&path, &identity()), Some(capabilities()));
    }

    #[test]
    fn a_damaged_or_endless_file_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.json");
        store_to(&path, &identity(), &capabilities()).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(load_from(&path, &identity()), None, "cut at {length}");
        }
        let mut padded = whole.clone();
        padded.resize(usize::try_from(MAX_BYTES).unwrap(), b' ');
        fs::write(&path, &padded).unwrap();
        assert_eq!(load_from(&path, &identity()), Some(capabilities()));
        padded.push(b' ');
        fs::write(&path, &padded).unwrap();
        assert_eq!(load_from(&path, &identity()), None);
    }

    #[test]
    fn modules_are_listed_with_their_parameters() {
        let folder = tempfile::tempdir().unwrap();
        for parameter in ["kvm_amd/parameters", "kvm", "snd/parameters"] {
            fs::create_dir_all(folder.path().join(parameter)).unwrap();
        }
        fs::write(folder.path().join("kvm_amd/parameters/npt"), "Y\n").unwrap();
        assert_eq!(kvm_modules(folder.path()), ["kvm", "kvm_amd", "kvm_amd.npt=Y"]);
    }
}
