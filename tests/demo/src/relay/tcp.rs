//! The relay's streams: per direction one thread that reads and one that writes when things are due.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Ending, LOOK, State, spawn};

/// Connections at one time; further ones are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// Bytes read at once, and pieces under way per direction: 4 MiB, a second at 32 Mbit/s of delay line.
const PIECE: usize = 64 * 1024;
const MAX_PIECES: usize = 64;

/// How long connecting to the target may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Accepts connections until the relay ends.
pub(super) fn accept(listener: &TcpListener, target: SocketAddr, state: &Arc<State>) {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while state.mode().is_ok() {
        match listener.accept() {
            Ok((client, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() < MAX_CONNECTIONS {
                    let state = Arc::clone(state);
                    match spawn("relay-connection", move || serve(client, target, &state)) {
                        Ok(connection) => connections.push(connection),
                        Err(error) => tracing::warn!("relay: connection refused: {error}"),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(LOOK),
            Err(error) => {
                tracing::warn!("relay: accept: {error}");
                thread::sleep(LOOK);
            }
        }
    }
    for connection in connections {
        if connection.join().is_err() {
            tracing::error!("a relay connection panicked");
        }
    }
}

/// Relays one connection until both directions have ended.
fn serve(client: TcpStream, target: SocketAddr, state: &Arc<State>) {
    // Behind a cut cable there is no target to connect to.
    if state.wait_while_silent().is_err() {
        return;
    }
    let server = match TcpStream::connect_timeout(&target, CONNECT_WAIT) {
        Ok(server) => server,
        Err(error) => {
            tracing::info!("relay: {target}: {error}");
            return;
        }
    };
    if let Err(error) = relay_both(&client, &server, state) {
        tracing::warn!("relay: {error}");
    }
    for stream in [client, server] {
        // An error means that it is closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn relay_both(client: &TcpStream, server: &TcpStream, state: &State) -> io::Result<()> {
    for stream in [client, server] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(LOOK))?;
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for (from, to) in [(client, server), (server, client)] {
            let (sender, receiver) = bounded(MAX_PIECES);
            let ended = &ended;
            scope.spawn(move || read_side(from, &sender, state, ended));
            scope.spawn(move || write_side(to, &receiver, state, ended));
        }
    });
    Ok(())
}

/// A piece of the stream and when it is due; empty at its end.
type Piece = (Instant, Vec<u8>);

/// Reads until the end of the stream. `ended`: the connection as a whole has failed.
fn read_side(mut from: &TcpStream, pieces: &Sender<Piece>, state: &State, ended: &AtomicBool) {
    let mut buffer = vec![0; PIECE];
    while !ended.load(Ordering::Acquire) {
        // Not reading lets the sender's buffers fill, as they do when nothing is acknowledged any more.
        if state.wait_while_silent().is_err() {
            return;
        }
        let len = match from.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if is_timeout(&error) => continue,
            Err(_) => 0,
        };
        // A cable cut while this was read holds it up here, not in the sender.
        let Ok(delay) = state.wait_while_silent() else { return };
        if pieces.send((Instant::now() + delay, buffer[..len].to_vec())).is_err() || len == 0 {
            return;
        }
    }
}

fn write_side(to: &TcpStream, pieces: &Receiver<Piece>, state: &State, ended: &AtomicBool) {
    for (due, piece) in pieces {
        if state.wait_until(due).is_err() {
            return;
        }
        if piece.is_empty() {
            // An error means that the other side has closed it already.
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if write_all(to, &piece, state).is_err() {
            // The receiver is gone: its sender hears of that as it would from a reset.
            ended.store(true, Ordering::Release);
            return;
        }
    }
}

/// The receiver is gone, or the relay ends.
struct Over;

impl From<Ending> for Over {
    fn from(_: Ending) -> Over {
        Over
    }
}

fn write_all(mut to: &TcpStream, piece: &[u8], state: &State) -> Result<(), Over> {
    let mut rest = piece;
    while !rest.is_empty() {
        state.mode()?;
        match to.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if is_timeout(&error) => {}
            Err(_) => return Err(Over),
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
