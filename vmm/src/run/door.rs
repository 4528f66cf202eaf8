//! What a pair has agreed on, and the door of a primary: where backups join and heartbeats arrive.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ftvm_schema::entry::{Generation, Incarnation};
use ftvm_schema::record;
use logging_channel::message::{DiskReads, Heartbeat};
use shared_disk::arbiter::Arbiter;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};

use super::accept::{Offers, host_name, nanos};
use super::heartbeat::{Heartbeats, heard};
use crate::cli::RunArgs;
use crate::failure::Failure;
use ftvm_machine::config::MachineConfig;
use ftvm_roles::primary::PrimaryConfig;

/// What a pair has agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub me: Incarnation,
    pub guest: u128,
    pub generation: Generation,
    pub detection: Duration,
    pub lease: Duration,
    pub patience: Duration,
    pub disk_reads: DiskReads,
}

impl Terms {
    pub(super) fn core(&self) -> PrimaryConfig {
        PrimaryConfig {
            me: self.me,
            guest: self.guest,
            detection_ns: nanos(self.detection),
            lease_ns: nanos(self.lease),
        }
    }
}

/// A place for a door, which nobody else can take any more.
#[derive(Debug)]
pub(super) struct Doorway {
    listener: TcpListener,
    heartbeats: UdpSocket,
}

impl Doorway {
    /// At `--listen`, for TCP and for UDP, if that was asked for.
    pub(super) async fn find(listen: Option<SocketAddr>) -> Result<Option<Self>, Failure> {
        let Some(listen) = listen else { return Ok(None) };
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| Failure::new(format!("--listen {listen}: {e}")))?;
        let heartbeats = Heartbeats::bind(listener.local_addr().map_err(Failure::new)?).await?;
        Ok(Some(Doorway { listener, heartbeats }))
    }
}

/// Where backups join and heartbeats arrive.
#[derive(Debug)]
pub(super) struct Door {
    pub offers: Option<Offers>,
    pub heartbeats: Vec<Heartbeats>,
    hearing: mpsc::Sender<Heartbeat>,
    pub heard: mpsc::Receiver<Heartbeat>,
    pub generation: watch::Sender<Generation>,
}

impl Door {
    pub(super) fn closed(generation: Generation) -> Self {
        let (hearing, heard) = heard();
        Door {
            offers: None,
            heartbeats: Vec::new(),
            hearing,
            heard,
            generation: watch::Sender::new(generation),
        }
    }

    /// Opens it there, if there is a place for it.
    pub(super) fn open(
        mut self,
        place: Option<Doorway>,
        args: &RunArgs,
        terms: &Terms,
        arbiter: &Arc<dyn Arbiter>,
        config: &MachineConfig,
    ) -> Result<Self, Failure> {
        let Some(Doorway { listener, heartbeats }) = place else {
            return Ok(self);
        };
        let address = listener.local_addr().map_err(Failure::new)?;
        let hearing = self.hearing.clone();
        let heartbeats = Heartbeats::start(heartbeats, None, terms.guest, terms.generation, terms.me, hearing);
        self.heartbeats.push(heartbeats);
        tracing::info!("backups may join at {address}");
        self.offers = Some(Offers {
            listener,
            arbiter: Arc::clone(arbiter),
            guest: terms.guest,
            generation: self.generation.subscribe(),
            owner: terms.me,
            config: config.clone(),
            encoded: record::to_bytes(config).map_err(Failure::new)?,
            detection: terms.detection,
            lease: terms.lease,
            patience: terms.patience,
            disk_reads: terms.disk_reads,
            host: host_name(),
            site: args.site.clone(),
            nonces: Mutex::default(),
        });
        Ok(self)
    }
}
