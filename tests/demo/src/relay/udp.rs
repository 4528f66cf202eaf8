//! The relay's datagrams.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};

use super::{Ending, LOOK, Mode, State};
use ftvm_host::poll_timeout;

/// Datagrams delayed at one time; further ones are lost. A heartbeat is sent a few hundred times a second at most.
const MAX_DELAYED: usize = 1024;

/// Longest UDP datagram.
const MAX_DATAGRAM: usize = 65_535;

/// Datagrams taken from one socket before the other has its turn.
const BATCH: usize = 64;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    ToTarget,
    ToClient,
}

/// Both sockets and what is under way between them.
pub(super) struct Datagrams {
    /// Clients send here.
    front: UdpSocket,
    /// The target sees this one.
    back: UdpSocket,
    target: SocketAddr,
    /// Who last sent to `front`.
    client: Option<SocketAddr>,
    delayed: VecDeque<(Instant, Way, Vec<u8>)>,
}

impl Datagrams {
    pub(super) fn new(front: UdpSocket, back: UdpSocket, target: SocketAddr) -> io::Result<Datagrams> {
        front.set_nonblocking(true)?;
        back.set_nonblocking(true)?;
        Ok(Datagrams {
            front,
            back,
            target,
            client: None,
            delayed: VecDeque::new(),
        })
    }

    /// Relays until the relay ends.
    pub(super) fn run(mut self, state: &State) {
        loop {
            self.wait();
            if self.receive(state).is_err() {
                return;
            }
            self.send_due();
        }
    }

    fn wait(&self) {
        let due = self
            .delayed
            .front()
            .map(|(due, ..)| due.saturating_duration_since(Instant::now()));
        let mut waits = [
            PollFd::new(self.front.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.back.as_fd(), PollFlags::POLLIN),
        ];
        // Whatever poll says, the sockets are read without waiting.
        let _ = poll(&mut waits, poll_timeout(due.unwrap_or(LOOK).min(LOOK)));
    }

    /// The mode is asked for after each datagram has been received, so that it is never older than the datagram.
    fn receive(&mut self, state: &State) -> Result<(), Ending> {
        let mut buffer = vec![0; MAX_DATAGRAM];
        for _ in 0..BATCH {
            let Ok((len, client)) = self.front.recv_from(&mut buffer) else {
                break;
            };
            self.client = Some(client);
            self.take(state.mode()?, Way::ToTarget, &buffer[..len]);
        }
        for _ in 0..BATCH {
            let Ok((len, _)) = self.back.recv_from(&mut buffer) else {
                break;
            };
            self.take(state.mode()?, Way::ToClient, &buffer[..len]);
        }
        // What is under way when the cable is cut is lost.
        if state.mode()? == Mode::Silent {
            self.delayed.clear();
        }
        Ok(())
    }

    fn take(&mut self, mode: Mode, way: Way, datagram: &[u8]) {
        let delay = match mode {
            Mode::Silent => return,
            Mode::Pass => Duration::ZERO,
            Mode::Delay(delay) => delay,
        };
        if self.delayed.len() < MAX_DELAYED {
            self.delayed.push_back((Instant::now() + delay, way, datagram.to_vec()));
        }
    }

    fn send_due(&mut self) {
        while self.delayed.front().is_some_and(|(due, ..)| *due <= Instant::now()) {
            let Some((_, way, datagram)) = self.delayed.pop_front() else {
                break;
            };
            // A datagram that cannot be sent is lost, as datagrams are.
            let _ = match (way, self.client) {
                (Way::ToTarget, _) => self.back.send_to(&datagram, self.target),
                (Way::ToClient, Some(client)) => self.front.send_to(&datagram, client),
                (Way::ToClient, None) => continue,
            };
        }
    }
}
