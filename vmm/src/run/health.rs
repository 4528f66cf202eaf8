//! What this host reaches of what its guest needs (PROTOCOL 30): looked at every second, on a thread of its own, as a disk
//! that does not answer blocks whoever asks it.

use std::path::Path;
use std::time::{Duration, Instant};

use ftvm_schema::request::{DiskOp, DiskRequest};
use logging_channel::message::Health;
use shared_disk::image::{DiskImage, ImageAccess};
use tokio::sync::mpsc;

use crate::cli::HostArgs;
use crate::cli::options::{DiskOption, NetTarget};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer has met a disk that does not answer. A primary waits longer ([`DISK_SILENCE`]), so that it does
/// not hand its guest over to a host whose disk is as silent.
///
/// [`DISK_SILENCE`]: ftvm_roles::primary::DISK_SILENCE
const SLOW: Duration = Duration::from_secs(5);

/// IFF_UP of netdevice(7).
const IFF_UP: u32 = 1;

/// The thread's reports.
#[derive(Debug)]
pub struct Probe {
    reports: mpsc::Receiver<Health>,
    last: (Instant, Health),
}

impl Probe {
    /// Starts to look at what this host was given.
    #[must_use]
    pub fn start(host: &HostArgs) -> Self {
        let (told, reports) = mpsc::channel(1);
        let (disks, nets) = (host.disks.clone(), host.nets.clone());
        let nothing = Health {
            disks: vec![false; disks.len()],
            nics: vec![false; nets.len()],
        };
        let look = move || Health {
            disks: disks.iter().map(reads).collect(),
            nics: nets.iter().map(|net| is_up(&net.target)).collect(),
        };
        let thread = std::thread::Builder::new().name("health".to_owned());
        let thread = thread.spawn(move || {
            // Ends when nobody listens any more.
            while told.blocking_send(look()).is_ok() {
                std::thread::sleep(EVERY);
            }
        });
        if let Err(error) = thread {
            tracing::warn!("this host cannot look after its disks and network cards: {error}");
        }
        Probe {
            reports,
            last: (Instant::now(), nothing),
        }
    }

    /// The next report. Does not end while the thread lives.
    pub async fn next(&mut self) -> Option<Health> {
        let health = self.reports.recv().await;
        if let Some(health) = &health {
            self.last = (Instant::now(), health.clone());
        }
        health
    }

    /// What must be assumed when no report comes: that nothing is reached.
    #[must_use]
    pub fn silent(&self) -> Option<Health> {
        let (at, health) = &self.last;
        (at.elapsed() > SLOW).then(|| Health {
            disks: vec![false; health.disks.len()],
            nics: vec![false; health.nics.len()],
        })
    }
}

/// Whether the first sector can be read.
fn reads(disk: &DiskOption) -> bool {
    let first = DiskRequest {
        disk: 0,
        id: 0,
        op: DiskOp::Read { offset: 0, len: 512 },
    };
    DiskImage::open(&disk.path, ImageAccess::ReadOnly, disk.caching()).is_ok_and(|image| image.perform(&first).is_ok())
}

/// Whether the interface is there and up. The other end of a datagram socket may come and go.
fn is_up(target: &NetTarget) -> bool {
    match target {
        NetTarget::Dgram { .. } => true,
        NetTarget::Tap(name) => {
            let flags = Path::new("/sys/class/net").join(name).join("flags");
            let flags = std::fs::read_to_string(flags).unwrap_or_default();
            let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
            flags.is_ok_and(|flags| flags & IFF_UP != 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_reached_if_it_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let disk = DiskOption {
            path: path.clone(),
            readonly: false,
            direct: false,
            reserve: false,
            private: false,
            mark: None,
        };
        assert!(!reads(&disk));
        std::fs::write(&path, [0; 512]).unwrap();
        assert!(reads(&disk));
    }

    #[test]
    fn an_interface_is_reached_if_it_is_up() {
        assert!(!is_up(&NetTarget::Tap("ftvm-none".to_owned())));
        let dgram = NetTarget::Dgram {
            local: "/a".into(),
            remote: "/b".into(),
        };
        assert!(is_up(&dgram));
    }
}
