//! Is the share really shared? The primary leaves a nonce in the guest's directory and the joining backup reads it back
//! through its own mount (PROTOCOL 10). Two hosts that look at two directories of the same name would otherwise find
//! out when both have won their test-and-set.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ArbiterError;
use super::directory::{NONCE_PREFIX, SharedDirectory, failed, plain_name, read_bounded};

/// The longest nonce, in bytes.
pub const NONCE_BYTES: usize = 256;

impl SharedDirectory {
    /// Leaves `bytes` (at most [`NONCE_BYTES`]) under `name` for the other host to read through its own mount, so that
    /// a share that is not shared is found when a backup joins (PROTOCOL 10). Replaces an older nonce of that name.
    ///
    /// # Errors
    /// When the name is no plain name (see [`SharedDirectory::new`]), the nonce too long, or the storage fails.
    pub fn write_nonce(&self, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
        let path = self.nonce_path(name)?;
        if bytes.len() > NONCE_BYTES {
            return Err(nonce_too_long(&path));
        }
        let temporary = self.write_temporary(bytes)?;
        fs::rename(&temporary, &path).map_err(|error| failed("rename a temporary file to", &path, &error))?;
        self.sync(self.path())
    }

    /// Reads what the other host wrote under `name`.
    ///
    /// # Errors
    /// As [`SharedDirectory::write_nonce`]; [`ArbiterError::Broken`] when it is not there, for then the two hosts do
    /// not see the same directory.
    pub fn read_nonce(&self, name: &str) -> Result<Vec<u8>, ArbiterError> {
        let path = self.nonce_path(name)?;
        match read_bounded(&path, NONCE_BYTES + 1) {
            Ok(bytes) if bytes.len() > NONCE_BYTES => Err(nonce_too_long(&path)),
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ArbiterError::Broken {
                what: format!("the primary wrote {} but this host does not see it", path.display()),
                advice: "Mount the same file system on both hosts and give both the same shared directory",
            }),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Removes the nonce `name`; one that is not there is removed already.
    ///
    /// # Errors
    /// As [`SharedDirectory::write_nonce`].
    pub fn remove_nonce(&self, name: &str) -> Result<(), ArbiterError> {
        let path = self.nonce_path(name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    fn nonce_path(&self, name: &str) -> Result<PathBuf, ArbiterError> {
        plain_name("nonce", name)?;
        Ok(self.path().join(format!("{NONCE_PREFIX}{name}")))
    }
}

fn nonce_too_long(path: &Path) -> ArbiterError {
    ArbiterError::Broken {
        what: format!("nonce {} is longer than {NONCE_BYTES} bytes", path.display()),
        advice: "It was not written by ftvm: give ftvm a shared directory of its own",
    }
}
