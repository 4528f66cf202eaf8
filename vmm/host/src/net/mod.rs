//! Network backends: a TAP interface, or a pair of Unix datagram sockets as QEMU's `-netdev dgram` uses them.
//!
//! Both carry one Ethernet frame per read or write, without any header. Sending never fails because of the other side:
//! a switch that is not there, or does not keep up, is an unplugged cable ([`Sent::Dropped`]), and the guest's TCP knows
//! how to deal with that. Receiving is [`reader`]'s thread; which side of a pair forwards is its mode (PROTOCOL 22).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use nix::errno::Errno;

use super::Sent;
use super::unix_path::SocketPathError;
use tap::Tap;

mod dgram;
mod kept;
pub mod rarp;
pub mod reader;
#[allow(unsafe_code, reason = "two ioctls")]
mod tap;

pub use dgram::Dgram;
pub use kept::{MAX_KEPT_BYTES, MAX_KEPT_FRAMES};
pub use reader::{Inbound, NetCounts, NetReader, spawn_reader};

/// Shortest frame: an Ethernet header (IEEE 802.3, without padding and check sequence, as a TAP delivers it).
pub const MIN_FRAME: usize = 14;

/// Longest frame: header, one VLAN tag and an MTU of 1500. No offload is ever negotiated, so nothing is longer.
pub const MAX_FRAME: usize = 1518;

/// Where a network card's cable goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetConfig {
    /// The TAP interface of this name.
    Tap { name: String },
    /// Datagrams from the socket at `local`, which is made, to the one at `remote`, which may come and go.
    Dgram { local: PathBuf, remote: PathBuf },
}

/// Why a network backend cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The tun module is not loaded, or the container hides it.
    #[error("/dev/net/tun is missing: load it with `modprobe tun`, or give the container that device")]
    NoTun,
    /// The process may not open /dev/net/tun.
    #[error("/dev/net/tun: permission denied: give this user access to the device (it is usually mode 0666)")]
    TunPermission,
    /// Interface names have 1 to 15 bytes, without `/` and white space (netdevice(7)).
    #[error("TAP name {0:?}: an interface name has 1 to 15 printable characters and no `/`")]
    Name(String),
    /// Neither does the interface belong to the user, nor may the user make one.
    #[error(
        "TAP {name}: not permitted: make it first, as root: \
         `ip tuntap add {name} mode tap user {user} && ip link set {name} up`"
    )]
    NotPermitted { name: String, user: String },
    /// A TAP has one user at a time.
    #[error("TAP {0}: another process has it open: stop that process, or use another interface")]
    Busy(String),
    /// For example a TUN, or a multi-queue TAP.
    #[error("TAP {0}: exists, but not as a single-queue TAP: remove it, or use another name")]
    WrongKind(String),
    /// A call on the TAP failed otherwise.
    #[error("TAP {name}: {what}: {source}")]
    Tap {
        name: String,
        what: &'static str,
        source: io::Error,
    },
    /// The path of one of the two sockets.
    #[error(transparent)]
    Path(#[from] SocketPathError),
    /// Frames would come back to their sender.
    #[error("{}: is the local and the remote socket: they must differ", .0.display())]
    Loop(PathBuf),
    /// The socket could not be set up.
    #[error("{}: {what}: {source}", path.display())]
    Socket {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
    /// The reader thread could not be started.
    #[error("network card {nic}: cannot start its reader: {source}")]
    Reader { nic: u8, source: io::Error },
}

/// An open network backend. Any thread may send while one reads.
#[derive(Debug)]
pub enum NetBackend {
    Tap(Tap),
    Dgram(Dgram),
}

impl NetBackend {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// See [`NetError`]; each says what to do.
    pub fn open(config: &NetConfig) -> Result<NetBackend, NetError> {
        match config {
            NetConfig::Tap { name } => Ok(NetBackend::Tap(Tap::open(name)?)),
            NetConfig::Dgram { local, remote } => Ok(NetBackend::Dgram(Dgram::open(local, remote)?)),
        }
    }

    /// Sends one frame. Returns when the system call has; a frame of a size that Ethernet does not have is dropped.
    ///
    /// # Errors
    /// Only what a missing or slow other side does not explain: a closed or deleted TAP, out of descriptors.
    pub fn send(&self, frame: &[u8]) -> io::Result<Sent> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Ok(Sent::Dropped);
        }
        let result = match self {
            NetBackend::Tap(tap) => tap.send(frame),
            NetBackend::Dgram(dgram) => dgram.send(frame),
        };
        match result {
            Ok(_) => Ok(Sent::Done),
            Err(errno) if is_unplugged(errno) => Ok(Sent::Dropped),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes one frame without waiting. `None` if none is there. A frame longer than `buffer` is cut to it.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let result = match self {
            NetBackend::Tap(tap) => tap.recv(buffer),
            NetBackend::Dgram(dgram) => dgram.recv(buffer),
        };
        match result {
            Ok(len) => Ok(Some(len)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for NetBackend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            NetBackend::Tap(tap) => tap.as_fd(),
            NetBackend::Dgram(dgram) => dgram.as_fd(),
        }
    }
}

/// Whether an error means that the other end of the cable is not there, or does not keep up.
fn is_unplugged(errno: Errno) -> bool {
    matches!(
        errno,
        // No socket file, nobody behind it, or somebody's socket of another type; a TAP that is down.
        Errno::ENOENT | Errno::ENOTDIR | Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPROTOTYPE | Errno::EIO
        // A peer that does not read; a kernel short of buffers.
        | Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM
    )
}

#[cfg(test)]
mod tests;
