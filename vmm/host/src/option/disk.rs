//! `--disk path=FILE[,...]`

use std::path::{Path, PathBuf};
use std::str::FromStr;

use shared_disk::image::{Caching, ImageAccess};

use super::{KeyValues, OptionError};

const KEYS: &[&str] = &["path", "readonly", "direct", "reserve", "private", "mark"];

/// `path=FILE[,readonly=on|off][,direct=on|off][,reserve=on|off][,private=on|off][,mark=FILE]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    /// A raw image, or a block device.
    pub path: PathBuf,
    pub kind: DiskKind,
}

/// Who else reaches a disk, and what follows from that. There are no other combinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// `readonly=on`: nobody writes to it, and both hosts have the same content.
    ReadOnly { caching: Caching },
    /// Both hosts reach it, and the live side writes.
    Shared { caching: Caching },
    /// `reserve=on`: the same with a SCSI-3 persistent reservation, so that the device itself lets only the live side write
    /// (PROTOCOL 14). Never cached: a write that waits in a host's memory is one that no device can refuse.
    Reserved,
    /// `private=on`: each host has an image of its own, which are kept level (PROTOCOL 8).
    Private {
        caching: Caching,
        /// Where to note how new the image is, if not in `FILE.ftvm`.
        mark: Option<PathBuf>,
    },
}

impl DiskOption {
    /// Whether the host's page cache is used. Without it (O_DIRECT) a write is where the other host reads it (PROTOCOL 8);
    /// with it (`direct=off`) disks work on file systems that have no O_DIRECT.
    #[must_use]
    pub fn caching(&self) -> Caching {
        match self.kind {
            DiskKind::ReadOnly { caching } | DiskKind::Shared { caching } | DiskKind::Private { caching, .. } => {
                caching
            }
            DiskKind::Reserved => Caching::Direct,
        }
    }

    /// What the guest may do with it.
    #[must_use]
    pub fn access(&self) -> ImageAccess {
        match self.kind {
            DiskKind::ReadOnly { .. } => ImageAccess::ReadOnly,
            DiskKind::Shared { .. } | DiskKind::Reserved | DiskKind::Private { .. } => ImageAccess::ReadWrite,
        }
    }

    /// Whether each host has an image of its own.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self.kind, DiskKind::Private { .. })
    }

    /// Whether the device is to keep other hosts from writing.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.kind == DiskKind::Reserved
    }

    /// The `mark=` of a private disk, if it was given one.
    #[must_use]
    pub fn mark(&self) -> Option<&Path> {
        match &self.kind {
            DiskKind::Private { mark, .. } => mark.as_deref(),
            _ => None,
        }
    }
}

impl FromStr for DiskOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = KeyValues::parse(text, KEYS)?;
        let path = PathBuf::from(keys.get("path").ok_or(OptionError::NoPath)?);
        let readonly = keys.switch("readonly", false)?;
        let caching = match keys.switch("direct", true)? {
            true => Caching::Direct,
            false => Caching::Buffered,
        };
        let reserve = keys.switch("reserve", false)?;
        let private = keys.switch("private", false)?;
        let mark = keys.get("mark").map(PathBuf::from);
        let kind = match (private, readonly, reserve, caching) {
            (true, true, ..) => return Err(OptionError::PrivateReadOnly),
            (false, ..) if mark.is_some() => return Err(OptionError::MarkOfShared),
            (false, false, true, Caching::Direct) => DiskKind::Reserved,
            (_, _, true, _) => return Err(OptionError::ReserveNothing),
            (true, false, false, caching) => DiskKind::Private { caching, mark },
            (false, true, false, caching) => DiskKind::ReadOnly { caching },
            (false, false, false, caching) => DiskKind::Shared { caching },
        };
        Ok(DiskOption { path, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(rest: &str) -> DiskKind {
        let disk: DiskOption = format!("path=/a/b{rest}").parse().expect("an option");
        assert_eq!(disk.path, Path::new("/a/b"));
        disk.kind
    }

    #[test]
    fn every_kind_of_disk_can_be_asked_for() {
        let caching = Caching::Direct;
        assert_eq!(kind(""), DiskKind::Shared { caching });
        assert_eq!(kind(",reserve=off,private=off"), DiskKind::Shared { caching });
        assert_eq!(kind(",readonly=on"), DiskKind::ReadOnly { caching });
        assert_eq!(kind(",reserve=on"), DiskKind::Reserved);
        assert_eq!(kind(",private=on"), DiskKind::Private { caching, mark: None });
        let mark = Some("/c".into());
        assert_eq!(kind(",private=on,mark=/c"), DiskKind::Private { caching, mark });
        let caching = Caching::Buffered;
        assert_eq!(kind(",direct=off"), DiskKind::Shared { caching });
        assert_eq!(kind(",direct=off,readonly=on"), DiskKind::ReadOnly { caching });
        assert_eq!(
            kind(",direct=off,private=on"),
            DiskKind::Private { caching, mark: None }
        );
    }

    #[test]
    fn what_makes_no_disk_is_refused_with_its_reason() {
        use OptionError::*;
        let twice = || Twice("path".to_owned());
        let switch = || Switch {
            key: "direct",
            found: "yes".to_owned(),
        };
        for (text, reason) in [
            ("readonly=on", NoPath),
            ("path=a,path=b", twice()),
            ("path=a,direct=yes", switch()),
            ("path=a,private=on,readonly=on", PrivateReadOnly),
            ("path=a,mark=b", MarkOfShared),
            ("path=a,mark=b,reserve=on", MarkOfShared),
            ("path=a,reserve=on,direct=off", ReserveNothing),
            ("path=a,reserve=on,readonly=on", ReserveNothing),
            ("path=a,reserve=on,private=on", ReserveNothing),
        ] {
            assert_eq!(text.parse::<DiskOption>(), Err(reason), "{text}");
        }
        for text in ["/a/b", "path=a,size=3"] {
            let error = text.parse::<DiskOption>().expect_err(text).to_string();
            assert!(
                error.ends_with("known keys: path, readonly, direct, reserve, private, mark"),
                "{error}"
            );
        }
    }
}
