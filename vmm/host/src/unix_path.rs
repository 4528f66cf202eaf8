//! Unix sockets that have a file: made over a dead one's remains, never over a living one, and cleaned up after.
//!
//! A killed process leaves its socket files behind, and a survivor's successor must not need an operator to remove
//! them. A file whose socket is still open belongs to somebody, though, and taking it would cut that guest off, so it
//! is asked first: a socket nobody holds refuses a connection (unix(7), ECONNREFUSED).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Longest path of a Unix socket in bytes: `sun_path` holds 108 with its terminating zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Why a Unix socket cannot be bound to its path.
#[derive(Debug, thiserror::Error)]
pub enum SocketPathError {
    /// The kernel's limit.
    #[error(
        "{}: {} bytes is too long for a Unix socket, at most {MAX_SOCKET_PATH} fit: use a shorter directory",
        path.display(), path.as_os_str().len()
    )]
    TooLong { path: PathBuf },
    /// An empty path would make the kernel choose a name.
    #[error("the path of a Unix socket is empty")]
    Empty,
    /// Removing it could destroy somebody's data.
    #[error("{}: exists and is not a socket: remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Another process holds the socket open.
    #[error("{}: another running process has this socket open: stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// Anything else.
    #[error("{}: cannot {what}: {source}", path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        source: io::Error,
    },
}

/// The file of a bound socket. Dropping it removes the file, if it is still the same one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// The file itself (an O_PATH descriptor, so that its inode number is not used again meanwhile): another process
    /// may have put its own socket in its place since.
    ours: File,
}

impl SocketFile {
    fn of(path: &Path) -> Result<SocketFile, SocketPathError> {
        let ours = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
            .map_err(|source| failed(path, "look at the new socket", source))?;
        Ok(SocketFile {
            path: path.to_owned(),
            ours,
        })
    }

    fn is_ours(&self) -> io::Result<bool> {
        let found = fs::symlink_metadata(&self.path)?;
        let ours = self.ours.metadata()?;
        Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino()))
    }

    /// Where the socket is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours().unwrap_or(false)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("{}: cannot remove the socket: {error}", self.path.display());
        }
    }
}

/// Binds a datagram socket to `path`, replacing a stale socket file.
///
/// # Errors
/// See [`SocketPathError`].
pub fn bind_datagram(path: &Path) -> Result<(UnixDatagram, SocketFile), SocketPathError> {
    make_way(path, SockType::Datagram)?;
    let socket = UnixDatagram::bind(path).map_err(|source| failed(path, "bind the socket", source))?;
    Ok((socket, SocketFile::of(path)?))
}

/// Listens for stream connections at `path`, replacing a stale socket file.
///
/// # Errors
/// See [`SocketPathError`].
pub fn bind_listener(path: &Path) -> Result<(UnixListener, SocketFile), SocketPathError> {
    make_way(path, SockType::Stream)?;
    let listener = UnixListener::bind(path).map_err(|source| failed(path, "bind the socket", source))?;
    Ok((listener, SocketFile::of(path)?))
}

/// Checks that `path` can be a socket's address at all.
///
/// # Errors
/// [`SocketPathError::Empty`] or [`SocketPathError::TooLong`].
pub fn check_length(path: &Path) -> Result<(), SocketPathError> {
    match path.as_os_str().as_bytes().len() {
        0 => Err(SocketPathError::Empty),
        1..=MAX_SOCKET_PATH => Ok(()),
        _ => Err(SocketPathError::TooLong { path: path.to_owned() }),
    }
}

/// Removes a stale socket from `path`; leaves anything else where it is.
fn make_way(path: &Path, kind: SockType) -> Result<(), SocketPathError> {
    check_length(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(path, "look at the path", source)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketPathError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    let address = UnixAddr::new(path).map_err(|errno| failed(path, "use the path as an address", errno.into()))?;
    // Non-blocking, because a listener that is alive but does not accept would make the question wait.
    let probe = socket(
        AddressFamily::Unix,
        kind,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| failed(path, "make a socket", errno.into()))?;
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(|source| failed(path, "remove the stale socket", source))
        }
        Err(Errno::ENOENT) => Ok(()),
        Err(errno @ Errno::EACCES) => Err(failed(path, "find out whether the socket is in use", errno.into())),
        Ok(()) | Err(_) => Err(SocketPathError::InUse(path.to_owned())),
    }
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> SocketPathError {
    SocketPathError::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("s");
        drop(UnixDatagram::bind(&path).expect("bind"));
        assert!(path.exists(), "the kernel leaves the file behind");
        let (_socket, _file) = bind_datagram(&path).expect("replaces the stale file");

        let path = folder.path().join("l");
        drop(UnixListener::bind(&path).expect("bind"));
        let (_listener, _file) = bind_listener(&path).expect("replaces the stale file");
        UnixStream::connect(&path).expect("the new listener answers");
    }

    #[test]
    fn a_living_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("s");
        let (first, _file) = bind_datagram(&path).expect("bind");
        assert!(matches!(bind_datagram(&path), Err(SocketPathError::InUse(_))));
        assert!(matches!(bind_listener(&path), Err(SocketPathError::InUse(_))));
        UnixDatagram::unbound()
            .expect("socket")
            .send_to(b"x", &path)
            .expect("the first socket is still reached");
        assert_eq!(first.recv(&mut [0; 8]).expect("receives"), 1);
    }

    #[test]
    fn a_file_is_not_a_socket() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("data");
        fs::write(&path, "precious").expect("write");
        assert!(matches!(bind_datagram(&path), Err(SocketPathError::NotASocket(_))));
        assert_eq!(fs::read(&path).expect("read"), b"precious");
    }

    #[test]
    fn the_length_limit_is_the_kernels() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let room = MAX_SOCKET_PATH - folder.path().as_os_str().len() - 1;
        bind_datagram(&folder.path().join("x".repeat(room))).expect("the longest path fits");
        let too_long = bind_datagram(&folder.path().join("x".repeat(room + 1)));
        assert!(matches!(too_long, Err(SocketPathError::TooLong { .. })));
        assert!(matches!(bind_datagram(Path::new("")), Err(SocketPathError::Empty)));
    }

    #[test]
    fn the_file_goes_with_its_owner_but_not_a_successors_file() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("s");
        let (socket, file) = bind_datagram(&path).expect("bind");
        drop((socket, file));
        assert!(!path.exists());

        let (socket, old) = bind_datagram(&path).expect("bind");
        drop(socket);
        let (_socket, _new) = bind_datagram(&path).expect("replaces");
        drop(old);
        assert!(path.exists(), "the old owner removed the new owner's file");
    }
}
