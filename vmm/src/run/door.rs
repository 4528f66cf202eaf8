//! What a pair has agreed on, and the door of a primary: where backups join and heartbeats arrive.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use logging_channel::codec;
use logging_channel::entry::{Generation, Incarnation};
use logging_channel::message::{DiskReads, Heartbeat};
use shared_disk::arbiter::Arbiter;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::Failure;
use super::accept::{Offers, host_name, nanos};
use super::heartbeat::{Heartbeats, heard};
use crate::cli::RunArgs;
use crate::machine::config::MachineConfig;
use crate::roles::primary::PrimaryConfig;

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

    /// Opens it at `--listen`, if that was asked for.
    pub(super) async fn open(
        mut self,
        args: &RunArgs,
        terms: &Terms,
        arbiter: &Arc<dyn Arbiter>,
        config: &MachineConfig,
    ) -> Result<Self, Failure> {
        let Some(listen) = args.listen else { return Ok(self) };
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| Failure::new(format!("--listen {listen}: {e}")))?;
        let address = listener.local_addr().map_err(Failure::new)?;
        let hearing = self.hearing.clone();
        let heartbeats = Heartbeats::start(address, None, terms.guest, terms.generation, terms.me, hearing).await?;
        self.heartbeats.push(heartbeats);
        tracing::info!("backups may join at {address}");
        self.offers = Some(Offers {
            listener,
            arbiter: Arc::clone(arbiter),
            guest: terms.guest,
            generation: self.generation.subscribe(),
            owner: terms.me,
            config: config.clone(),
            encoded: codec::to_bytes(config).map_err(Failure::new)?,
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
