//! An Ethernet switch in this process: ports are pairs of Unix datagram sockets.
//!
//! Port for port it is the other end of `NetConfig::Dgram` (and of QEMU's `-netdev dgram`). It stands for the network of
//! a demo or test: it learns where addresses are, notices that a port's owner has died (and floods, so that a backup
//! hears what its dead primary no longer does), can cut a cable silently, and keeps the times by which a black-out is
//! measured.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Mutex, MutexGuard};

use super::switch::{Route, Switch};
use ftvm_host::net::rarp::RARP_ETHERTYPE;
use ftvm_host::net::{Dgram, MAX_FRAME, MIN_FRAME, NetError};

/// Ports of one hub: a demo has three, a test one for each host that ever lived in it.
pub const MAX_PORTS: usize = 64;

/// Frames taken from one port before the others have their turn.
const BATCH: usize = 64;

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPort {
    /// The hub's own socket, which it makes; the `remote` of whoever is plugged in.
    pub hub: PathBuf,
    /// The `local` of whoever is plugged in. May come and go.
    pub peer: PathBuf,
}

/// Number of a port, in the order they were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortId(usize);

/// The state of a port's cable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cable {
    #[default]
    Plugged,
    /// Every frame either way is lost, and nobody is told.
    Cut,
}

/// What passed a port, seen from the hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Frames received from the port's owner, those lost to a cut cable not included.
    pub received: u64,
    /// Frames sent to the port's owner.
    pub sent: u64,
    /// Frames lost: cut cable, owner dead or too slow, impossible size.
    pub dropped: u64,
}

/// When frames came in at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortTimes {
    /// The first frame since the hub's start or the last [`Hub::forget_times`].
    pub first: Option<Instant>,
    /// The first frame that is no announcement (RARP): the guest's own.
    pub first_of_guest: Option<Instant>,
    /// The latest frame.
    pub last: Option<Instant>,
}

/// Why there is no hub, or no further port.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A port's socket.
    #[error("hub port {port}: {source}")]
    Port { port: usize, source: NetError },
    /// [`MAX_PORTS`] are in use.
    #[error("the hub has {MAX_PORTS} ports already")]
    Full,
    /// The thread or its wake-up.
    #[error("hub: cannot {what}: {source}")]
    Thread { what: &'static str, source: std::io::Error },
}

/// A running hub. Dropping it ends its thread and removes its sockets.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ports: Mutex<Vec<Arc<Port>>>,
    /// Interrupts the thread's poll: a port was added, or the hub is to end.
    changed: EventFd,
    ending: AtomicBool,
}

#[derive(Debug)]
struct Port {
    socket: Dgram,
    state: Mutex<PortState>,
}

#[derive(Debug, Default)]
struct PortState {
    cable: Cable,
    counts: PortCounts,
    times: PortTimes,
}

impl Hub {
    /// Starts a hub without ports.
    ///
    /// # Errors
    /// [`HubError::Thread`].
    pub fn start() -> Result<Hub, HubError> {
        let failed = |what, source| HubError::Thread { what, source };
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed("make an eventfd", errno.into()))?;
        let shared = Arc::new(Shared {
            ports: Mutex::default(),
            changed,
            ending: AtomicBool::new(false),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            let run = move || {
                if let Err(errno) = run(&shared) {
                    tracing::error!("the hub stopped: {errno}");
                }
            };
            std::thread::Builder::new().name("hub".into()).spawn(run)
        };
        Ok(Hub {
            shared,
            thread: Some(thread.map_err(|source| failed("start its thread", source))?),
        })
    }

    /// Adds a port.
    ///
    /// # Errors
    /// [`HubError::Port`] if its socket cannot be made, [`HubError::Full`].
    pub fn add(&self, port: &HubPort) -> Result<PortId, HubError> {
        let mut ports = self.shared.ports();
        let number = ports.len();
        if number == MAX_PORTS {
            return Err(HubError::Full);
        }
        let socket = Dgram::open(&port.hub, &port.peer).map_err(|source| HubError::Port { port: number, source })?;
        ports.push(Arc::new(Port {
            socket,
            state: Mutex::default(),
        }));
        drop(ports);
        self.shared.wake();
        Ok(PortId(number))
    }

    /// Cuts or mends a port's cable.
    pub fn set_cable(&self, port: PortId, cable: Cable) {
        self.shared.port(port).state().cable = cable;
    }

    /// What passed a port so far.
    #[must_use]
    pub fn counts(&self, port: PortId) -> PortCounts {
        self.shared.port(port).state().counts
    }

    /// When frames came in at a port.
    #[must_use]
    pub fn times(&self, port: PortId) -> PortTimes {
        self.shared.port(port).state().times
    }

    /// Forgets a port's times: its next frame is the first one.
    pub fn forget_times(&self, port: PortId) {
        self.shared.port(port).state().times = PortTimes::default();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the hub panicked");
        }
    }
}

impl Shared {
    fn ports(&self) -> MutexGuard<'_, Vec<Arc<Port>>> {
        self.ports.lock()
    }

    fn port(&self, port: PortId) -> Arc<Port> {
        Arc::clone(&self.ports()[port.0])
    }

    fn wake(&self) {
        if let Err(errno) = self.changed.write(1) {
            tracing::error!("cannot wake the hub: {errno}");
        }
    }
}

impl Port {
    fn state(&self) -> MutexGuard<'_, PortState> {
        self.state.lock()
    }

    /// Notes a frame that came in; whether it goes on.
    fn admit(&self, frame: &[u8]) -> bool {
        let mut state = self.state();
        if state.cable == Cable::Cut || !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            state.counts.dropped += 1;
            return false;
        }
        let now = Instant::now();
        state.counts.received += 1;
        state.times.last = Some(now);
        state.times.first.get_or_insert(now);
        if frame[12..14] != RARP_ETHERTYPE.to_be_bytes() {
            state.times.first_of_guest.get_or_insert(now);
        }
        true
    }

    /// Sends a frame to the owner; whether there is one.
    fn send(&self, frame: &[u8]) -> Owner {
        if self.state().cable == Cable::Cut {
            self.state().counts.dropped += 1;
            return Owner::Unknown;
        }
        let result = self.socket.send(frame);
        let mut state = self.state();
        match result {
            Ok(_) => state.counts.sent += 1,
            Err(_) => state.counts.dropped += 1,
        }
        match result {
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => Owner::Dead,
            _ => Owner::Unknown,
        }
    }
}

/// Whether a port's owner is known to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Unknown,
    Dead,
}

fn run(shared: &Shared) -> Result<(), Errno> {
    let mut switch = Switch::default();
    // One byte more than fits, so that a frame that was cut is noticed.
    let mut buffer = [0; MAX_FRAME + 1];
    while !shared.ending.load(Ordering::Acquire) {
        let ports = shared.ports().clone();
        for (number, port) in readable(&ports, &shared.changed)? {
            for _ in 0..BATCH {
                let len = match port.socket.recv(&mut buffer) {
                    Ok(len) => len,
                    Err(Errno::EAGAIN | Errno::EINTR) => break,
                    Err(errno) => return Err(errno),
                };
                if port.admit(&buffer[..len]) {
                    // As they are now: a port that was added before the frame was sent must not miss it.
                    let ports = shared.ports().clone();
                    forward(&mut switch, &ports, number, &buffer[..len]);
                }
            }
        }
    }
    Ok(())
}

/// Waits until a port has frames, or something else has changed.
fn readable<'a>(ports: &'a [Arc<Port>], changed: &EventFd) -> Result<Vec<(usize, &'a Port)>, Errno> {
    let mut waits: Vec<PollFd<'_>> = ports
        .iter()
        .map(|port| PollFd::new(port.socket.as_fd(), PollFlags::POLLIN))
        .collect();
    waits.push(PollFd::new(changed.as_fd(), PollFlags::POLLIN));
    match poll(&mut waits, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    }
    if waits[ports.len()].any() == Some(true) {
        changed.read()?;
    }
    let ready = waits
        .iter()
        .zip(ports)
        .enumerate()
        .filter(|(_, (wait, _))| wait.any() == Some(true));
    Ok(ready.map(|(number, (_, port))| (number, &**port)).collect())
}

/// Sends a frame on; one whose receiver is dead goes to everybody else.
fn forward(switch: &mut Switch, ports: &[Arc<Port>], from: usize, frame: &[u8]) {
    let skip = match switch.route(from, frame) {
        Route::Nowhere => return,
        Route::Flood => None,
        Route::Port(to) => match ports[to].send(frame) {
            Owner::Unknown => return,
            Owner::Dead => {
                switch.forget(to);
                Some(to)
            }
        },
    };
    for (number, port) in ports.iter().enumerate() {
        if number != from && Some(number) != skip && port.send(frame) == Owner::Dead {
            switch.forget(number);
        }
    }
}

#[cfg(test)]
mod tests;
