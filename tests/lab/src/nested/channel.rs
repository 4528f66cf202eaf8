//! The byte channels between a nested host and this process: one socket for each, one thread for each.
//!
//! QEMU connects to sockets that listen here, so that a channel pushes back when nobody reads it, and nothing is lost
//! when QEMU ends: what it wrote is still in the socket. Threads report to one queue; the run's state is kept by its
//! reader (see `run.rs`).

use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};

use super::cpio;

/// Longest line on the control channel, in bytes; `init.sh` writes less than a hundred.
const MAX_CONTROL_LINE: u64 = 1024;
/// Most bytes of files that a nested host may hand out at its end.
const MAX_OUT: u64 = 1 << 30;
/// Bytes that are read at once.
const CHUNK: usize = 1 << 16;
/// Reports that wait to be read. A thread that finds no room for a line or a failure waits; bytes are handed on all the same.
pub(super) const MAX_EVENTS: usize = 256;

/// One channel. The discriminant is the number of the port of the virtio console; the kernel's console is the UART.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Console = 0,
    Stdout = 1,
    Stderr = 2,
    Out = 3,
    Control = 4,
}

impl Channel {
    pub(super) const ALL: [Self; 5] = [Self::Console, Self::Stdout, Self::Stderr, Self::Out, Self::Control];

    /// Name of the channel, of its device, and of its socket in the run's folder.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Out => "out",
            Self::Control => "control",
        }
    }
}

/// What the channels' threads report.
#[derive(Debug)]
pub(super) enum Event {
    /// A line came on the control channel.
    Control(String),
    /// Bytes have been handed on: [`Counts`] says how many. Left out when there is no room for it.
    Received,
    /// What a channel brought cannot be handed on; the rest of it is discarded.
    Failed(Channel, String),
    /// QEMU has ended.
    Hangup,
}

/// Bytes handed on so far. Counted before [`Event::Received`] is said, so that whoever reads an event and then looks here
/// misses none, those included for which there was no room: a host may run for long before anybody reads.
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; Channel::ALL.len()]);

impl Counts {
    pub(super) fn of(&self, channel: Channel) -> u64 {
        self.0[channel as usize].load(Ordering::Acquire)
    }

    pub(super) fn add(&self, channel: Channel, count: u64) {
        self.0[channel as usize].fetch_add(count, Ordering::AcqRel);
    }
}

/// What the thread of a channel tells.
#[derive(Debug, Clone)]
pub(super) struct Reports {
    pub(super) events: SyncSender<Event>,
    pub(super) counts: Arc<Counts>,
}

/// Where the bytes of a channel go.
pub(super) enum Sink {
    /// To a writer, as they come.
    Writer(Box<dyn Write + Send>),
    /// To the queue, line by line.
    Lines,
    /// As an archive, unpacked into a folder.
    Unpack(PathBuf),
}

/// Listens on the channel's socket in `dir`, and starts the thread that serves it. The thread ends when QEMU does; one
/// that QEMU never connected to ends after [`release`].
pub(super) fn serve(dir: &Path, channel: Channel, sink: Sink, reports: Reports) -> io::Result<JoinHandle<()>> {
    let folder = File::open(dir)?;
    // Not `dir.join(name)`: the name of a socket has at most 107 bytes, and the cache may be deep.
    let listener = UnixListener::bind(socket(&folder, channel))?;
    thread::Builder::new()
        .name(format!("nested-{}", channel.name()))
        .spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                drop(listener);
                pump(channel, sink, stream, &reports);
            }
        })
}

/// Ends the threads of [`serve`] that still wait for QEMU to connect.
pub(super) fn release(dir: &Path) {
    if let Ok(folder) = File::open(dir) {
        for channel in Channel::ALL {
            // Refused where QEMU had connected, which is as well.
            let _ = UnixStream::connect(socket(&folder, channel));
        }
    }
}

fn socket(folder: &File, channel: Channel) -> String {
    format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), channel.name())
}

/// Starts the thread that copies QEMU's own complaints to `into`, and notices its end.
pub(super) fn watch(
    mut from: impl Read + Send + 'static,
    mut into: Capture,
    events: SyncSender<Event>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("nested-qemu".to_owned()).spawn(move || {
        let _ = io::copy(&mut from, &mut into);
        let _ = events.send(Event::Hangup);
    })
}

/// Moves everything from `stream` to `sink`. A queue that nobody reads any more is no failure: the run is over then.
fn pump(channel: Channel, sink: Sink, stream: impl Read, reports: &Reports) {
    let mut counted = Counted {
        stream,
        channel,
        reports,
        unreported: 0,
    };
    let done = match sink {
        Sink::Writer(mut writer) => copy(&mut counted, &mut writer).map_err(|e| e.to_string()),
        Sink::Lines => lines(&mut counted, &reports.events).map_err(|e| e.to_string()),
        Sink::Unpack(dir) => cpio::unpack(&mut BufReader::new(&mut counted), &dir, MAX_OUT)
            .map(drop)
            .map_err(|e| format!("{}: {e}", dir.display())),
    };
    if let Err(reason) = done {
        let _ = reports.events.send(Event::Failed(channel, reason));
    }
    let _ = io::copy(&mut counted, &mut io::sink());
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            count => to.write_all(&chunk[..count]).and_then(|()| to.flush())?,
        }
    }
}

fn lines(from: &mut impl Read, events: &SyncSender<Event>) -> io::Result<()> {
    let mut reader = BufReader::new(from);
    loop {
        let mut line = String::new();
        if (&mut reader).take(MAX_CONTROL_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let _ = events.send(Event::Control(line.trim_end().to_owned()));
    }
}

/// Reports bytes at the read after the one that brought them: by then they have been handed on.
struct Counted<'a, R> {
    stream: R,
    channel: Channel,
    reports: &'a Reports,
    unreported: usize,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unreported > 0 {
            self.reports.counts.add(self.channel, self.unreported as u64);
            let _ = self.reports.events.try_send(Event::Received);
        }
        self.unreported = self.stream.read(buffer)?;
        Ok(self.unreported)
    }
}

/// The last bytes of a stream, shared between the thread that writes and whoever asks.
#[derive(Debug, Clone)]
pub struct Capture {
    tail: Arc<Mutex<Tail>>,
}

#[derive(Debug)]
struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    dropped: u64,
}

impl Capture {
    /// Keeps at most the last `limit` bytes, at least 1; twice as many for a moment.
    pub fn new(limit: usize) -> Self {
        Self {
            tail: Arc::new(Mutex::new(Tail {
                bytes: Vec::new(),
                limit: limit.max(1),
                dropped: 0,
            })),
        }
    }

    /// What was kept, after a note on what was not.
    pub fn text(&self) -> String {
        let tail = self.tail.lock();
        let excess = tail.bytes.len().saturating_sub(tail.limit);
        let text = String::from_utf8_lossy(&tail.bytes[excess..]).into_owned();
        match tail.dropped + excess as u64 {
            0 => text,
            dropped => format!("[{dropped} bytes before these were dropped]\n{text}"),
        }
    }

    /// The last `count` lines that are not empty.
    pub fn last_lines(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

impl Write for Capture {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut tail = self.tail.lock();
        tail.bytes.extend_from_slice(data);
        // Cut at twice the limit, so that cutting costs nothing on average.
        if tail.bytes.len() >= tail.limit * 2 {
            let excess = tail.bytes.len() - tail.limit;
            tail.bytes.drain(..excess);
            tail.dropped += excess as u64;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
