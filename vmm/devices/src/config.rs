//! What the platform consists of. Travels in the log header and to the backup, so both build the same machine.

use std::collections::BTreeSet;

use ftvm_schema::request::SECTOR;
use serde::{Deserialize, Serialize};

/// Network cards at most: PCI slots and interrupt lines are shared by everything.
pub const MAX_NICS: usize = 4;
/// Disks at most.
pub const MAX_DISKS: usize = 8;
/// Bytes of a disk's serial at most (virtio 1.2, 5.2.6.1: VIRTIO_BLK_ID_BYTES).
pub const MAX_SERIAL: usize = 20;
/// Sectors of a disk at most: 8 EiB, so that byte offsets fit 63 bits.
pub const MAX_SECTORS: u64 = (1 << 63) / SECTOR;

/// What the platform consists of, besides what every machine has (interrupt controllers, timers, serial port).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformConfig {
    pub nics: Vec<NicConfig>,
    pub disks: Vec<DiskConfig>,
    pub virtio_console: bool,
    pub rng: bool,
    /// Unix time at virtual time 0, in nanoseconds, for the RTC.
    pub wall_clock_ns: u64,
}

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// Unicast, not all zero.
    pub mac: [u8; 6],
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Size in sectors of [`SECTOR`] bytes, 1 to 2^54: byte offsets fit 63 bits.
    pub sectors: u64,
    pub access: DiskAccess,
    pub sharing: DiskSharing,
    /// What the guest reads by GET_ID: at most 20 printable ASCII characters.
    pub serial: String,
}

/// Whether the guest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskAccess {
    ReadOnly,
    ReadWrite,
}

/// Whether the hosts of a pair have the disk in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskSharing {
    /// One image that both reach: what the guest writes is an output.
    #[default]
    Shared,
    /// Each host has a copy of its own: nobody else sees what the guest writes (the paper, section 4.1).
    Private,
}

/// Why a platform cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// More devices of a kind than there is room for.
    #[error("{found} {what} configured; this platform has room for {max}")]
    TooMany {
        what: &'static str,
        max: usize,
        found: usize,
    },
    /// A MAC address no card may have.
    #[error(
        "network card {nic}: {} is no unicast address; use one whose first byte is even, such as 02:…",
        MacDisplay(mac)
    )]
    NotUnicast { nic: usize, mac: [u8; 6] },
    /// Two cards with one MAC address.
    #[error("network card {nic}: address {} is used twice", MacDisplay(mac))]
    DuplicateMac { nic: usize, mac: [u8; 6] },
    /// A disk without sectors, or with more than offsets can name.
    #[error("disk {disk}: {sectors} sectors of {SECTOR} bytes; there must be 1 to {MAX_SECTORS}")]
    DiskSize { disk: usize, sectors: u64 },
    /// A serial that GET_ID cannot carry.
    #[error("disk {disk}: serial {serial:?} must be at most {MAX_SERIAL} printable ASCII characters")]
    Serial { disk: usize, serial: String },
}

/// Shows a MAC address as people write it.
struct MacDisplay<'a>(&'a [u8; 6]);

impl std::fmt::Display for MacDisplay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl PlatformConfig {
    /// Numbers of the disks of which each host has a copy of its own.
    pub fn private_disks(&self) -> impl Iterator<Item = u8> {
        let disks = (0u8..).zip(&self.disks);
        disks.filter_map(|(number, disk)| (disk.sharing == DiskSharing::Private).then_some(number))
    }

    /// Checks every bound; [`Chipset::new`](super::Chipset::new) does so first.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("network cards", MAX_NICS, self.nics.len())?;
        within("disks", MAX_DISKS, self.disks.len())?;
        let mut macs = BTreeSet::new();
        for (nic, &NicConfig { mac }) in self.nics.iter().enumerate() {
            if mac[0] & 1 != 0 || mac == [0; 6] {
                return Err(ConfigError::NotUnicast { nic, mac });
            }
            if !macs.insert(mac) {
                return Err(ConfigError::DuplicateMac { nic, mac });
            }
        }
        for (disk, config) in self.disks.iter().enumerate() {
            if !(1..=MAX_SECTORS).contains(&config.sectors) {
                return Err(ConfigError::DiskSize {
                    disk,
                    sectors: config.sectors,
                });
            }
            let printable = |c: u8| c.is_ascii_graphic() || c == b' ';
            if config.serial.len() > MAX_SERIAL || !config.serial.bytes().all(printable) {
                return Err(ConfigError::Serial {
                    disk,
                    serial: config.serial.clone(),
                });
            }
        }
        Ok(())
    }
}

fn within(what: &'static str, max: usize, found: usize) -> Result<(), ConfigError> {
    if found <= max {
        Ok(())
    } else {
        Err(ConfigError::TooMany { what, max, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(last: u8) -> NicConfig {
        NicConfig {
            mac: [2, 0, 0, 0, 0, last],
        }
    }

    fn disk(sectors: u64, serial: &str) -> DiskConfig {
        DiskConfig {
            sectors,
            access: DiskAccess::ReadWrite,
            sharing: DiskSharing::default(),
            serial: serial.to_owned(),
        }
    }

    fn with_nics(nics: Vec<NicConfig>) -> Result<(), ConfigError> {
        PlatformConfig {
            nics,
            ..PlatformConfig::default()
        }
        .validate()
    }

    fn with_disks(disks: Vec<DiskConfig>) -> Result<(), ConfigError> {
        PlatformConfig {
            disks,
            ..PlatformConfig::default()
        }
        .validate()
    }

    #[test]
    fn counts_are_bounded_on_both_sides() {
        assert_eq!(with_nics((0..4).map(nic).collect()), Ok(()));
        let error = with_nics((0..5).map(nic).collect()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "5 network cards configured; this platform has room for 4"
        );
        assert_eq!(with_disks(vec![disk(1, ""); 8]), Ok(()));
        assert!(with_disks(vec![disk(1, ""); 9]).is_err());
    }

    #[test]
    fn addresses_are_unicast_and_unique() {
        let mac = [3, 0, 0, 0, 0, 1];
        assert_eq!(
            with_nics(vec![NicConfig { mac }]),
            Err(ConfigError::NotUnicast { nic: 0, mac })
        );
        assert!(with_nics(vec![NicConfig { mac: [0; 6] }]).is_err());
        let error = with_nics(vec![nic(1), nic(1)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "network card 1: address 02:00:00:00:00:01 is used twice"
        );
    }

    #[test]
    fn disks_have_sectors_and_short_serials() {
        assert!(with_disks(vec![disk(0, "")]).is_err());
        assert_eq!(with_disks(vec![disk(MAX_SECTORS, "")]), Ok(()));
        assert!(with_disks(vec![disk(MAX_SECTORS + 1, "")]).is_err());
        assert_eq!(with_disks(vec![disk(1, "exactly-twenty-chars")]), Ok(()));
        assert!(with_disks(vec![disk(1, "exactly-twenty-chars1")]).is_err());
        assert!(with_disks(vec![disk(1, "line\nbreak")]).is_err());
    }
}
