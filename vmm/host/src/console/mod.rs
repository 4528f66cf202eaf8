//! Where a guest's console goes, and where its input comes from.
//!
//! Output is handed over released and with its position in the console's byte stream, so that a file holds every byte
//! exactly once even when a survivor repeats what the dead primary may have written (PROTOCOL 7): repeats land on the
//! same place. Terminals, ptys and sockets have no positions: there, at least once. None of them may stop the guest: one
//! that does not take output for [`OUTPUT_WAIT`] loses it, like a disconnected terminal.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ftvm_schema::entry::ConsolePort;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{ttyname, write};

use super::unix_path::{SocketPathError, bind_listener};
use super::{Sent, poll_timeout};
use crate::queue::EventSender;
use input::{InputSource, InputThread};
use socket::SocketConsole;

mod input;
mod socket;
mod terminal;

/// Bytes read from a terminal or socket at once: the size of a `HostEvent::Console`.
pub const INPUT_CHUNK: usize = 256;

/// How long output may wait for a slow reader before it is dropped. Once it has been, nothing waits until the reader
/// takes bytes again, so a stopped terminal costs this once.
pub const OUTPUT_WAIT: Duration = Duration::from_millis(100);

/// Bytes written at once to a terminal or pipe. Where poll(2) reports room on a pipe, PIPE_BUF (4096) fit without
/// blocking; a terminal takes less, and this is what its driver processes between two looks at flow control.
const OUTPUT_CHUNK: usize = 512;

/// What `--console` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// `off`: output is discarded, no input.
    Off,
    /// `stdio`: standard output and input.
    Stdio,
    /// `file=PATH[,sync]`: output only. With `sync` each piece is on stable storage before it counts as released, so
    /// that a file on shared storage has every byte even when a host loses power.
    File { path: PathBuf, durability: Durability },
    /// `socket=PATH`: a Unix stream socket, one client at a time.
    Socket { path: PathBuf },
    /// `pty`: a new pseudo-terminal, whose name [`Console::place`] says.
    Pty,
}

/// When a byte in a console file counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Once the kernel has it: it survives the death of the process.
    Cached,
    /// Once storage has it (O_DSYNC): it survives the death of the host.
    Synced,
}

/// Whether the console's byte stream begins here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteStream {
    /// A new guest: a console file is emptied.
    New,
    /// A guest that runs elsewhere, or did: a console file keeps what it has.
    Continued,
}

/// Why a console cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// `--console` with something else.
    #[error("console {0:?}: expected off, stdio, pty, file=PATH, file=PATH,sync or socket=PATH")]
    Target(String),
    /// The file cannot be opened for writing.
    #[error("console file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The socket cannot be made.
    #[error("console socket: {0}")]
    Socket(#[from] SocketPathError),
    /// A terminal or pty could not be set up, or a thread not started.
    #[error("console: cannot {what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

impl FromStr for ConsoleTarget {
    type Err = ConsoleError;

    fn from_str(text: &str) -> Result<ConsoleTarget, ConsoleError> {
        let path = |path: &str| match path {
            "" => Err(ConsoleError::Target(text.to_owned())),
            _ => Ok(PathBuf::from(path)),
        };
        match text.split_once('=') {
            None if text == "off" => Ok(ConsoleTarget::Off),
            None if text == "stdio" => Ok(ConsoleTarget::Stdio),
            None if text == "pty" => Ok(ConsoleTarget::Pty),
            Some(("file", rest)) => {
                let (name, durability) = match rest.strip_suffix(",sync") {
                    Some(name) => (name, Durability::Synced),
                    None => (rest, Durability::Cached),
                };
                let path = path(name)?;
                Ok(ConsoleTarget::File { path, durability })
            }
            Some(("socket", rest)) => Ok(ConsoleTarget::Socket { path: path(rest)? }),
            _ => Err(ConsoleError::Target(text.to_owned())),
        }
    }
}

/// An open console. Dropping it gives the terminal back as it was.
#[derive(Debug)]
pub struct Console {
    port: ConsolePort,
    sink: ConsoleSink,
    /// The sink did not take output in time: it is not waited for until it does again.
    stalled: bool,
    input: Option<InputThread>,
}

#[derive(Debug)]
enum ConsoleSink {
    Off,
    Stdout,
    File(File),
    Pty { master: Arc<OwnedFd>, slave: OwnedFd },
    Socket(Arc<SocketConsole>),
}

impl Console {
    /// Opens `target` for the output of `port`. Input begins with [`Console::listen`].
    ///
    /// # Errors
    /// See [`ConsoleError`].
    pub fn open(target: &ConsoleTarget, port: ConsolePort, stream: ByteStream) -> Result<Console, ConsoleError> {
        let sink = match target {
            ConsoleTarget::Off => ConsoleSink::Off,
            ConsoleTarget::Stdio => ConsoleSink::Stdout,
            ConsoleTarget::File { path, durability } => {
                let failed = |source| ConsoleError::File {
                    path: path.clone(),
                    source,
                };
                ConsoleSink::File(open_file(path, *durability, stream).map_err(failed)?)
            }
            ConsoleTarget::Socket { path } => {
                let (listener, file) = bind_listener(path)?;
                ConsoleSink::Socket(Arc::new(SocketConsole::new(listener, file)))
            }
            ConsoleTarget::Pty => open_pty().map_err(|errno| ConsoleError::Io {
                what: "make a pty",
                source: errno.into(),
            })?,
        };
        Ok(Console {
            port,
            sink,
            stalled: false,
            input: None,
        })
    }

    /// Begins to take input: a live guest's console. Standard input becomes raw if it is a terminal; Ctrl-A x there asks
    /// the guest to stop. A client of the socket is accepted from now on, and waits until then.
    ///
    /// # Errors
    /// [`ConsoleError::Io`].
    pub fn listen(&mut self, events: EventSender) -> Result<(), ConsoleError> {
        let source = match &self.sink {
            ConsoleSink::Off | ConsoleSink::File(_) => return Ok(()),
            ConsoleSink::Stdout => InputSource::stdin()?,
            ConsoleSink::Pty { master, .. } => InputSource::Pty(Arc::clone(master)),
            ConsoleSink::Socket(socket) => InputSource::Socket(Arc::clone(socket)),
        };
        self.input = Some(InputThread::start(source, self.port, events)?);
        Ok(())
    }

    /// Where to find the console, for the user: the name of a pty.
    #[must_use]
    pub fn place(&self) -> Option<PathBuf> {
        match &self.sink {
            ConsoleSink::Pty { slave, .. } => ttyname(slave).ok(),
            _ => None,
        }
    }

    /// Writes output of the guest; `position` is the number of bytes this console has produced before.
    ///
    /// # Errors
    /// Only of a file (a full or broken disk: nothing can be released then) and of a standard output that is closed.
    pub fn write(&mut self, position: u64, bytes: &[u8]) -> io::Result<Sent> {
        let wait = match self.stalled {
            true => Duration::ZERO,
            false => OUTPUT_WAIT,
        };
        let sent = match &self.sink {
            ConsoleSink::Off => Sent::Done,
            ConsoleSink::File(file) => file.write_all_at(bytes, position).map(|()| Sent::Done)?,
            ConsoleSink::Stdout => write_in_time(io::stdout().as_fd(), bytes, wait)?,
            ConsoleSink::Pty { master, .. } => write_in_time(master.as_fd(), bytes, wait)?,
            ConsoleSink::Socket(socket) => socket.write(bytes, wait),
        };
        self.stalled = sent == Sent::Dropped;
        Ok(sent)
    }
}

fn open_file(path: &PathBuf, durability: Durability, stream: ByteStream) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(stream == ByteStream::New);
    if durability == Durability::Synced {
        options.custom_flags(libc::O_DSYNC);
    }
    options.open(path)
}

/// A pty whose slave side stays open here, so that output before a reader comes is kept (a page of it) and reading the
/// master does not fail when a reader leaves.
fn open_pty() -> Result<ConsoleSink, Errno> {
    let pty = openpty(None, None)?;
    let mut settings = tcgetattr(&pty.slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
    let flags = OFlag::from_bits_truncate(fcntl(&pty.master, FcntlArg::F_GETFL)?);
    fcntl(&pty.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(ConsoleSink::Pty {
        master: Arc::new(pty.master),
        slave: pty.slave,
    })
}

/// Writes all of `bytes`, waiting at most `wait` in all for room. The descriptor may be a blocking one shared with a
/// shell, so it is polled and given no more than it can take.
fn write_in_time(fd: BorrowedFd<'_>, bytes: &[u8], wait: Duration) -> io::Result<Sent> {
    let deadline = Instant::now() + wait;
    let mut rest = bytes;
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], poll_timeout(left)) {
            Ok(0) => return Ok(Sent::Dropped),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        match write(fd, &rest[..rest.len().min(OUTPUT_CHUNK)]) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if Instant::now() < deadline => {}
            Err(Errno::EAGAIN) => return Ok(Sent::Dropped),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Sent::Done)
}

#[cfg(test)]
mod tests;
