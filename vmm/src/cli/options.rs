//! What users write behind `--disk`, `--net` and the like: `key=value` lists in the style of Cloud Hypervisor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use shared_disk::image::Caching;

/// `key=value,key=value`, each key at most once and known.
fn key_values<'a>(text: &'a str, known: &[&str]) -> Result<BTreeMap<&'a str, &'a str>, String> {
    let mut found = BTreeMap::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| {
            format!(
                "'{part}' is not of the form key=value; known keys: {}",
                known.join(", ")
            )
        })?;
        if !known.contains(&key) {
            return Err(format!("unknown key '{key}'; known keys: {}", known.join(", ")));
        }
        if found.insert(key, value).is_some() {
            return Err(format!("'{key}' is given twice"));
        }
    }
    Ok(found)
}

fn switch(key: &str, value: Option<&&str>, default: bool) -> Result<bool, String> {
    match value {
        None => Ok(default),
        Some(&"on") => Ok(true),
        Some(&"off") => Ok(false),
        Some(other) => Err(format!("{key} is 'on' or 'off', not '{other}'")),
    }
}

/// Bytes: `256M`, `1G`, `524288K`, or a plain number; `size=` may stand in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("size=").unwrap_or(text);
        let (digits, shift) = match number.as_bytes().last() {
            Some(b'K' | b'k') => (&number[..number.len() - 1], 10),
            Some(b'M' | b'm') => (&number[..number.len() - 1], 20),
            Some(b'G' | b'g') => (&number[..number.len() - 1], 30),
            _ => (number, 0),
        };
        let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        bytes
            .map(MemorySize)
            .ok_or_else(|| format!("'{text}' is no memory size; write 256M or 1G"))
    }
}

/// `path=FILE[,readonly=on|off][,direct=on|off][,reserve=on|off][,private=on|off][,mark=FILE]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    pub path: PathBuf,
    pub readonly: bool,
    /// O_DIRECT, so that a write is where the other host reads it (PROTOCOL 8). Off only for file systems without it.
    pub direct: bool,
    /// A SCSI-3 persistent reservation lets only the live side write (PROTOCOL 14).
    pub reserve: bool,
    /// Each host has an image of its own, which are kept level (PROTOCOL 8).
    pub private: bool,
    /// Where to note how new a private image is, if not in `FILE.ftvm`.
    pub mark: Option<PathBuf>,
}

impl DiskOption {
    /// What `direct` means for the image.
    #[must_use]
    pub fn caching(&self) -> Caching {
        if self.direct {
            Caching::Direct
        } else {
            Caching::Buffered
        }
    }
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys = key_values(text, &["path", "readonly", "direct", "reserve", "private", "mark"])?;
        let option = DiskOption {
            path: PathBuf::from(keys.get("path").ok_or("path=FILE is missing")?),
            readonly: switch("readonly", keys.get("readonly"), false)?,
            direct: switch("direct", keys.get("direct"), true)?,
            reserve: switch("reserve", keys.get("reserve"), false)?,
            private: switch("private", keys.get("private"), false)?,
            mark: keys.get("mark").map(PathBuf::from),
        };
        if option.private && option.readonly {
            return Err(
                "private=on is for disks that the guest writes to; of a readonly=on disk put equal files on both \
                        hosts"
                    .to_owned(),
            );
        }
        if option.mark.is_some() && !option.private {
            return Err("mark= is for private=on".to_owned());
        }
        if option.reserve && (option.readonly || option.private || !option.direct) {
            return Err(
                "reserve=on fences writes that go straight to the device: not with readonly=on, private=on or direct=off".into(),
            );
        }
        Ok(option)
    }
}

/// Where a network card's frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetTarget {
    /// A TAP device.
    Tap(String),
    /// A Unix datagram socket of our own, and the one to send to.
    Dgram { local: PathBuf, remote: PathBuf },
}

/// `tap=NAME[,mac=..]` or `dgram=LOCAL,remote=PATH[,mac=..]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOption {
    pub target: NetTarget,
    pub mac: Option<[u8; 6]>,
}

impl FromStr for NetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys = key_values(text, &["tap", "dgram", "remote", "mac"])?;
        let target = match (keys.get("tap"), keys.get("dgram"), keys.get("remote")) {
            (Some(name), None, None) => NetTarget::Tap((*name).to_owned()),
            (None, Some(local), Some(remote)) => NetTarget::Dgram {
                local: local.into(),
                remote: remote.into(),
            },
            _ => return Err("either tap=NAME or dgram=OWN_SOCKET,remote=OTHER_SOCKET is needed".to_owned()),
        };
        Ok(NetOption {
            target,
            mac: keys.get("mac").map(|mac| parse_mac(mac)).transpose()?,
        })
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("'{text}' is no unicast MAC address such as 52:54:00:12:34:56");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() || mac[0] & 1 != 0 {
        Err(wrong())
    } else {
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        for (text, bytes) in [("256M", 256 << 20), ("size=1G", 1 << 30), ("4096", 4096), ("8k", 8192)] {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)));
        }
        for text in ["", "M", "1T", "-1", "99999999999999999G"] {
            assert!(text.parse::<MemorySize>().is_err(), "{text}");
        }
    }

    #[test]
    fn disks() {
        let disk: DiskOption = "path=/a/b,readonly=on".parse().unwrap();
        assert_eq!(
            disk,
            DiskOption {
                path: "/a/b".into(),
                readonly: true,
                direct: true,
                reserve: false,
                private: false,
                mark: None,
            }
        );
        let disk: DiskOption = "path=/a/b,private=on,mark=/c".parse().unwrap();
        assert_eq!((disk.private, disk.mark), (true, Some("/c".into())));
        assert!(
            "path=/dev/a,reserve=on"
                .parse::<DiskOption>()
                .is_ok_and(|disk| disk.reserve)
        );
        for text in [
            "/a/b",
            "readonly=on",
            "path=a,size=3",
            "path=a,path=b",
            "path=a,direct=yes",
            "path=a,private=on,readonly=on",
            "path=a,mark=b",
            "path=a,reserve=on,direct=off",
            "path=a,reserve=on,readonly=on",
            "path=a,reserve=on,private=on",
        ] {
            assert!(text.parse::<DiskOption>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks() {
        let net: NetOption = "tap=tap0,mac=52:54:00:12:34:56".parse().unwrap();
        assert_eq!(net.mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        let net: NetOption = "dgram=/x,remote=/y".parse().unwrap();
        assert_eq!(
            net.target,
            NetTarget::Dgram {
                local: "/x".into(),
                remote: "/y".into()
            }
        );
        for text in [
            "tap=a,dgram=b",
            "dgram=/x",
            "mac=52:54:00:12:34:56",
            "tap=a,mac=53:54:00:12:34:56",
            "tap=a,mac=1:2",
        ] {
            assert!(text.parse::<NetOption>().is_err(), "{text}");
        }
    }
}
