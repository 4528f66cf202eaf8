//! How users name the storage that decides who may live.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::etcd::{ENDPOINTS, Etcd};
use super::{Arbiter, ArbiterError, Endpoint, EndpointError, SharedDirectory, SharedLun};

/// What `--shared` says: a directory, `scsi:/dev/DEVICE` or `etcd:http://HOST:PORT[,http://HOST:PORT...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SharedStorage {
    /// A directory on a shared file system.
    Directory(PathBuf),
    /// A SCSI disk or partition that is ftvm's alone.
    Scsi(PathBuf),
    /// An etcd cluster, by some of its members.
    Etcd(Vec<Endpoint>),
}

impl SharedStorage {
    /// The register of `guest`. Touches nothing yet.
    ///
    /// # Errors
    /// When `guest` is no plain name: 1 to 64 letters, digits, `.`, `-` or `_`, not beginning with a dot.
    pub fn open(&self, guest: &str) -> Result<Arc<dyn Arbiter>, ArbiterError> {
        Ok(match self {
            SharedStorage::Directory(path) => Arc::new(SharedDirectory::new(path, guest)?),
            SharedStorage::Scsi(path) => Arc::new(SharedLun::new(path, guest)?),
            SharedStorage::Etcd(endpoints) => Arc::new(Etcd::new(endpoints.clone(), guest)?),
        })
    }
}

/// Why a text names no storage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageNameError {
    /// `scsi:` and no device.
    #[error("'{0}' names no device: write scsi:/dev/disk/by-id/...")]
    NoDevice(String),
    /// A member of the etcd cluster is named wrongly.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// More members than are asked.
    #[error("{0} etcd endpoints are given, {ENDPOINTS} at most are used")]
    Endpoints(usize),
    /// Nothing, or a URL without `etcd:`.
    #[error("'{0}' is no storage: a directory, scsi:/dev/DEVICE or etcd:http://HOST:PORT is one")]
    Nothing(String),
    /// A device without `scsi:`.
    #[error("'{0}' is no directory; a device is given as scsi:{0}")]
    BareDevice(String),
}

impl FromStr for SharedStorage {
    type Err = StorageNameError;

    fn from_str(text: &str) -> Result<Self, StorageNameError> {
        if let Some(device) = text.strip_prefix("scsi:") {
            if !device.starts_with("/dev/") {
                return Err(StorageNameError::NoDevice(text.to_owned()));
            }
            return Ok(SharedStorage::Scsi(device.into()));
        }
        if let Some(endpoints) = text.strip_prefix("etcd:") {
            let endpoints: Vec<Endpoint> = endpoints.split(',').map(str::parse).collect::<Result<_, _>>()?;
            if endpoints.len() > ENDPOINTS {
                return Err(StorageNameError::Endpoints(endpoints.len()));
            }
            return Ok(SharedStorage::Etcd(endpoints));
        }
        if text.is_empty() || text.starts_with("http://") || text.starts_with("https://") {
            return Err(StorageNameError::Nothing(text.to_owned()));
        }
        if text.starts_with("/dev/") {
            return Err(StorageNameError::BareDevice(text.to_owned()));
        }
        Ok(SharedStorage::Directory(text.into()))
    }
}

impl fmt::Display for SharedStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SharedStorage::Directory(path) => write!(f, "{}", path.display()),
            SharedStorage::Scsi(path) => write!(f, "scsi:{}", path.display()),
            SharedStorage::Etcd(endpoints) => {
                let endpoints: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
                write!(f, "etcd:{}", endpoints.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storages_read_as_written() {
        for text in [
            "/mnt/shared",
            "shared",
            "scsi:/dev/disk/by-id/x",
            "etcd:http://a:1,http://[::1]:2",
        ] {
            let storage: SharedStorage = text.parse().unwrap();
            assert_eq!(storage.to_string(), text);
            assert!(storage.open("guest").is_ok() && storage.open("../x").is_err());
        }
        assert_eq!("/mnt".parse(), Ok(SharedStorage::Directory("/mnt".into())));
        assert_eq!("scsi:/dev/sda".parse(), Ok(SharedStorage::Scsi("/dev/sda".into())));
    }

    #[test]
    fn wrong_ones_are_refused_with_the_right_form() {
        for (text, expected) in [
            ("", "is no storage"),
            ("scsi:", "scsi:/dev/"),
            ("scsi:sda", "scsi:/dev/"),
            ("/dev/sda", "scsi:/dev/sda"),
            ("http://a:1", "etcd:http://"),
            ("etcd:", "http://10.0.0.1:2379"),
            ("etcd:http://a:1,", "http://10.0.0.1:2379"),
            ("etcd:a:2379", "http://10.0.0.1:2379"),
            ("etcd:https://a:2379", "without TLS"),
        ] {
            let error = text.parse::<SharedStorage>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = |count: usize| format!("etcd:{}", vec!["http://a:1"; count].join(","));
        assert!(many(16).parse::<SharedStorage>().is_ok() && many(17).parse::<SharedStorage>().is_err());
    }
}
