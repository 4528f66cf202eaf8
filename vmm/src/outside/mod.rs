//! Everything a live guest touches outside, opened from this host's own settings: network cards and consoles here, the disks in
//! [`disks`].
//!
//! [`Outside::emit`] is the only way out for what is said, and only outputs whose turn has come are given to it
//! (`ftvm_machine::output`); disk requests leave through the plans of [`HostDisks::take`].

pub mod copies;
pub mod disk_threads;
pub mod disks;
pub mod probe;
pub mod superseded;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ftvm_host::Sent;
use ftvm_host::console::{ByteStream, Console, ConsoleError, ConsoleTarget};
use ftvm_host::entropy::{EntropyError, host_entropy};
use ftvm_host::net::rarp::rarp_frame;
use ftvm_host::net::{Inbound, NetBackend, NetError, NetReader, spawn_reader};
use ftvm_host::queue::EventSender;
use ftvm_machine::output::Emission;
use ftvm_roles::disks::DisksError;
use ftvm_roles::host_event::HostEvent;
use ftvm_schema::entry::ConsolePort;

use crate::cli::HostArgs;
use crate::link::listening::ListenerError;
use disk_threads::HandsError;
use disks::{HostDisks, HostDisksError};

/// What of a host's devices fails.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("network card {0}: a guest has 256 at most")]
    TooManyCards(usize),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error("console: {0}")]
    ConsoleWrite(#[source] std::io::Error),
    #[error(transparent)]
    Disk(#[from] HostDisksError),
    #[error(transparent)]
    Disks(#[from] DisksError<HandsError>),
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error("signals cannot be watched: {0}")]
    Signals(#[source] std::io::Error),
    /// The vCPU thread does not listen any more.
    #[error("the vCPU thread is gone")]
    Gone,
}

#[derive(Debug)]
struct Nic {
    backend: Arc<NetBackend>,
    reader: NetReader,
}

/// This host's side of a guest.
#[derive(Debug)]
pub struct Outside {
    nics: Vec<Nic>,
    consoles: BTreeMap<ConsolePort, Console>,
    pub disks: HostDisks,
    events: EventSender,
}

impl Outside {
    /// Opens cables and consoles. `keep` is how long a backup's inbound frames are kept.
    ///
    /// # Errors
    /// A sentence saying which device, what is wrong and what to do.
    pub fn open(
        host: &HostArgs,
        stream: ByteStream,
        inbound: Inbound,
        keep: Duration,
        events: &EventSender,
    ) -> Result<Self, OutsideError> {
        let mut nics = Vec::new();
        for (index, net) in host.nets.iter().enumerate() {
            let backend = Arc::new(NetBackend::open(&net.cable)?);
            let nic = u8::try_from(index).map_err(|_| OutsideError::TooManyCards(index))?;
            let reader = spawn_reader(Arc::clone(&backend), nic, inbound, keep, events.clone());
            nics.push(Nic {
                backend,
                reader: reader?,
            });
        }
        let mut consoles = BTreeMap::new();
        let targets = [
            (ConsolePort::Serial, Some(&host.console)),
            (ConsolePort::Virtio, host.virtio_console.as_ref()),
        ];
        for (port, target) in targets {
            if let Some(target) = target {
                let console = Console::open(target, port, stream)?;
                if let (ConsoleTarget::Pty, Some(place)) = (target, console.place()) {
                    tracing::info!("{port:?} console at {}", place.display());
                }
                consoles.insert(port, console);
            }
        }
        Ok(Outside {
            nics,
            consoles,
            disks: HostDisks::new(&host.disks, events)?,
            events: events.clone(),
        })
    }

    /// Starts to read the consoles' input.
    ///
    /// # Errors
    /// As [`Outside::open`].
    pub fn listen(&mut self) -> Result<(), OutsideError> {
        for console in self.consoles.values_mut() {
            console.listen(self.events.clone())?;
        }
        Ok(())
    }

    /// Inbound frames reach the guest from now on, those kept first.
    pub fn forward_frames(&self) {
        for nic in &self.nics {
            nic.reader.go_live();
        }
    }

    /// Tells the switches where the guest's MAC addresses are now (PROTOCOL 22). Failures do not matter: it is repeated.
    pub fn announce(&self, macs: &[[u8; 6]]) {
        for (nic, mac) in self.nics.iter().zip(macs) {
            if let Err(error) = nic.backend.send(&rarp_frame(*mac)) {
                tracing::debug!("RARP: {error}");
            }
        }
    }

    /// The guest gets random bytes, as it asked for.
    ///
    /// # Errors
    /// If the host has none, or the vCPU thread is gone.
    pub fn want_entropy(&self, len: u32) -> Result<(), OutsideError> {
        let bytes = host_entropy(len)?;
        let answered = self.events.answer(HostEvent::Entropy(bytes));
        answered.map_err(|_| OutsideError::Gone)
    }

    /// Lets a frame or console bytes go whose turn has come; returns when their system call has. A disk request leaves
    /// through its plan and is nothing here.
    ///
    /// # Errors
    /// If the outside cannot take it for good (a full console disk).
    pub fn emit(&mut self, emission: &Emission) -> Result<Sent, OutsideError> {
        match emission {
            Emission::Frame { nic, bytes } => match self.nics.get(usize::from(*nic)) {
                // A TAP that is gone is an unplugged cable to the guest; [`probe`] sees it.
                Some(nic) => Ok(nic.backend.send(bytes).unwrap_or_else(|error| {
                    tracing::debug!("a frame is lost: {error}");
                    Sent::Dropped
                })),
                None => Ok(Sent::Dropped),
            },
            Emission::Console { port, position, bytes } => match self.consoles.get_mut(port) {
                Some(console) => console.write(*position, bytes).map_err(OutsideError::ConsoleWrite),
                None => Ok(Sent::Dropped),
            },
            Emission::Disk(_) | Emission::PrivateDisk(_) | Emission::WantEntropy { .. } => Ok(Sent::Done),
        }
    }
}
