//! The network: streams with bounded buffers and no message boundaries, datagrams that get lost, doubled and out of
//! order, and partitions. Bytes here are what the real codec made.

use std::collections::VecDeque;

use logging_channel::codec::FrameDecoder;

use super::rng::Rng;

/// Bytes of a stream that are on their way or unread at the receiver, at most: small, so that a stalled receiver is soon felt.
const WINDOW: usize = 64 << 10;

/// Of what a dead process had not sent yet, so much is in its kernel, which goes on sending.
const KERNEL: usize = 16 << 10;

/// Largest piece of a stream that arrives at once: a large segment, offloaded.
const SEGMENT: usize = 32 << 10;

/// How long after the end of a partition a stream is heard again: TCP's retransmission timer.
const RETRANSMIT: u64 = 20_000_000;

pub type ConnId = usize;
pub type ProcId = usize;

/// No datagrams or segments from one host to the other between two times.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    pub from: usize,
    pub to: usize,
    pub begins: u64,
    pub ends: u64,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Direction {
    /// Written by the process and not on its way.
    queue: VecDeque<u8>,
    /// Bytes on their way.
    in_flight: usize,
    /// Arrived; the receiver has not read it.
    pub unread: VecDeque<u8>,
    last_arrival: u64,
    /// Position in the stream of the next byte to be sent, and where the stream was cut by a crash.
    sent: u64,
    cut: Option<u64>,
    /// Nothing follows what is queued.
    fin: bool,
    fin_sent: bool,
    /// The receiver has seen the end.
    pub ended: bool,
}

/// A connection between two processes; direction 0 goes from the first to the second.
#[derive(Debug)]
pub struct Conn {
    pub ends: [ProcId; 2],
    pub hosts: [usize; 2],
    pub ways: [Direction; 2],
    pub decoders: [FrameDecoder; 2],
}

/// Something arrives at time `.0`.
#[derive(Debug)]
pub enum Arrival {
    Bytes {
        conn: ConnId,
        way: usize,
        at: u64,
        bytes: Vec<u8>,
    },
    Fin {
        conn: ConnId,
        way: usize,
    },
}

/// All connections and partitions.
#[derive(Debug, Default)]
pub struct Network {
    pub conns: Vec<Conn>,
    pub partitions: Vec<Partition>,
    /// Shortest and longest delay.
    pub delay: (u64, u64),
    /// Of a thousand datagrams.
    pub lost: u64,
    pub doubled: u64,
}

impl Network {
    /// A new connection.
    pub fn connect(&mut self, ends: [ProcId; 2], hosts: [usize; 2]) -> ConnId {
        self.conns.push(Conn {
            ends,
            hosts,
            ways: Default::default(),
            decoders: [FrameDecoder::new(), FrameDecoder::new()],
        });
        self.conns.len() - 1
    }

    /// Until when nothing gets through at `now`.
    #[must_use]
    pub fn blocked(&self, from: usize, to: usize, now: u64) -> Option<u64> {
        let covers = |p: &&Partition| (p.from, p.to) == (from, to) && (p.begins..p.ends).contains(&now);
        self.partitions.iter().filter(covers).map(|p| p.ends).max()
    }

    /// When a datagram sent `now` arrives: never, once or twice.
    pub fn datagram(&self, from: usize, to: usize, now: u64, rng: &mut Rng) -> Vec<u64> {
        if rng.permille(self.lost) || self.blocked(from, to, now).is_some() {
            return Vec::new();
        }
        let copies = if rng.permille(self.doubled) { 2 } else { 1 };
        (0..copies)
            .map(|_| now + rng.delay(self.delay.0, self.delay.1 * 4))
            .collect()
    }

    /// The process writes to its end of a connection.
    pub fn write(&mut self, conn: ConnId, way: usize, bytes: &[u8]) {
        let direction = &mut self.conns[conn].ways[way];
        if !direction.fin && direction.cut.is_none() {
            direction.queue.extend(bytes);
        }
    }

    /// Nothing follows what has been written.
    pub fn finish(&mut self, conn: ConnId, way: usize) {
        self.conns[conn].ways[way].fin = true;
    }

    /// The process at the sending end is dead: its kernel sends what it has taken, and the end.
    pub fn abandon(&mut self, conn: ConnId, way: usize) {
        let direction = &mut self.conns[conn].ways[way];
        direction.queue.truncate(KERNEL);
        direction.fin = true;
    }

    /// The host at the sending end is dead: some of what is on its way arrives, cut anywhere, and no end.
    pub fn crash(&mut self, conn: ConnId, way: usize, rng: &mut Rng) {
        let direction = &mut self.conns[conn].ways[way];
        direction.queue.clear();
        let flying = direction.in_flight as u64;
        direction.cut.get_or_insert(direction.sent - rng.between(0, flying));
    }

    /// Sends what the window allows; what arrives, and when.
    pub fn pump(&mut self, conn: ConnId, way: usize, now: u64, rng: &mut Rng) -> Vec<(u64, Arrival)> {
        let [from, to] = if way == 0 {
            self.conns[conn].hosts
        } else {
            [self.conns[conn].hosts[1], self.conns[conn].hosts[0]]
        };
        let blocked = self.blocked(from, to, now);
        let direction = &mut self.conns[conn].ways[way];
        let mut arrivals = Vec::new();
        if direction.cut.is_some() {
            return arrivals;
        }
        while !direction.queue.is_empty() && direction.in_flight + direction.unread.len() < WINDOW {
            let room = WINDOW - direction.in_flight - direction.unread.len();
            let most = direction.queue.len().min(room).min(SEGMENT);
            let len = if rng.permille(500) {
                most
            } else {
                usize::try_from(rng.between(1, most as u64)).unwrap_or(most)
            };
            let bytes = take(&mut direction.queue, len);
            let time = direction.next(now, blocked, self.delay, rng);
            let at = direction.sent;
            direction.sent += len as u64;
            direction.in_flight += len;
            arrivals.push((time, Arrival::Bytes { conn, way, at, bytes }));
        }
        if direction.queue.is_empty() && direction.fin && !direction.fin_sent {
            direction.fin_sent = true;
            let time = direction.next(now, blocked, self.delay, rng);
            arrivals.push((time, Arrival::Fin { conn, way }));
        }
        arrivals
    }

    /// Bytes arrive in the receiver's buffer.
    pub fn arrive(&mut self, conn: ConnId, way: usize, at: u64, mut bytes: Vec<u8>) {
        let direction = &mut self.conns[conn].ways[way];
        direction.in_flight -= bytes.len();
        if let Some(cut) = direction.cut {
            bytes.truncate(usize::try_from(cut.saturating_sub(at)).unwrap_or(usize::MAX));
        }
        direction.unread.extend(bytes);
    }
}

/// Takes the first `len` bytes.
pub fn take(queue: &mut VecDeque<u8>, len: usize) -> Vec<u8> {
    let (front, back) = queue.as_slices();
    let split = len.min(front.len());
    let bytes = [&front[..split], &back[..len - split]].concat();
    queue.drain(..len);
    bytes
}

impl Direction {
    /// Bytes that the process has written and that are not on their way.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether there is something for the receiver to read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        !self.unread.is_empty() || self.ended
    }

    /// When the next thing arrives: in order, after a partition.
    fn next(&mut self, now: u64, blocked: Option<u64>, delay: (u64, u64), rng: &mut Rng) -> u64 {
        let from = blocked.map_or(now, |ends| ends + rng.between(0, RETRANSMIT));
        let time = (from + rng.delay(delay.0, delay.1)).max(self.last_arrival + 1);
        self.last_arrival = time;
        time
    }
}
