//! The door at which backups join: handshakes run here, beside the link.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::message::{DiskReads, Message, PROTOCOL_VERSION, Welcome};
use logging_channel::session::{HANDSHAKE_TIMEOUT, Offer, accept_backup};
use logging_channel::transport::TcpFrames;
use shared_disk::arbiter::Arbiter;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::link::LinkEvent;
use ftvm_machine::config::MachineConfig;

/// How long a refused peer has to take its refusal.
const REFUSAL: Duration = Duration::from_millis(500);

/// What joining backups are offered.
#[derive(Debug)]
pub struct Offers {
    pub listener: TcpListener,
    pub arbiter: Arc<dyn Arbiter>,
    pub guest: u128,
    pub generation: watch::Receiver<Generation>,
    pub owner: Incarnation,
    pub config: MachineConfig,
    pub encoded: Vec<u8>,
    pub detection: Duration,
    pub lease: Duration,
    pub patience: Duration,
    pub disk_reads: DiskReads,
    pub host: String,
    pub site: String,
    /// Nonces written and not yet removed.
    pub nonces: Mutex<Vec<String>>,
}

impl Offers {
    /// Lets in one backup at a time, while `allowed`; others are told no.
    pub async fn serve(self, link: mpsc::Sender<LinkEvent>, mut allowed: watch::Receiver<bool>) {
        let mut opened = Instant::now();
        let mut was_open = false;
        loop {
            let open = *allowed.borrow_and_update();
            if open && !std::mem::replace(&mut was_open, open) {
                opened = Instant::now();
            }
            was_open = open;
            tokio::select! {
                changed = allowed.changed() => if changed.is_err() { return },
                joined = accept_backup(&self.listener, HANDSHAKE_TIMEOUT, || self.offer(opened.elapsed())), if open => {
                    self.remove_nonces();
                    if link.send(LinkEvent::Joined(Box::new(joined))).await.is_err() || allowed.changed().await.is_err() {
                        return;
                    }
                }
                refused = self.listener.accept(), if !open => {
                    if let Ok((stream, _)) = refused && let Ok(frames) = TcpFrames::tcp(stream) {
                        tokio::spawn(refuse(frames));
                    }
                }
            }
        }
    }

    fn remove_nonces(&self) {
        for name in self.nonces.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Err(error) = self.arbiter.remove_nonce(&name) {
                tracing::debug!("nonce {name} stays behind: {error}");
            }
        }
    }

    /// A fresh nonce on the shared storage: a share that is not shared is found at the join (PROTOCOL 10).
    fn offer(&self, unprotected: Duration) -> Offer {
        let nonce = ftvm_host::entropy::random_u128().unwrap_or(1).to_le_bytes().to_vec();
        let nonce_name = ftvm_host::entropy::random_u64().map_or_else(|_| "join".to_owned(), |n| format!("{n:016x}"));
        if let Err(error) = self.arbiter.write_nonce(&nonce_name, &nonce) {
            tracing::warn!("the backup that joins cannot be checked: {error}");
        }
        self.nonces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(nonce_name.clone());
        Offer {
            welcome: Welcome {
                version: PROTOCOL_VERSION,
                guest: self.guest,
                generation: *self.generation.borrow(),
                owner: self.owner,
                nonce_name,
                config: self.encoded.clone(),
                detection_ns: nanos(self.detection),
                lease_ns: nanos(self.lease),
                patience_ns: nanos(self.patience),
                disk_reads: self.disk_reads,
            },
            delivery_mode: delivery_name(&self.config),
            nonce,
            host: self.host.clone(),
            site: self.site.clone(),
            unprotected,
        }
    }
}

async fn refuse(mut frames: TcpFrames) {
    let reason =
        "the guest has a backup or is just getting one (it takes one at a time), or its operator has suspended protection"
            .to_owned();
    frames.writer.set_timeout(REFUSAL);
    // A peer that does not listen is not told.
    let _ = frames.send(Generation(0), &Message::Refuse { reason }).await;
}

/// Nanoseconds of a duration, as messages carry them.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A delivery mode's name, as the handshake carries it.
#[must_use]
pub fn delivery_name(config: &MachineConfig) -> String {
    config.profile.delivery.name().to_owned()
}

/// Identifies this host and its boot.
#[must_use]
pub fn host_name() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    format!("{} {}", read("/etc/hostname"), read("/proc/sys/kernel/random/boot_id"))
}
