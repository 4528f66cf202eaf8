//! Heartbeats over UDP, beside the logging channel (paper, 2.3). They prove nothing by themselves (PROTOCOL 15); but they
//! renew the lease, tell a timeline which part died, and end a revenant of an older generation at once (PROTOCOL 11).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::clock::boottime_ns;
use logging_channel::codec::{FrameEncoder, decode_heartbeat};
use logging_channel::message::Heartbeat;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::failure::Failure;

/// Heartbeats received and not yet looked at; further ones are dropped: the next says the same.
const RECEIVED: usize = 16;

/// Longest datagram looked at; a heartbeat has about 100 bytes.
const DATAGRAM: usize = 512;

/// One side's heartbeats.
#[derive(Debug)]
pub struct Heartbeats {
    socket: Arc<UdpSocket>,
    peer: Arc<Mutex<Option<SocketAddr>>>,
    encoder: FrameEncoder,
    next: Heartbeat,
    task: JoinHandle<()>,
}

/// The channel at which heartbeats arrive.
#[must_use]
pub fn heard() -> (mpsc::Sender<Heartbeat>, mpsc::Receiver<Heartbeat>) {
    mpsc::channel(RECEIVED)
}

impl Heartbeats {
    /// A socket for heartbeats.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(local: SocketAddr) -> Result<UdpSocket, Failure> {
        let socket = UdpSocket::bind(local).await;
        socket.map_err(|e| Failure::new(format!("heartbeats at UDP {local}: {e}")))
    }

    /// Tells `heard` of heartbeats of `guest` that come to `socket`. Where to send: `peer`, or wherever the last valid one came
    /// from.
    #[must_use]
    pub fn start(
        socket: UdpSocket,
        peer: Option<SocketAddr>,
        guest: u128,
        generation: Generation,
        me: Incarnation,
        heard: mpsc::Sender<Heartbeat>,
    ) -> Self {
        let socket = Arc::new(socket);
        let peer = Arc::new(Mutex::new(peer));
        let task = tokio::spawn(hear(Arc::clone(&socket), Arc::clone(&peer), guest, me, heard));
        let next = Heartbeat {
            guest,
            generation,
            incarnation: me,
            number: 0,
            sent_ns: 0,
            echo_ns: 0,
        };
        Heartbeats {
            socket,
            peer,
            encoder: FrameEncoder::new(),
            next,
            task,
        }
    }

    /// The generation to be stamped from now on.
    pub fn set_generation(&mut self, generation: Generation) {
        self.next.generation = generation;
    }

    /// Sends one, if there is anybody to send to; its send time.
    pub async fn send(&mut self) -> Option<u64> {
        let peer = (*self.peer.lock().unwrap_or_else(PoisonError::into_inner))?;
        self.next.number += 1;
        self.next.sent_ns = boottime_ns();
        let datagram = self.encoder.heartbeat(&self.next).ok()?;
        // Lost like any datagram; the detector judges by what arrives.
        self.socket.send_to(datagram, peer).await.ok()?;
        Some(self.next.sent_ns)
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hear(
    socket: Arc<UdpSocket>,
    peer: Arc<Mutex<Option<SocketAddr>>>,
    guest: u128,
    me: Incarnation,
    received: mpsc::Sender<Heartbeat>,
) {
    let mut buffer = [0; DATAGRAM];
    loop {
        // An error here is a peer's closed port (ICMP): nothing to act on.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(heartbeat) = decode_heartbeat(&buffer[..len]) else {
            tracing::debug!("a datagram from {from} is no heartbeat");
            continue;
        };
        if heartbeat.guest == guest && heartbeat.incarnation != me {
            *peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
            // Full: the link is busy, and another will come.
            let _ = received.try_send(heartbeat);
        }
    }
}
