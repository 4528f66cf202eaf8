//! Is the share really shared? The primary leaves a nonce in the guest's directory, and the joining backup reads it
//! through its own mount (PROTOCOL 10). Two hosts that look at two directories of the same name would otherwise notice
//! only when both have won their test-and-set.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::super::register::{NONCE_BYTES, check_name, check_nonce, no_nonce};
use super::{ArbiterError, NONCE_PREFIX, SharedDirectory, failed};
use crate::textfile::read_bounded;

pub(super) fn write(share: &SharedDirectory, name: &str, bytes: &[u8]) -> Result<(), ArbiterError> {
    let path = path(share, name)?;
    check_nonce(&path.display().to_string(), bytes)?;
    let temporary = share.write_temporary(bytes)?;
    fs::rename(&temporary, &path).map_err(|error| failed("rename a temporary file to", &path, error))?;
    share.sync(share.path())
}

pub(super) fn read(share: &SharedDirectory, name: &str) -> Result<Vec<u8>, ArbiterError> {
    let path = path(share, name)?;
    let place = path.display().to_string();
    match read_bounded(&path, NONCE_BYTES + 1) {
        Ok(bytes) => check_nonce(&place, &bytes).map(|()| bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(no_nonce(
            place,
            "Mount the same file system on both hosts and give both the same shared directory",
        )),
        Err(error) => Err(failed("read", &path, error)),
    }
}

pub(super) fn remove(share: &SharedDirectory, name: &str) -> Result<(), ArbiterError> {
    let path = path(share, name)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, error)),
        _ => Ok(()),
    }
}

fn path(share: &SharedDirectory, name: &str) -> Result<PathBuf, ArbiterError> {
    check_name("nonce", name)?;
    Ok(share.path().join(format!("{NONCE_PREFIX}{name}")))
}
