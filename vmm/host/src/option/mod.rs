//! What users write behind `--disk`, `--net` and `--memory`: `key=value` lists in the style of Cloud Hypervisor.
//!
//! Here is what such a text means and which combinations there are; whether the named files and devices exist is found out
//! where they are opened.

mod disk;
mod memory;
mod net;

use std::collections::BTreeMap;

pub use disk::{DiskKind, DiskOption};
pub use memory::MemorySize;
pub use net::NetOption;

/// Why a text is no such option; each says what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A part between commas without an equals sign.
    #[error("'{part}' is not of the form key=value; known keys: {}", .known.join(", "))]
    NotKeyValue {
        part: String,
        known: &'static [&'static str],
    },
    /// A key that this option does not have.
    #[error("unknown key '{key}'; known keys: {}", .known.join(", "))]
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    /// Of two values one would be ignored.
    #[error("'{0}' is given twice")]
    Twice(String),
    /// A switch with another value.
    #[error("{key} is 'on' or 'off', not '{found}'")]
    Switch { key: &'static str, found: String },
    /// No number, an unknown unit, or more bytes than 64 bits count.
    #[error("'{0}' is no memory size; write 256M or 1G")]
    MemorySize(String),
    /// A disk without a file.
    #[error("path=FILE is missing")]
    NoPath,
    /// Nothing would have to be kept level.
    #[error("private=on is for disks that the guest writes to; of a readonly=on disk put equal files on both hosts")]
    PrivateReadOnly,
    /// Only a private disk has a mark.
    #[error("mark= is for private=on")]
    MarkOfShared,
    /// A reservation keeps other hosts' writes from the device, and there would be none or they would not go there.
    #[error("reserve=on fences writes that go straight to the device: not with readonly=on, private=on or direct=off")]
    ReserveNothing,
    /// No place for a network card's frames, or two.
    #[error("either tap=NAME or dgram=OWN_SOCKET,remote=OTHER_SOCKET is needed")]
    NetTarget,
    /// Not six pairs of hexadecimal digits, or a group's address.
    #[error("'{0}' is no unicast MAC address such as 52:54:00:12:34:56")]
    MacAddress(String),
}

/// `key=value,key=value`, each key at most once and among `known`.
struct KeyValues<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> KeyValues<'a> {
    fn parse(text: &'a str, known: &'static [&'static str]) -> Result<Self, OptionError> {
        let mut found = BTreeMap::new();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| OptionError::NotKeyValue {
                part: part.to_owned(),
                known,
            })?;
            if !known.contains(&key) {
                let key = key.to_owned();
                return Err(OptionError::UnknownKey { key, known });
            }
            if found.insert(key, value).is_some() {
                return Err(OptionError::Twice(key.to_owned()));
            }
        }
        Ok(KeyValues(found))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).copied()
    }

    /// The value of an `on|off` key.
    fn switch(&self, key: &'static str, default: bool) -> Result<bool, OptionError> {
        match self.get(key) {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => {
                let found = other.to_owned();
                Err(OptionError::Switch { key, found })
            }
        }
    }
}
