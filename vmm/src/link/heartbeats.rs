//! Heartbeats over UDP, beside the logging channel (paper, 2.3). They prove nothing by themselves (PROTOCOL 15); but they
//! renew the lease, tell a timeline which part died, and end a revenant of an older generation at once (PROTOCOL 11).

use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;

use ftvm_schema::entry::{Generation, Incarnation};
use logging_channel::clock::boottime_ns;
use logging_channel::codec::{FrameEncoder, decode_heartbeat};
use logging_channel::message::Heartbeat;
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use ftvm_roles::terms::Terms;

/// Heartbeats received and not yet looked at; further ones are dropped: the next says the same.
const RECEIVED: usize = 16;

/// Longest datagram looked at; a heartbeat has about 100 bytes.
const DATAGRAM: usize = 512;

/// A socket for heartbeats.
#[derive(Debug)]
pub struct HeartbeatSocket {
    /// Never waits: a heartbeat that finds no room is lost like any datagram.
    sending: StdUdpSocket,
    hearing: UdpSocket,
}

impl HeartbeatSocket {
    /// At a local address.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn bind(local: SocketAddr) -> io::Result<Self> {
        let sending = StdUdpSocket::bind(local)?;
        sending.set_nonblocking(true)?;
        let hearing = UdpSocket::from_std(sending.try_clone()?)?;
        Ok(HeartbeatSocket { sending, hearing })
    }
}

/// One side's heartbeats.
#[derive(Debug)]
pub struct Heartbeats {
    socket: StdUdpSocket,
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
    /// Tells `heard` of heartbeats of `guest` that come to `socket`. Where to send: `peer`, or wherever the last valid one came
    /// from.
    #[must_use]
    pub fn start(
        socket: HeartbeatSocket,
        peer: Option<SocketAddr>,
        terms: &Terms,
        heard: mpsc::Sender<Heartbeat>,
    ) -> Self {
        let HeartbeatSocket { sending, hearing } = socket;
        let Terms {
            guest, generation, me, ..
        } = *terms;
        let peer = Arc::new(Mutex::new(peer));
        let task = tokio::spawn(hear(hearing, Arc::clone(&peer), guest, me, heard));
        let next = Heartbeat {
            guest,
            generation,
            incarnation: me,
            number: 0,
            sent_ns: 0,
            echo_ns: 0,
        };
        Heartbeats {
            socket: sending,
            peer,
            encoder: FrameEncoder::new(),
            next,
            task,
        }
    }

    /// Sends one under a generation, if there is anybody to send to; its send time.
    pub fn send(&mut self, generation: Generation) -> Option<u64> {
        self.next.generation = generation;
        let peer = (*self.peer.lock())?;
        self.next.number += 1;
        self.next.sent_ns = boottime_ns();
        let datagram = self.encoder.heartbeat(&self.next).ok()?;
        // Lost like any datagram; the detector judges by what arrives.
        self.socket.send_to(datagram, peer).ok()?;
        Some(self.next.sent_ns)
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hear(
    socket: UdpSocket,
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
            *peer.lock() = Some(from);
            // Full: the link is busy, and another will come.
            let _ = received.try_send(heartbeat);
        }
    }
}
