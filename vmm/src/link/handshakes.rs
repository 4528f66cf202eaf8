//! The door at which backups join: handshakes run here, beside the link.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ftvm_schema::entry::Generation;
use logging_channel::message::{Message, PROTOCOL_VERSION, Welcome};
use logging_channel::session::{Candidate, HANDSHAKE_TIMEOUT, Offer, accept_backup};
use logging_channel::transport::TcpFrames;
use parking_lot::Mutex;
use shared_disk::arbiter::Arbiter;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::link::connection::connection_id;
use ftvm_machine::config::MachineConfig;
use ftvm_roles::link::world::{ConnectionId, LinkEvent};
use ftvm_roles::terms::Terms;

/// How long a refused peer has to take its refusal.
const REFUSAL: Duration = Duration::from_millis(500);

/// A backup that has passed the handshake and waits for its answer.
#[derive(Debug)]
pub struct Arrived {
    pub connection: ConnectionId,
    pub frames: TcpFrames,
    pub candidate: Candidate,
}

/// Where it waits: there is one place, as one backup joins at a time.
#[derive(Clone, Debug, Default)]
pub struct Lobby(Arc<Mutex<Option<Arrived>>>);

impl Lobby {
    fn enter(&self, arrived: Arrived) {
        *self.0.lock() = Some(arrived);
    }

    /// Whoever waits there with this connection.
    #[must_use]
    pub fn leave(&self, connection: ConnectionId) -> Option<Arrived> {
        let mut place = self.0.lock();
        place.take_if(|arrived| arrived.connection == connection)
    }
}

/// What joining backups are offered.
#[derive(Debug)]
pub struct Offers {
    pub listener: TcpListener,
    pub arbiter: Arc<dyn Arbiter>,
    pub terms: Terms,
    pub generation: watch::Receiver<Generation>,
    pub config: MachineConfig,
    pub encoded: Vec<u8>,
    pub lobby: Lobby,
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
                    let (frames, candidate) = joined;
                    let (connection, backup) = (connection_id(), candidate.incarnation);
                    self.lobby.enter(Arrived { connection, frames, candidate });
                    let joined = LinkEvent::Joined { connection, backup };
                    if link.send(joined).await.is_err() || allowed.changed().await.is_err() {
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
        for name in self.nonces.lock().drain(..) {
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
        self.nonces.lock().push(nonce_name.clone());
        Offer {
            welcome: Welcome {
                version: PROTOCOL_VERSION,
                guest: self.terms.guest,
                generation: *self.generation.borrow(),
                owner: self.terms.me,
                nonce_name,
                config: self.encoded.clone(),
                detection_ns: self.terms.detection_ns,
                lease_ns: self.terms.lease_ns,
                patience_ns: self.terms.patience_ns,
                disk_reads: self.terms.disk_reads,
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
