//! Unix datagram sockets as a cable: one Ethernet frame a datagram.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, UnixAddr, recv, sendto};

use super::NetError;
use crate::unix_path::{SocketFile, bind_datagram, check_length};

/// How long a frame may wait for a peer whose queue is full. `net.unix.max_dgram_qlen` is 10 on a stock kernel, so a
/// burst fills it before a healthy reader runs; a reader that takes longer than this has stopped.
const SEND_WAIT: Duration = Duration::from_millis(5);

/// One end of the cable.
#[derive(Debug)]
pub struct Dgram {
    socket: UnixDatagram,
    remote: UnixAddr,
    /// The last frame found the peer's queue full for all of [`SEND_WAIT`]: the next ones do not wait, or a stopped
    /// peer would slow the guest down to 200 frames a second.
    stalled: AtomicBool,
    _file: SocketFile,
}

impl Dgram {
    /// Makes the socket `local` and sends to `remote`, which may come and go.
    ///
    /// # Errors
    /// If a path is too long for a socket, both are the same, or the socket cannot be made.
    pub fn open(local: &Path, remote: &Path) -> Result<Dgram, NetError> {
        if local == remote {
            return Err(NetError::Loop(local.to_owned()));
        }
        check_length(remote)?;
        let failed = |path: &Path, what, source| NetError::Socket {
            path: path.to_owned(),
            what,
            source,
        };
        let address = UnixAddr::new(remote).map_err(|errno| failed(remote, "not a socket address", errno.into()))?;
        let (socket, file) = bind_datagram(local)?;
        socket
            .set_write_timeout(Some(SEND_WAIT))
            .map_err(|source| failed(local, "cannot limit how long sending waits", source))?;
        Ok(Dgram {
            socket,
            remote: address,
            stalled: AtomicBool::new(false),
            _file: file,
        })
    }

    pub fn send(&self, frame: &[u8]) -> Result<usize, Errno> {
        let flags = match self.stalled.load(Ordering::Relaxed) {
            true => MsgFlags::MSG_DONTWAIT,
            false => MsgFlags::empty(),
        };
        let result = loop {
            match sendto(
                self.socket.as_raw_fd(),
                frame,
                &self.remote,
                flags | MsgFlags::MSG_NOSIGNAL,
            ) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        self.stalled.store(result == Err(Errno::EAGAIN), Ordering::Relaxed);
        result
    }

    pub fn recv(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)
    }
}

impl AsFd for Dgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
