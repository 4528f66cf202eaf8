//! Whether this host reaches what its guest needs (PROTOCOL 30). Both questions may take as long as a disk is silent.

use std::path::Path;

use ftvm_schema::request::{DiskOp, DiskRequest};
use shared_disk::image::{DiskImage, ImageAccess};

use crate::net::NetConfig;
use crate::option::DiskOption;

/// IFF_UP of netdevice(7).
const IFF_UP: u32 = 1;

/// Whether the first sector of a disk can be read.
#[must_use]
pub fn disk_is_reached(disk: &DiskOption) -> bool {
    let first = DiskRequest {
        disk: 0,
        id: 0,
        op: DiskOp::Read { offset: 0, len: 512 },
    };
    DiskImage::open(&disk.path, ImageAccess::ReadOnly, disk.caching()).is_ok_and(|image| image.perform(&first).is_ok())
}

/// Whether the interface of a network card is there and up. The other end of a datagram socket may come and go, so that
/// cable is always taken to be plugged in.
#[must_use]
pub fn cable_is_reached(cable: &NetConfig) -> bool {
    match cable {
        NetConfig::Dgram { .. } => true,
        NetConfig::Tap { name } => {
            let flags = Path::new("/sys/class/net").join(name).join("flags");
            let flags = std::fs::read_to_string(flags).unwrap_or_default();
            let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
            flags.is_ok_and(|flags| flags & IFF_UP != 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use shared_disk::image::Caching;

    use super::*;
    use crate::option::DiskKind;

    #[test]
    fn a_disk_is_reached_if_it_can_be_read() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("disk");
        let disk = DiskOption {
            path: path.clone(),
            kind: DiskKind::Shared {
                caching: Caching::Buffered,
            },
        };
        assert!(!disk_is_reached(&disk));
        std::fs::write(&path, [0; 512]).expect("writes");
        assert!(disk_is_reached(&disk));
    }

    #[test]
    fn an_interface_is_reached_if_it_is_up() {
        let missing = NetConfig::Tap {
            name: "ftvm-none".to_owned(),
        };
        assert!(!cable_is_reached(&missing));
        let dgram = NetConfig::Dgram {
            local: "/a".into(),
            remote: "/b".into(),
        };
        assert!(cable_is_reached(&dgram));
    }
}
