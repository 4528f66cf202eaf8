//! Kicks a guest that does not exit while something waits for it (DESIGN, idea 3; `--patience`).
//!
//! A thread of its own looks a few times per patience at what the vCPU thread has left in a few atomics ([`Watched`]). It
//! decides nothing: a kick too many is only a lost microsecond.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use ftvm_hypervisor::Kick;
use ftvm_roles::patience::watched::Watched;

use crate::queue::EventSender;

/// Between these the monitor's period lies: an eighth of the patience, half of what an event waits.
const PERIODS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<AtomicBool>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Watches until dropped.
    ///
    /// # Panics
    /// If the host has no thread to give.
    #[must_use]
    pub fn start(watched: Arc<Watched>, events: EventSender, kick: Arc<dyn Kick>, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let period = (patience / 8).clamp(PERIODS.0, PERIODS.1);
        let handle = std::thread::Builder::new()
            .name("patience".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    std::thread::park_timeout(period);
                    if watched.is_in_guest() && watched.due(Instant::now(), events.oldest_pending()) {
                        kick.kick();
                    }
                }
            })
            .expect("a thread for the patience monitor");
        Monitor {
            stop,
            thread: handle.thread().clone(),
            handle: Some(handle),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // The thread does not panic; if it did, the guest merely lost its impatience.
            let _ = handle.join();
        }
    }
}
