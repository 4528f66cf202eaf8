//! The thread that takes what is typed at a console.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ftvm_schema::entry::ConsolePort;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::read;

use super::socket::{SocketConsole, read_client};
use super::terminal::{Keys, RawMode, Typed};
use super::{ConsoleError, INPUT_CHUNK};
use crate::queue::{EventSender, Refused};
use ftvm_roles::host_event::HostEvent;
use ftvm_roles::host_event::StopKind;

/// How often a thread whose guest does not take input looks whether it is to end.
const FULL_WAIT: Duration = Duration::from_millis(50);

/// Where input comes from.
#[derive(Debug)]
pub(super) enum InputSource {
    /// Standard input; raw if it is a terminal.
    Stdin(Option<RawMode>),
    Pty(Arc<OwnedFd>),
    Socket(Arc<SocketConsole>),
}

impl InputSource {
    pub(super) fn stdin() -> Result<InputSource, ConsoleError> {
        Ok(InputSource::Stdin(RawMode::enter()?))
    }
}

/// A running input thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct InputThread {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl InputThread {
    pub(super) fn start(
        source: InputSource,
        port: ConsolePort,
        events: EventSender,
    ) -> Result<InputThread, ConsoleError> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed("make an eventfd", errno.into()))?;
        let stop = Arc::new(stop);
        let typist = Typist {
            port,
            events,
            stop: Arc::clone(&stop),
        };
        let run = move || {
            if let Err(error) = typist.run(source) {
                tracing::error!("console: no more input: {error}");
            }
        };
        let thread = std::thread::Builder::new()
            .name("console".into())
            .spawn(run)
            .map_err(|source| failed("start the input thread", source))?;
        Ok(InputThread {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for InputThread {
    fn drop(&mut self) {
        if let Err(errno) = self.stop.write(1) {
            tracing::error!("cannot end the console's input: {errno}");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the console's input thread panicked");
        }
    }
}

fn failed(what: &'static str, source: io::Error) -> ConsoleError {
    ConsoleError::Io { what, source }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Continue,
    End,
}

struct Typist {
    port: ConsolePort,
    events: EventSender,
    stop: Arc<EventFd>,
}

impl Typist {
    fn run(&self, source: InputSource) -> io::Result<()> {
        match source {
            InputSource::Stdin(raw) => {
                let keys = raw.as_ref().map(|_| Keys::default());
                self.read_fd(&io::stdin(), keys)
            }
            InputSource::Pty(master) => self.read_fd(&*master, None),
            InputSource::Socket(socket) => self.serve(&socket),
        }
    }

    /// Reads a descriptor until its end; `keys` where commands to `ftvm` are looked for.
    fn read_fd(&self, fd: &impl AsFd, mut keys: Option<Keys>) -> io::Result<()> {
        let mut buffer = [0; INPUT_CHUNK];
        while self.wait(fd)? == Reading::Continue {
            let len = match read(fd, &mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let typed = match keys.as_mut() {
                Some(keys) => keys.typed(&buffer[..len]),
                None => Typed::Text(buffer[..len].to_vec()),
            };
            let next = match typed {
                Typed::Text(text) => self.send(text),
                Typed::Quit(text) => {
                    self.send(text);
                    // An answer fits even when the guest takes no input, and a closed queue has no guest to stop.
                    let _ = self.events.answer(HostEvent::Stop(StopKind::Console));
                    Reading::Continue
                }
            };
            if next == Reading::End {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Serves one client after the other.
    fn serve(&self, socket: &SocketConsole) -> io::Result<()> {
        while self.wait(&socket.listener)? == Reading::Continue {
            let mut client = socket.accept()?;
            let next = self.read_client(&mut client)?;
            socket.hang_up();
            if next == Reading::End {
                break;
            }
        }
        Ok(())
    }

    fn read_client(&self, client: &mut UnixStream) -> io::Result<Reading> {
        let mut buffer = [0; INPUT_CHUNK];
        loop {
            if self.wait(client)? == Reading::End {
                return Ok(Reading::End);
            }
            let Some(len) = read_client(client, &mut buffer) else {
                return Ok(Reading::Continue);
            };
            if self.send(buffer[..len].to_vec()) == Reading::End {
                return Ok(Reading::End);
            }
        }
    }

    /// Waits until `fd` can be read, or this thread is to end.
    fn wait(&self, fd: &impl AsFd) -> io::Result<Reading> {
        let mut waits = [
            PollFd::new(fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut waits, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) if waits[1].any() == Some(true) => return Ok(Reading::End),
                Ok(_) => return Ok(Reading::Continue),
            }
        }
    }

    /// Hands text to the guest, as slowly as it takes it.
    fn send(&self, text: Vec<u8>) -> Reading {
        if text.is_empty() {
            return Reading::Continue;
        }
        let mut event = HostEvent::Console {
            port: self.port,
            bytes: text,
        };
        loop {
            match self.events.push(event, Instant::now() + FULL_WAIT) {
                Ok(()) => return Reading::Continue,
                Err(Refused::Closed) => return Reading::End,
                Err(Refused::Full(back)) => event = back,
            }
            let stopped = poll(
                &mut [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)],
                PollTimeout::ZERO,
            );
            if stopped != Ok(0) {
                return Reading::End;
            }
        }
    }
}
