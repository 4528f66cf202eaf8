//! How users name the storage that decides who may live.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::etcd::ENDPOINTS;
use super::{Arbiter, ArbiterError, Endpoint, Etcd, SharedDirectory, SharedLun};

/// What `--shared` says: a directory, `scsi:/dev/DEVICE` or `etcd:http://HOST:PORT[,http://HOST:PORT...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A directory on a shared file system.
    Directory(PathBuf),
    /// A SCSI disk or partition that is ftvm's alone.
    Scsi(PathBuf),
    /// An etcd cluster, by some of its members.
    Etcd(Vec<Endpoint>),
}

impl Storage {
    /// The register of `guest`. Touches nothing yet.
    ///
    /// # Errors
    /// When `guest` is no plain name: 1 to 64 letters, digits, `.`, `-` or `_`, not beginning with a dot.
    pub fn open(&self, guest: &str) -> Result<Arc<dyn Arbiter>, ArbiterError> {
        Ok(match self {
            Storage::Directory(path) => Arc::new(SharedDirectory::new(path, guest)?),
            Storage::Scsi(path) => Arc::new(SharedLun::new(path, guest)?),
            Storage::Etcd(endpoints) => Arc::new(Etcd::new(endpoints.clone(), guest)?),
        })
    }
}

impl FromStr for Storage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(device) = text.strip_prefix("scsi:") {
            if !device.starts_with("/dev/") {
                return Err(format!("'{text}' names no device: write scsi:/dev/disk/by-id/..."));
            }
            return Ok(Storage::Scsi(device.into()));
        }
        if let Some(endpoints) = text.strip_prefix("etcd:") {
            let endpoints: Vec<Endpoint> = endpoints.split(',').map(str::parse).collect::<Result<_, String>>()?;
            if endpoints.len() > ENDPOINTS {
                return Err(format!(
                    "{} etcd endpoints are given, {ENDPOINTS} at most are used",
                    endpoints.len()
                ));
            }
            return Ok(Storage::Etcd(endpoints));
        }
        if text.is_empty() || text.starts_with("http://") || text.starts_with("https://") {
            return Err(format!(
                "'{text}' is no storage: a directory, scsi:/dev/DEVICE or etcd:http://HOST:PORT is one"
            ));
        }
        if text.starts_with("/dev/") {
            return Err(format!("'{text}' is no directory; a device is given as scsi:{text}"));
        }
        Ok(Storage::Directory(text.into()))
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Directory(path) => write!(f, "{}", path.display()),
            Storage::Scsi(path) => write!(f, "scsi:{}", path.display()),
            Storage::Etcd(endpoints) => {
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
            let storage: Storage = text.parse().unwrap();
            assert_eq!(storage.to_string(), text);
            assert!(storage.open("guest").is_ok() && storage.open("../x").is_err());
        }
        assert_eq!("/mnt".parse(), Ok(Storage::Directory("/mnt".into())));
        assert_eq!("scsi:/dev/sda".parse(), Ok(Storage::Scsi("/dev/sda".into())));
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
            let error = text.parse::<Storage>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many = |count: usize| format!("etcd:{}", vec!["http://a:1"; count].join(","));
        assert!(many(16).parse::<Storage>().is_ok() && many(17).parse::<Storage>().is_err());
    }
}
