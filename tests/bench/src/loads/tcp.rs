//! A TCP client that sends or takes as much as it can.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ftvm_demo::client::stack::Stack;
use ftvm_demo::hub::HubPort;
use ftvm_host::net::Dgram;
use smoltcp::socket::tcp::State;

use super::super::stats::number;

/// How often the client looks around while nothing arrives.
const LOOK: Duration = Duration::from_millis(10);
/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(100);
/// The server has just been started.
const CONNECT: Duration = Duration::from_secs(30);
/// Given and taken at once.
const BLOCK: usize = 1 << 14;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToGuest,
    FromGuest,
}

/// Where the client is plugged in, and who it is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) port: HubPort,
    pub(super) mac: [u8; 6],
    pub(super) ip: Ipv4Addr,
    pub(super) prefix: u8,
}

/// A connection.
pub(super) struct Tcp {
    stack: Stack,
}

impl Tcp {
    /// Connects to `server`, from `local` or a port behind it: every try needs another one.
    ///
    /// # Errors
    /// If nobody takes the connection.
    pub(super) fn connect(place: &Place, server: (Ipv4Addr, u16), local: u16) -> Result<Self, String> {
        let dgram = Dgram::open(&place.port.peer, &place.port.hub).map_err(|e| e.to_string())?;
        let mut stack = Stack::new(dgram, place.mac, place.ip, place.prefix, u64::from(local));
        let (begun, mut local) = (Instant::now(), local);
        loop {
            stack.turn();
            match stack.socket().state() {
                State::Established => return Ok(Tcp { stack }),
                State::Closed => {
                    std::thread::sleep(RETRY);
                    local += 1;
                    stack.connect(server, local).map_err(|e| e.to_string())?;
                }
                _ if begun.elapsed() > CONNECT => return Err(format!("no connection to port {}", server.1)),
                _ => stack.wait(LOOK),
            }
        }
    }

    /// Bytes per second that the guest took (acknowledged) or gave during `time`; then the connection is reset.
    ///
    /// # Errors
    /// If the connection ends before.
    pub(super) fn run(mut self, way: Way, time: Duration) -> Result<f64, String> {
        let mut block = [0x5a; BLOCK];
        let begun = Instant::now();
        let mut bytes = 0;
        while begun.elapsed() < time {
            self.stack.turn();
            let socket = self.stack.socket();
            let moved = match way {
                Way::ToGuest => socket.send_slice(&block).map_err(|e| e.to_string()),
                Way::FromGuest => socket.recv_slice(&mut block).map_err(|e| e.to_string()),
            };
            let moved = moved.map_err(|e| format!("the connection ended after {bytes} bytes: {e}"))?;
            bytes += moved;
            if moved == 0 {
                self.stack.wait(LOOK);
            }
        }
        let unacknowledged = match way {
            Way::ToGuest => self.stack.socket().send_queue(),
            Way::FromGuest => 0,
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.stack.socket().abort();
        self.stack.turn();
        Ok(number((bytes - unacknowledged) as u64) / seconds)
    }
}
