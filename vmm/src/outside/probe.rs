//! What this host reaches of what its guest needs (PROTOCOL 30): looked at every second, on a thread of its own, as a disk
//! that does not answer blocks whoever asks it.

use std::time::{Duration, Instant};

use logging_channel::message::Health;
use tokio::sync::mpsc;

use crate::cli::HostArgs;
use ftvm_host::health::{cable_is_reached, disk_is_reached};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer has met a disk that does not answer. A primary waits longer ([`DISK_SILENCE`]), so that it does
/// not hand its guest over to a host whose disk is as silent.
///
/// [`DISK_SILENCE`]: ftvm_roles::primary::DISK_SILENCE
const SLOW: Duration = Duration::from_secs(5);

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
            disks: disks.iter().map(disk_is_reached).collect(),
            nics: nets.iter().map(|net| cable_is_reached(&net.cable)).collect(),
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
