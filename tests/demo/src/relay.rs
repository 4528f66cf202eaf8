//! A cable for the logging channel and the heartbeats, in user space: TCP and UDP from one port of 127.0.0.1 to another
//! address, which can be cut or made slow.
//!
//! A killed process is the easiest death: its kernel closes its connections at once. A host that loses power or network
//! says nothing. [`Mode::Silent`] makes that death: connections stay open, what is sent fills the sender's buffers and
//! no end of a connection gets through, until the mode changes again (TCP then goes on where it was, as it does after a
//! cable is mended; UDP has lost what was sent meanwhile).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

mod tcp;
mod udp;

/// How often a thread that waits for the network looks at the mode and whether it is to end.
const LOOK: Duration = Duration::from_millis(10);

/// What the cable does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// Nothing passes, and nobody is told.
    Silent,
    /// Everything passes this much later, each way.
    Delay(Duration),
}

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
#[error("relay to {target}: cannot {what}: {source}")]
pub struct RelayError {
    target: SocketAddr,
    what: &'static str,
    source: io::Error,
}

/// A running relay. Dropping it closes every connection.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    back: SocketAddr,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

/// What the relay's threads share.
#[derive(Debug)]
struct State {
    current: Mutex<Current>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    mode: Mode,
    ending: bool,
}

/// The relay is being dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending;

impl Relay {
    /// Starts a relay to `target`, TCP and UDP, passing.
    ///
    /// # Errors
    /// [`RelayError`] if no port is free or a thread cannot be started.
    pub fn start(target: SocketAddr) -> Result<Relay, RelayError> {
        let failed = |what| move |source| RelayError { target, what, source };
        let (listener, front) = bind_both().map_err(failed("bind a TCP and a UDP port of one number"))?;
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed("bind a UDP port"))?;
        let current = Current {
            mode: Mode::Pass,
            ending: false,
        };
        let state = Arc::new(State {
            current: Mutex::new(current),
            changed: Condvar::new(),
        });
        let mut relay = Relay {
            address: listener.local_addr().map_err(failed("read its address"))?,
            back: back.local_addr().map_err(failed("read its address"))?,
            state: Arc::clone(&state),
            threads: Vec::new(),
        };
        let datagrams = udp::Datagrams::new(front, back, target).map_err(failed("set a UDP socket up"))?;
        listener.set_nonblocking(true).map_err(failed("set the listener up"))?;
        let streams = {
            let state = Arc::clone(&state);
            move || tcp::accept(&listener, target, &state)
        };
        relay
            .threads
            .push(spawn("relay-tcp", streams).map_err(failed("start a thread"))?);
        relay
            .threads
            .push(spawn("relay-udp", move || datagrams.run(&state)).map_err(failed("start a thread"))?);
        Ok(relay)
    }

    /// Where to connect, or send datagrams, instead of to the target.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where datagrams reach the target from, and where it may send its own: they go to whoever last sent to
    /// [`Relay::address`].
    #[must_use]
    pub fn back_address(&self) -> SocketAddr {
        self.back
    }

    /// Changes what the cable does.
    pub fn set_mode(&self, mode: Mode) {
        self.state.current.lock().mode = mode;
        self.state.changed.notify_all();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.current.lock().ending = true;
        self.state.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a relay thread panicked");
            }
        }
    }
}

impl State {
    fn mode(&self) -> Result<Mode, Ending> {
        let current = self.current.lock();
        if current.ending { Err(Ending) } else { Ok(current.mode) }
    }

    /// Waits while the cable is cut. Returns how late things are now.
    fn wait_while_silent(&self) -> Result<Duration, Ending> {
        let silent = |current: &mut Current| !current.ending && current.mode == Mode::Silent;
        let mut current = self.current.lock();
        self.changed.wait_while(&mut current, silent);
        match *current {
            Current { ending: true, .. } => Err(Ending),
            Current {
                mode: Mode::Delay(delay),
                ..
            } => Ok(delay),
            Current { .. } => Ok(Duration::ZERO),
        }
    }

    /// Waits until `due`, and then while the cable is cut.
    fn wait_until(&self, due: Instant) -> Result<(), Ending> {
        let mut current = self.current.lock();
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if current.ending {
                return Err(Ending);
            }
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut current, left);
        }
        drop(current);
        self.wait_while_silent().map(|_| ())
    }
}

/// Binds TCP and UDP to one port number, as the logging channel and the heartbeats may expect. The kernel chooses a TCP
/// port; another process may have its UDP twin, so this is tried a few times.
fn bind_both() -> io::Result<(TcpListener, UdpSocket)> {
    const TRIES: usize = 32;
    let mut last = io::Error::other("not tried");
    for _ in 0..TRIES {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match UdpSocket::bind(listener.local_addr()?) {
            Ok(socket) => return Ok((listener, socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

#[cfg(test)]
mod tests;
