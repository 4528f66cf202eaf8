//! Heartbeats: a datagram every D/8 each way, beside the logging channel (paper section 2.3; PROTOCOL 11, 12, 15).
//!
//! UDP needs no connection, so it still speaks when the channel does not, and tells the reader of a timeline what died.
//! It proves nothing (see [`detector`](crate::detector)), and anyone can send a datagram: what does not decode, or is
//! of another guest, generation or incarnation, is counted and dropped. Only a higher generation of the same guest is
//! reported, for it ends the older side. Datagrams are not authenticated; the ids in them are random numbers that only
//! someone on the path knows.
//!
//! Bytes and clock are the caller's: the codec lives in `logging-channel`.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Heartbeats per detection time.
const BEATS_PER_DETECTION: u32 = 8;

/// A detection time too short to be meant must not become a flood.
const SHORTEST_PERIOD: Duration = Duration::from_millis(5);

/// However long the detection time, an operator who looks at a link wants to see life on it.
const LONGEST_PERIOD: Duration = Duration::from_secs(1);

/// The longest datagram accepted. A heartbeat has some 70 bytes.
pub const DATAGRAM_BYTES: usize = 512;

/// Events not yet taken; further heartbeats are dropped, since only the latest counts.
const EVENTS: usize = 64;

/// What a heartbeat says. `logging_channel::message::Heartbeat` is its form on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The guest.
    pub guest: u128,
    /// The sender's generation.
    pub generation: u64,
    /// The sender's incarnation.
    pub incarnation: u128,
    /// Counts up from 1 per incarnation.
    pub number: u64,
    /// When it was sent, by the sender's clock, in nanoseconds.
    pub sent_ns: u64,
    /// The latest `sent_ns` the sender has received; 0 before the first.
    pub echo_ns: u64,
}

/// The bytes of a heartbeat.
pub trait Codec: Send + Sync {
    /// Appends `beat` to `datagram`, which is empty; at most [`DATAGRAM_BYTES`].
    fn encode(&self, beat: &Beat, datagram: &mut Vec<u8>);

    /// Reads a hostile datagram.
    fn decode(&self, datagram: &[u8]) -> Option<Beat>;
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The guest.
    pub guest: u128,
    /// The pair's generation.
    pub generation: u64,
    /// This side's incarnation.
    pub me: u128,
    /// The other side's incarnation.
    pub peer: u128,
}

/// What heartbeats need.
#[derive(Clone)]
pub struct Config {
    /// The local address.
    pub bind: SocketAddr,
    /// The other side's address, on a backup; a primary learns it from the first valid heartbeat.
    pub peer: Option<SocketAddr>,
    /// Whose heartbeats these are.
    pub pair: Pair,
    /// The detection time D: a heartbeat goes every D/8, but not more often than every 5 ms nor less often than every
    /// second.
    pub detection: Duration,
    /// This host's CLOCK_BOOTTIME in nanoseconds (PROTOCOL 12).
    pub clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The bytes.
    pub codec: Arc<dyn Codec>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config {
            bind,
            peer,
            pair,
            detection,
            ..
        } = self;
        f.debug_struct("Config")
            .field("bind", bind)
            .field("peer", peer)
            .field("pair", pair)
            .field("detection", detection)
            .finish_non_exhaustive()
    }
}

impl Config {
    fn period(&self) -> Duration {
        (self.detection / BEATS_PER_DETECTION).clamp(SHORTEST_PERIOD, LONGEST_PERIOD)
    }
}

/// What heartbeats report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The other side's next heartbeat.
    Heard {
        /// When it arrived, by this host's clock, in nanoseconds.
        received_ns: u64,
        /// When it was sent, by the other's clock, in nanoseconds.
        sent_ns: u64,
        /// The latest time of this host's clock that the other had seen in a heartbeat when it sent this one.
        echo_ns: u64,
    },
    /// The guest has a newer owner: this side ends at once, with the loser's exit code (PROTOCOL 11). Reported once
    /// per generation.
    Superseded {
        /// The higher generation.
        generation: u64,
    },
}

/// What happened to datagrams so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent.
    pub sent: u64,
    /// Not sent: the socket's buffer was full, or there is no route.
    pub unsent: u64,
    /// Accepted heartbeats of the other side.
    pub heard: u64,
    /// Datagrams that are no heartbeats.
    pub malformed: u64,
    /// Heartbeats of another guest or incarnation.
    pub foreign: u64,
    /// Heartbeats of an older generation.
    pub stale: u64,
    /// Heartbeats that came twice, or after a later one.
    pub repeated: u64,
    /// Accepted, but not reported, because the caller takes no events.
    pub unreported: u64,
    /// Failures to receive.
    pub failures: u64,
}

/// Why there are no heartbeats.
#[derive(Debug, Error)]
pub enum HeartbeatError {
    /// The address cannot be bound.
    #[error("cannot receive heartbeats on UDP {address}: {cause}; choose a free local address and port")]
    Bind {
        /// The local address.
        address: SocketAddr,
        /// The system's answer.
        cause: io::Error,
    },
}

/// The decisions, without socket and clock.
#[derive(Debug)]
struct State {
    pair: Pair,
    /// Where heartbeats go; none until it is learned.
    peer: Option<SocketAddr>,
    is_silent: bool,
    number: u64,
    last_sent: Option<u64>,
    last_heard: u64,
    echo_ns: u64,
    /// The highest generation seen, if above the pair's and not reported.
    superseded: Option<u64>,
    /// The highest generation reported.
    reported: u64,
    counters: Counters,
}

impl State {
    fn new(pair: Pair, peer: Option<SocketAddr>) -> Self {
        State {
            pair,
            peer,
            is_silent: false,
            number: 0,
            last_sent: None,
            last_heard: 0,
            echo_ns: 0,
            superseded: None,
            reported: pair.generation,
            counters: Counters::default(),
        }
    }

    /// The next heartbeat and where it goes, unless there is nowhere to send it or nothing may be sent any more.
    fn next(&mut self, now: u64) -> Option<(SocketAddr, Beat)> {
        let peer = self.peer.filter(|_| !self.is_silent)?;
        let Pair {
            guest, generation, me, ..
        } = self.pair;
        self.number += 1;
        self.last_sent = Some(now);
        let beat = Beat {
            guest,
            generation,
            incarnation: me,
            number: self.number,
            sent_ns: now,
            echo_ns: self.echo_ns,
        };
        Some((peer, beat))
    }

    /// Judges what came from `from`, decoded if it could be; an event for a heartbeat of the other side.
    fn receive(&mut self, now: u64, from: SocketAddr, beat: Option<Beat>) -> Option<Event> {
        let (pair, counters) = (self.pair, &mut self.counters);
        let Some(beat) = beat else {
            counters.malformed += 1;
            return None;
        };
        if beat.guest != pair.guest {
            counters.foreign += 1;
        } else if beat.generation > pair.generation {
            if beat.generation > self.superseded.unwrap_or(self.reported) {
                self.superseded = Some(beat.generation);
            }
        } else if beat.generation < pair.generation {
            counters.stale += 1;
        } else if beat.incarnation != pair.peer {
            counters.foreign += 1;
        } else if beat.number <= self.last_heard {
            counters.repeated += 1;
        } else {
            counters.heard += 1;
            self.last_heard = beat.number;
            self.echo_ns = self.echo_ns.max(beat.sent_ns);
            self.peer.get_or_insert(from);
            return Some(Event::Heard {
                received_ns: now,
                sent_ns: beat.sent_ns,
                echo_ns: beat.echo_ns,
            });
        }
        None
    }

    /// Hands events upward: a newer generation until it is taken, a heartbeat only if there is room.
    fn report(&mut self, heard: Option<Event>, events: &mpsc::Sender<Event>) {
        if let Some(generation) = self.superseded
            && events.try_send(Event::Superseded { generation }).is_ok()
        {
            self.reported = generation;
            self.superseded = None;
        }
        if let Some(heard) = heard {
            self.counters.unreported += u64::from(events.try_send(heard).is_err());
        }
    }
}

/// One side's heartbeats. They end when this is dropped.
#[derive(Debug)]
pub struct Heartbeats {
    shell: Arc<Shell>,
    task: JoinHandle<()>,
    address: SocketAddr,
}

impl Heartbeats {
    /// Binds the socket and starts sending and receiving on the current tokio runtime. Events that are not taken are
    /// dropped, but for [`Event::Superseded`], which waits.
    ///
    /// # Errors
    /// [`HeartbeatError::Bind`].
    ///
    /// # Panics
    /// Outside a tokio runtime with time and I/O.
    pub fn start(config: Config) -> Result<(Self, mpsc::Receiver<Event>), HeartbeatError> {
        let address = config.bind;
        let bind = || {
            let sender = StdUdpSocket::bind(address)?;
            sender.set_nonblocking(true)?;
            let address = sender.local_addr()?;
            Ok((UdpSocket::from_std(sender.try_clone()?)?, sender, address))
        };
        let (socket, sender, address) = bind().map_err(|cause| HeartbeatError::Bind { address, cause })?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let state = Mutex::new(State::new(config.pair, config.peer));
        let shell = Arc::new(Shell { config, sender, state });
        let task = tokio::spawn(Arc::clone(&shell).run(socket, events));
        Ok((Heartbeats { shell, task, address }, receiver))
    }

    /// The address that the other side sends to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sends nothing more, for good: this side suspects the other (PROTOCOL 11). Returns when the last heartbeat was
    /// sent, by this host's clock in nanoseconds, from which the lease is outwaited (PROTOCOL 12); none is sent after
    /// this has returned. Receiving goes on.
    pub fn silence(&self) -> Option<u64> {
        let mut state = self.shell.state();
        state.is_silent = true;
        state.last_sent
    }

    /// What happened to datagrams so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shell.state().counters
    }

    /// Ends the heartbeats; the local port is free when this has returned.
    pub async fn stop(mut self) {
        self.task.abort();
        // Cancelled is what it should be.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shell {
    config: Config,
    /// Non-blocking, the same socket as the one received from: sending under the lock must not wait.
    sender: StdUdpSocket,
    state: Mutex<State>,
}

impl Shell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, socket: UdpSocket, events: mpsc::Sender<Event>) {
        let mut ticks = interval(self.config.period());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // One byte more than allowed: a longer datagram shows itself instead of being cut to size.
        let mut datagram = [0; DATAGRAM_BYTES + 1];
        loop {
            // The tick first: a flood of datagrams must not keep this side from sending.
            tokio::select! {
                biased;
                _ = ticks.tick() => self.send(&events),
                received = socket.recv_from(&mut datagram) => match received {
                    Ok((len, from)) => self.receive(&datagram[..len], from, &events),
                    Err(error) => {
                        tracing::debug!("cannot receive heartbeats: {error}");
                        self.state().counters.failures += 1;
                        // No spinning on an error that stays.
                        ticks.tick().await;
                        self.send(&events);
                    }
                },
            }
        }
    }

    fn send(&self, events: &mpsc::Sender<Event>) {
        let mut state = self.state();
        state.report(None, events);
        // The clock is read under the lock, or a heartbeat could be older than what `silence` returned.
        let Some((peer, beat)) = state.next((self.config.clock)()) else {
            return;
        };
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
        self.config.codec.encode(&beat, &mut datagram);
        match self.sender.send_to(&datagram, peer) {
            Ok(_) => state.counters.sent += 1,
            Err(_) => state.counters.unsent += 1,
        }
    }

    fn receive(&self, datagram: &[u8], from: SocketAddr, events: &mpsc::Sender<Event>) {
        let is_short = datagram.len() <= DATAGRAM_BYTES;
        let beat = is_short.then(|| self.config.codec.decode(datagram)).flatten();
        let mut state = self.state();
        let heard = state.receive((self.config.clock)(), from, beat);
        state.report(heard, events);
    }
}

#[cfg(test)]
#[path = "heartbeat_tests.rs"]
mod tests;
