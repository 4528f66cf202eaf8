//! The thread that takes frames off the cable.
//!
//! It reads at once whatever arrives, live or not: a queue in the kernel would age, and at go-live the guest would be
//! shown traffic from long ago. Live, frames go to the vCPU's event queue and are dropped when that is full; on a
//! backup they are kept for a while and delivered, in order, when it goes live (PROTOCOL 22).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::kept::KeptFrames;
use super::{MAX_FRAME, MIN_FRAME, NetBackend, NetError};
use crate::queue::{EventSender, Offered};
use ftvm_roles::host_event::HostEvent;

/// Frames read before the mode is looked at again.
const BATCH: usize = 64;

/// What happens to inbound frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Kept for a while, unseen: a backup's card.
    Keep,
    /// Handed to the guest: a live card.
    Forward,
}

/// Number of frames by fate since the reader started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounts {
    /// Queued for the guest.
    pub forwarded: u64,
    /// Dropped because the guest's queue was full.
    pub dropped_full: u64,
    /// Dropped because no Ethernet frame has that size.
    pub dropped_size: u64,
    /// Kept and then forgotten, too old or too many.
    pub forgotten: u64,
}

/// A running reader. Dropping it ends the thread.
#[derive(Debug)]
pub struct NetReader {
    control: Arc<ReaderControl>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct ReaderControl {
    mode: AtomicU8,
    /// Interrupts the reader's poll after the mode has changed.
    changed: EventFd,
    /// Written by the reader only, and read seldom: never contended.
    counts: Mutex<NetCounts>,
}

const KEEP: u8 = 0;
const FORWARD: u8 = 1;
const END: u8 = 2;

/// Starts reading `backend` for card `nic`. In [`Inbound::Keep`] the frames of the last `keep` (2 D) are kept.
///
/// # Errors
/// [`NetError::Reader`] if the thread cannot be started.
pub fn spawn_reader(
    backend: Arc<NetBackend>,
    nic: u8,
    inbound: Inbound,
    keep: Duration,
    events: EventSender,
) -> Result<NetReader, NetError> {
    let failed = |source| NetError::Reader { nic, source };
    let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let control = Arc::new(ReaderControl {
        mode: AtomicU8::new(match inbound {
            Inbound::Keep => KEEP,
            Inbound::Forward => FORWARD,
        }),
        changed: changed.map_err(|errno| failed(errno.into()))?,
        counts: Mutex::default(),
    });
    let reader = FrameReader {
        backend,
        nic,
        events,
        control: Arc::clone(&control),
        kept: KeptFrames::new(u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX)),
        begun: Instant::now(),
    };
    let run = move || {
        if let Err(error) = reader.run() {
            tracing::error!("network card {nic}: nothing more is received: {error}");
        }
    };
    let thread = std::thread::Builder::new()
        .name(format!("net{nic}"))
        .spawn(run)
        .map_err(failed)?;
    Ok(NetReader {
        control,
        thread: Some(thread),
    })
}

impl NetReader {
    /// From now on frames go to the guest: first those kept, in order, then what arrives.
    pub fn go_live(&self) {
        self.control.set_mode(FORWARD);
    }

    /// What happened to the frames so far.
    #[must_use]
    pub fn counts(&self) -> NetCounts {
        *self.control.counts.lock()
    }
}

impl Drop for NetReader {
    fn drop(&mut self) {
        self.control.set_mode(END);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a network reader panicked");
        }
    }
}

impl ReaderControl {
    fn count(&self, change: impl FnOnce(&mut NetCounts)) {
        change(&mut self.counts.lock());
    }

    fn set_mode(&self, mode: u8) {
        self.mode.store(mode, Ordering::Release);
        if let Err(errno) = self.changed.write(1) {
            tracing::error!("cannot wake a network reader: {errno}");
        }
    }
}

struct FrameReader {
    backend: Arc<NetBackend>,
    nic: u8,
    events: EventSender,
    control: Arc<ReaderControl>,
    kept: KeptFrames,
    begun: Instant,
}

impl FrameReader {
    fn run(mut self) -> io::Result<()> {
        // One byte more than fits, so that a frame that was cut is noticed.
        let mut buffer = [0; MAX_FRAME + 1];
        let mut live = false;
        loop {
            self.wait()?;
            match self.control.mode.load(Ordering::Acquire) {
                KEEP => {}
                FORWARD if live => {}
                FORWARD => {
                    live = true;
                    let now = self.now();
                    self.kept.take(now).for_each(|frame| self.forward(frame));
                }
                _ => return Ok(()),
            }
            for _ in 0..BATCH {
                let Some(len) = self.backend.recv(&mut buffer)? else {
                    break;
                };
                let frame = buffer[..len].to_vec();
                match ((MIN_FRAME..=MAX_FRAME).contains(&len), live) {
                    (false, _) => self.control.count(|counts| counts.dropped_size += 1),
                    (true, true) => self.forward(frame),
                    (true, false) => self.keep(frame),
                }
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let mut waits = [
            PollFd::new(self.backend.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.control.changed.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if waits[1].any() == Some(true) {
            self.control.changed.read()?;
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn forward(&self, bytes: Vec<u8>) {
        match self.events.offer(HostEvent::Frame { nic: self.nic, bytes }) {
            Offered::Queued => self.control.count(|counts| counts.forwarded += 1),
            Offered::Dropped => self.control.count(|counts| counts.dropped_full += 1),
        }
    }

    fn keep(&mut self, frame: Vec<u8>) {
        let forgotten = self.kept.keep(self.now(), frame);
        self.control.count(|counts| counts.forgotten += forgotten);
    }
}
