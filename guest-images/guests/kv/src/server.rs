//! The server: connections, and rounds of work.

use alloc::vec::Vec;

use guest_rt::abi::status;
use guest_rt::{println, timer, user};
use kv_core::connection::{Fate, Reception, Taken, Tcp, fate};
use kv_core::engine::{Engine, Outcome};
use kv_core::session::{Pause, Session};
use smoltcp::iface::{
    Config as InterfaceConfig, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Cidr};

use crate::config::{Buffers, Config, MAX_REFUSALS, MIN_HEAP, Shares};
use crate::disk::Disk;
use crate::network::Network;

/// Frames taken in a round.
const FRAMES: usize = 256;
/// Requests that a connection executes in a round, before others have their turn.
const TURN: usize = 512;
/// A connection that has been silent is asked for a sign of life, and given up if there is none for long.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(180);
const MS_PER_TICK: u64 = 1000 / timer::TICK_HZ as u64;

/// Time by ticks: monotonic for timers, and since 1970 for deadlines of keys.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Milliseconds since 1970 at tick 0, if the real-time clock knew.
    base: Option<u64>,
}

impl Clock {
    /// Reads the real-time clock, once.
    pub fn start() -> Self {
        Self {
            base: timer::real_time().map(|seconds| seconds * 1000),
        }
    }

    /// Whether the date is unknown.
    pub fn is_relative(&self) -> bool {
        self.base.is_none()
    }

    /// Milliseconds since the guest began to count.
    pub fn uptime() -> u64 {
        timer::ticks() * MS_PER_TICK
    }

    /// Milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.base.unwrap_or(0) + Self::uptime()
    }
}

struct Connection {
    socket: SocketHandle,
    /// It has a large place, as one that is served or was; else a small one, to be told that there are too many.
    is_large: bool,
    session: Session,
    /// Replies wait until the log is stable up to here.
    barrier: Option<u64>,
    /// When it came, or began to close.
    since: u64,
}

// What is known of each client that is told, and as much again while the lists of them grow, is a small part of the
// eighth of the heap that is nobody else's.
const _: () =
    assert!(2 * MAX_REFUSALS * (size_of::<Connection>() + size_of::<SocketStorage<'static>>()) <= MIN_HEAP / 8 / 2);

/// Counts connections. Those that are closing are not served: nothing more is taken of them, they only wait for the client
/// to go.
fn taken(connections: &[Connection]) -> Taken {
    let mut taken = Taken::default();
    for connection in connections {
        taken.served += usize::from(!connection.session.is_closing());
        taken.large += usize::from(connection.is_large);
        taken.small += usize::from(!connection.is_large);
    }
    taken
}

/// The socket that waits for the next client.
#[derive(Clone, Copy)]
struct Listener {
    socket: SocketHandle,
    /// What that client finds.
    reception: Reception,
}

/// The server.
pub struct Server {
    network: Network,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// One is enough, as each frame is followed by [`Server::accept`]. None if the next client is to find nobody.
    listener: Option<Listener>,
    connections: Vec<Connection>,
    next_id: u64,
    port: u16,
    shares: Shares,
    engine: Engine,
    disk: Option<Disk>,
    clock: Clock,
    /// A client has asked for the end.
    stopping: bool,
}

impl Server {
    /// A server that listens. The engine is started here: what the log held is in it.
    pub fn new(
        config: &Config,
        shares: &Shares,
        mut network: Network,
        disk: Option<Disk>,
        mut engine: Engine,
        clock: Clock,
        seed: u64,
    ) -> Self {
        engine.start(clock.now());
        let mut interface_config = InterfaceConfig::new(EthernetAddress(network.0.mac()).into());
        interface_config.random_seed = seed;
        let mut interface = Interface::new(interface_config, &mut network, instant());
        let address = Ipv4Cidr::new(config.address.ip, config.address.prefix);
        interface.update_ip_addrs(|addresses| {
            // The list is empty, so there is room.
            let _ = addresses.push(IpCidr::Ipv4(address));
        });
        // As for the addresses.
        let _ = interface.routes_mut().add_default_ipv4_route(config.gateway);
        let mut server = Self {
            network,
            interface,
            sockets: SocketSet::new(Vec::new()),
            listener: None,
            connections: Vec::new(),
            next_id: 1,
            port: config.port,
            shares: *shares,
            engine,
            disk,
            clock,
            stopping: false,
        };
        server.listen();
        println!("kv ready on {}:{}", config.address.ip, config.port);
        server
    }

    /// Serves until a client asks for the end; the guest's exit status.
    pub fn run(&mut self) -> u8 {
        loop {
            let mut busy = self.take_frames();
            busy |= self.drive_disk();
            if !self.disk.as_mut().is_some_and(|disk| disk.log().needs_still_store()) {
                self.engine.advance(self.clock.now());
                busy |= self.serve();
                busy |= self.drive_disk();
            }
            if self.stopping && self.is_all_stable() {
                self.hang_up();
                println!("kv stopped with {} keys", self.engine.store().len());
                return status::OK;
            }
            self.reply();
            busy |= self.send_frames();
            self.reap();
            if !busy && self.network.0.prepare_to_wait() {
                user::idle();
            }
            self.network.0.resume();
        }
    }

    /// Takes the frames that are there. Whether there were any.
    fn take_frames(&mut self) -> bool {
        for count in 0..FRAMES {
            let result = self
                .interface
                .poll_ingress_single(instant(), &mut self.network, &mut self.sockets);
            if result == PollIngressSingleResult::None {
                return count > 0;
            }
            self.accept();
        }
        true
    }

    /// Turns the socket that a client has found into a connection, and sees to it that another listens.
    fn accept(&mut self) {
        let found = |listener: &mut Listener| self.sockets.get::<Socket<'_>>(listener.socket).state() != State::Listen;
        let Some(Listener { socket, reception }) = self.listener.take_if(found) else {
            return;
        };
        self.engine.statistics.connections_received += 1;
        let mut session = Session::new(self.next_id);
        self.next_id += 1;
        let is_large = reception == Reception::Serve;
        if !is_large {
            self.engine.statistics.connections_rejected += 1;
            session.refuse("ERR max number of clients reached");
        }
        self.connections.push(Connection {
            socket,
            is_large,
            session,
            barrier: None,
            since: Clock::uptime(),
        });
        self.listen();
    }

    /// Has a socket of the right size wait for the next client. No client has found the one that does so now.
    fn listen(&mut self) {
        let reception = self.shares.connections.reception(taken(&self.connections));
        if self.listener.is_some_and(|listener| listener.reception == reception) {
            return;
        }
        if let Some(unneeded) = self.listener.take() {
            self.sockets.remove(unneeded.socket);
        }
        let buffers = match reception {
            Reception::Serve => Buffers::LARGE,
            Reception::Refuse => Buffers::SMALL,
            Reception::Nobody => return,
        };
        let buffer = |size| SocketBuffer::new(alloc::vec![0; size]);
        let mut socket = Socket::new(buffer(buffers.receive), buffer(buffers.transmit));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(TIMEOUT));
        // A new socket can listen on any port but 0, which the command line may say.
        if socket.listen(self.port).is_err() {
            println!("kv: port {} cannot be listened on", self.port);
            guest_rt::power::exit(status::USAGE);
        }
        let socket = self.sockets.add(socket);
        self.listener = Some(Listener { socket, reception });
    }

    fn drive_disk(&mut self) -> bool {
        self.disk
            .as_mut()
            .is_some_and(|disk| disk.drive(&mut self.engine, Clock::uptime()))
    }

    /// Takes in what clients have sent, and executes it. Whether there is more to do at once.
    fn serve(&mut self) -> bool {
        let mut busy = false;
        let mut memory: usize = self
            .connections
            .iter()
            .map(|connection| connection.session.memory())
            .sum();
        self.engine.statistics.connected_clients = taken(&self.connections).served;
        for connection in &mut self.connections {
            if self.stopping {
                break;
            }
            // One that ends has had its last word: it hears no other reason, and nothing is taken of it.
            if connection.barrier.is_some() || connection.session.is_closing() {
                continue;
            }
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            memory += receive(socket, &mut connection.session);
            if memory > self.shares.session_memory {
                memory -= connection.session.memory();
                connection
                    .session
                    .refuse("OOM too many requests and replies are held for all clients");
            }
            let before = self.engine.statistics.commands;
            let pause = connection.session.process(&mut self.engine, TURN);
            match pause {
                Pause::Asked(Outcome::Save) => {
                    let journalled = self.engine.journalled();
                    connection.barrier = Some(journalled);
                    self.disk.iter_mut().for_each(|disk| disk.log().want_flush(journalled));
                }
                Pause::Asked(Outcome::Rewrite) => self.disk.iter_mut().for_each(|disk| disk.log().want_rewrite()),
                Pause::Asked(Outcome::Shutdown) => self.stopping = true,
                Pause::NeedsInput if !socket.may_recv() && matches!(tcp(socket), Tcp::Open | Tcp::Over) => {
                    connection.session.end();
                }
                _ => {}
            }
            if connection.session.is_closing() {
                connection.since = Clock::uptime();
            }
            busy |= matches!(pause, Pause::Turn | Pause::Asked(_));
            if self.engine.statistics.commands != before {
                let journalled = self.engine.journalled();
                let barrier = self.disk.as_mut().and_then(|disk| disk.log().barrier(journalled));
                connection.barrier = connection.barrier.max(barrier);
            }
        }
        busy
    }

    /// Whether the log needs nothing more before the machine may stop.
    fn is_all_stable(&mut self) -> bool {
        let journalled = self.engine.journalled();
        self.disk.as_mut().is_none_or(|disk| {
            disk.log().want_flush(journalled);
            disk.log().durable() >= journalled
        })
    }

    /// Sends the last replies and ends all connections.
    fn hang_up(&mut self) {
        self.reply();
        for connection in &self.connections {
            self.sockets.get_mut::<Socket<'_>>(connection.socket).close();
        }
        self.send_frames();
    }

    /// Hands replies over to TCP, as far as the log allows and the client takes them.
    fn reply(&mut self) {
        let durable = self.disk.as_mut().map_or(u64::MAX, |disk| disk.log().durable());
        for connection in &mut self.connections {
            if connection.barrier.is_some_and(|barrier| barrier > durable) {
                continue;
            }
            connection.barrier = None;
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            // A client that has gone takes nothing; `reap` sees to it.
            if let Ok(sent @ 1..) = socket.send_slice(connection.session.output()) {
                connection.session.sent(sent);
            }
            if connection.session.is_closing() && connection.session.output().is_empty() && socket.may_send() {
                socket.close();
            }
        }
    }

    /// Sends what TCP has to send, and notifies the device once. Whether there was anything.
    fn send_frames(&mut self) -> bool {
        let mut sent = false;
        while self
            .interface
            .poll_egress(instant(), &mut self.network, &mut self.sockets)
            == PollResult::SocketStateChanged
        {
            sent = true;
        }
        self.network.0.notify();
        sent
    }

    /// Removes connections that are over, and gives up those that take too long to begin or to end.
    fn reap(&mut self) {
        let now = Clock::uptime();
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let socket = sockets.get_mut::<Socket<'_>>(connection.socket);
            let age = now.saturating_sub(connection.since);
            let fate = fate(tcp(socket), connection.session.is_closing(), age);
            match fate {
                Fate::Keep => {}
                Fate::Abort => socket.abort(),
                Fate::Remove => {
                    sockets.remove(connection.socket);
                }
            }
            fate != Fate::Remove
        });
        self.listen();
    }
}

fn instant() -> Instant {
    Instant::from_millis(i64::try_from(Clock::uptime()).unwrap_or(i64::MAX))
}

/// What a connection's socket is at.
fn tcp(socket: &Socket<'_>) -> Tcp {
    match socket.state() {
        State::Listen => Tcp::Listening,
        State::SynSent | State::SynReceived => Tcp::Handshake,
        State::Established | State::FinWait1 | State::FinWait2 | State::CloseWait | State::Closing | State::LastAck => {
            Tcp::Open
        }
        State::Closed | State::TimeWait => Tcp::Over,
    }
}

/// Moves received bytes into the session, and says by how much its memory has grown.
fn receive(socket: &mut Socket<'_>, session: &mut Session) -> usize {
    let before = session.memory();
    // The receive buffer is a ring: what is there may come in two pieces.
    while session.room() > 0 && socket.can_recv() {
        let taken = socket.recv(|bytes| {
            let len = bytes.len().min(session.room());
            session.receive(&bytes[..len]);
            (len, len)
        });
        if !matches!(taken, Ok(1..)) {
            break;
        }
    }
    session.memory().saturating_sub(before)
}
