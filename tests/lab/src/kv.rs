//! The key-value guest on a switch of its own: no root and no TAP. Names stand for its cables.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ftvm_demo::client::{Client, ClientConfig};
use ftvm_demo::hub::{Hub, HubPort};

use crate::scaled;

/// The guest's address; its server listens at [`PORT`].
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
/// Redis's.
pub const PORT: u16 = 6379;
/// The guest's card.
pub const GUEST_MAC: &str = "52:54:00:07:00:02";
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
const CLIENT_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x07, 0x00, 0x01];

/// A switch whose cables end in a folder.
#[derive(Debug)]
pub struct Network {
    hub: Hub,
    folder: PathBuf,
}

impl Network {
    /// A switch without cables.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Network {
            hub: Hub::start().expect("a hub"),
            folder: folder.to_owned(),
        }
    }

    /// Adds a cable and returns the `--net` of whoever is plugged in.
    #[must_use]
    pub fn plug(&self, name: &str) -> String {
        let port = self.port(name);
        self.hub.add(&port).expect("a free port");
        format!("dgram={},remote={}", port.peer.display(), port.hub.display())
    }

    /// A client at the cable `name`, which must have been plugged in; it writes `keys` keys in turn as fast as
    /// `write_every` and `depth` allow.
    #[must_use]
    pub fn client(&self, name: &str, keys: usize, depth: usize, write_every: Duration) -> Client {
        let port = self.port(name);
        let config = ClientConfig {
            local: port.peer,
            hub: port.hub,
            mac: CLIENT_MAC,
            ip: CLIENT_IP,
            prefix: 24,
            server: (GUEST_IP, PORT),
            keys,
            depth,
            write_every,
            connect_wait: scaled(Duration::from_secs(10)),
            silence: scaled(Duration::from_secs(5)),
            verify_wait: scaled(Duration::from_secs(10)),
        };
        Client::start(config).expect("a client")
    }

    fn port(&self, name: &str) -> HubPort {
        HubPort {
            hub: self.folder.join(format!("hub-{name}.sock")),
            peer: self.folder.join(format!("{name}.sock")),
        }
    }
}

/// The guest's command line.
#[must_use]
pub fn cmdline() -> String {
    format!("ip={GUEST_IP}/24 port={PORT}")
}

/// Makes a blank disk image of `mib` MiB, sparse, and returns its `--disk`.
#[must_use]
pub fn blank_disk(path: &Path, mib: u64) -> String {
    let disk = File::create_new(path).expect("a disk image");
    disk.set_len(mib << 20).expect("room for a disk");
    // Temporary directories often lack O_DIRECT.
    format!("path={},direct=off", path.display())
}
