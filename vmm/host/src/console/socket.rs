//! A console on a Unix stream socket: one client at a time, who may come and go.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use parking_lot::Mutex;

use crate::Sent;
use crate::unix_path::SocketFile;

/// The listener and its client. The input thread accepts and reads, whoever releases output writes.
#[derive(Debug)]
pub(super) struct SocketConsole {
    pub(super) listener: UnixListener,
    client: Mutex<Option<UnixStream>>,
    _file: SocketFile,
}

impl SocketConsole {
    pub(super) fn new(listener: UnixListener, file: SocketFile) -> SocketConsole {
        SocketConsole {
            listener,
            client: Mutex::new(None),
            _file: file,
        }
    }

    /// Accepts the waiting client; output goes to it from now on. Returns its reading side.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (client, _) = self.listener.accept()?;
        let reader = client.try_clone()?;
        *self.client.lock() = Some(client);
        Ok(reader)
    }

    /// The client left.
    pub(super) fn hang_up(&self) {
        *self.client.lock() = None;
    }

    /// Writes to the client, if there is one that takes it within `wait`. A client that has gone is noticed by the
    /// reading side.
    pub(super) fn write(&self, bytes: &[u8], wait: Duration) -> Sent {
        let mut client = self.client.lock();
        let Some(stream) = client.as_mut() else {
            return Sent::Dropped;
        };
        let blocking = match wait.is_zero() {
            true => stream.set_nonblocking(true),
            false => stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_write_timeout(Some(wait))),
        };
        match blocking.and_then(|()| stream.write_all(bytes)) {
            Ok(()) => Sent::Done,
            Err(_) => Sent::Dropped,
        }
    }
}

/// Reads what a client typed; `None` when it has gone. The socket is known to be readable.
pub(super) fn read_client(client: &mut UnixStream, buffer: &mut [u8]) -> Option<usize> {
    match client.read(buffer) {
        Ok(0) => None,
        Ok(len) => Some(len),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Some(0),
        Err(_) => None,
    }
}
