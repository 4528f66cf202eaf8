//! The door of a primary: where backups join, and where their heartbeats arrive.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;

use ftvm_schema::entry::Generation;
use ftvm_schema::record::CodecError;

use logging_channel::message::Heartbeat;
use parking_lot::Mutex;
use shared_disk::arbiter::Arbiter;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::link::handshakes::{Lobby, Offers, host_name};
use crate::link::heartbeats::{HeartbeatSocket, Heartbeats};
use ftvm_machine::config::MachineConfig;
use ftvm_roles::link::world::LinkEvent;
use ftvm_roles::terms::Terms;

/// Why no backup can join here.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    #[error("--listen {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("heartbeats at UDP {address}: {source}")]
    Heartbeats { address: SocketAddr, source: io::Error },
    #[error("the guest's configuration cannot be sent: {0}")]
    Config(#[from] CodecError),
}

/// A place for a door, which nobody else can take any more.
#[derive(Debug)]
pub struct BoundSockets {
    address: SocketAddr,
    listener: TcpListener,
    heartbeats: HeartbeatSocket,
}

impl BoundSockets {
    /// At `address`, for TCP and for UDP.
    ///
    /// # Errors
    /// If it is taken, or not this host's.
    pub fn find(address: SocketAddr) -> Result<Self, ListenerError> {
        let listen = || {
            let listener = StdTcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            Ok((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(|source| ListenerError::Listen { address, source })?;
        let heartbeats = HeartbeatSocket::bind(address);
        let heartbeats = heartbeats.map_err(|source| ListenerError::Heartbeats { address, source })?;
        Ok(BoundSockets {
            address,
            listener,
            heartbeats,
        })
    }
}

/// What is said to those who come to the door.
#[derive(Debug)]
pub struct Listener {
    pub listen: Option<SocketAddr>,
    /// Where it was found free ahead of time.
    pub place: Option<BoundSockets>,
    pub site: String,
    pub config: MachineConfig,
    pub arbiter: Arc<dyn Arbiter>,
    pub hearing: mpsc::Sender<Heartbeat>,
    pub lobby: Lobby,
    generation: watch::Sender<Generation>,
    allowed: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
}

impl Listener {
    /// A door that is closed.
    pub fn new(
        listen: Option<SocketAddr>,
        place: Option<BoundSockets>,
        site: &str,
        config: &MachineConfig,
        arbiter: &Arc<dyn Arbiter>,
        hearing: mpsc::Sender<Heartbeat>,
    ) -> Self {
        Listener {
            listen,
            place,
            site: site.to_owned(),
            config: config.clone(),
            arbiter: Arc::clone(arbiter),
            hearing,
            lobby: Lobby::default(),
            generation: watch::Sender::new(Generation(0)),
            allowed: watch::Sender::new(true),
            accepting: None,
        }
    }

    /// Opens it, if there is to be one: the heartbeats of those who join come there too, and go out from there.
    ///
    /// # Errors
    /// If there is no place for it.
    pub fn open(&mut self, terms: &Terms, link: &mpsc::Sender<LinkEvent>) -> Result<Option<Heartbeats>, ListenerError> {
        let place = match (self.place.take(), self.listen) {
            (Some(place), _) => place,
            (None, Some(listen)) => BoundSockets::find(listen)?,
            (None, None) => return Ok(None),
        };
        self.generation.send_replace(terms.generation);
        let offers = Offers {
            listener: place.listener,
            arbiter: Arc::clone(&self.arbiter),
            terms: *terms,
            generation: self.generation.subscribe(),
            config: self.config.clone(),
            encoded: ftvm_schema::record::to_bytes(&self.config)?,
            lobby: self.lobby.clone(),
            host: host_name(),
            site: self.site.clone(),
            nonces: Mutex::default(),
        };
        let heartbeats = Heartbeats::start(place.heartbeats, None, terms, self.hearing.clone());
        tracing::info!("backups may join at {}", place.address);
        self.accepting = Some(tokio::spawn(offers.serve(link.clone(), self.allowed.subscribe())));
        Ok(Some(heartbeats))
    }

    /// Whether a backup may join now, and under which generation.
    pub fn offer(&self, generation: Generation, may_join: bool) {
        let changes = |new, old: &mut _| std::mem::replace(old, new) != new;
        self.generation.send_if_modified(|old| changes(generation, old));
        let allows = |old: &mut bool| std::mem::replace(old, may_join) != may_join;
        self.allowed.send_if_modified(allows);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
    }
}
