//! A TCP/IP stack of one's own on a hub port: smoltcp over a Unix datagram socket.
//!
//! The stack takes time as an argument, and gets it [`CLOCK_SCALE`] times too fast. Its retransmission timeout is at
//! least a second, as RFC 6298 wants it for the Internet, and doubles; through a failover of a few hundred milliseconds
//! such a client would sleep, and what it measures would be its own timer. Production stacks on a local network start at
//! 200 ms and less. Scaled, this one starts at 50 ms; nothing else it does depends on real time.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use ftvm_host::net::{Dgram, MAX_FRAME, MIN_FRAME};

/// How many times faster than real time the stack's clock runs: a retransmission timeout of 1 s becomes 50 ms. An
/// address resolved by ARP stays valid for 60 s / 20 = 3 s without traffic, longer than a failover takes.
const CLOCK_SCALE: u32 = 20;

/// Bytes of a socket's buffer each way: the largest window without scaling.
const SOCKET_BUFFER: usize = 65_535;

/// Header and an MTU of 1500.
const FRAME: usize = 1514;

/// One interface with one TCP socket.
#[allow(missing_debug_implementations, reason = "smoltcp's interface has none")]
pub struct Stack {
    pub(super) cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    begun: Instant,
}

impl Stack {
    /// A stack at `ip` in a network of `prefix` bits, on the hub port that `dgram` is plugged into.
    #[must_use]
    pub fn new(dgram: Dgram, mac: [u8; 6], ip: Ipv4Addr, prefix: u8, seed: u64) -> Stack {
        let mut cable = Cable { dgram };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(ip.into(), prefix))
                .expect("the first address fits");
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; SOCKET_BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // Every request is an answer to an acknowledgement: holding it back would be measured.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Stack {
            cable,
            interface,
            sockets,
            socket,
            begun: Instant::now(),
        }
    }

    /// Lets the stack receive, send and look at its timers.
    pub fn turn(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
    }

    /// The socket.
    pub fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Begins to connect from local port `port`; the socket must be closed.
    ///
    /// # Errors
    /// If the socket is not closed, or an address is none.
    pub fn connect(&mut self, server: (Ipv4Addr, u16), port: u16) -> Result<(), tcp::ConnectError> {
        let socket = self.sockets.get_mut::<tcp::Socket<'static>>(self.socket);
        socket.connect(self.interface.context(), server, port)
    }

    /// Waits until a frame arrives, a timer of the stack is due, or `at_most` has passed.
    pub fn wait(&mut self, at_most: Duration) {
        let now = self.now();
        let due = self.interface.poll_delay(now, &self.sockets);
        let due = due.map_or(at_most, |due| Duration::from(due) / CLOCK_SCALE);
        let mut waits = [PollFd::new(self.cable.dgram.as_fd(), PollFlags::POLLIN)];
        // Whatever poll says, the next turn looks.
        let _ = ppoll(&mut waits, Some(TimeSpec::from_duration(due.min(at_most))), None);
    }

    fn now(&self) -> smoltcp::time::Instant {
        let scaled = self.begun.elapsed() * CLOCK_SCALE;
        smoltcp::time::Instant::from_micros(i64::try_from(scaled.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The stack's network card.
#[derive(Debug)]
pub struct Cable {
    pub(super) dgram: Dgram,
}

impl Device for Cable {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let mut frame = vec![0; MAX_FRAME + 1];
        loop {
            // Nothing there, or a socket that fails: either way no frame.
            let len = self.dgram.recv(&mut frame).ok()?;
            if (MIN_FRAME..=MAX_FRAME).contains(&len) {
                frame.truncate(len);
                return Some((Received(frame), Sending(&self.dgram)));
            }
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.dgram))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// A received frame.
#[derive(Debug)]
pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room for a frame.
#[derive(Debug)]
pub struct Sending<'a>(&'a Dgram);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        // A frame that cannot be sent is lost, as on an unplugged cable.
        let _ = self.0.send(&frame);
        result
    }
}
