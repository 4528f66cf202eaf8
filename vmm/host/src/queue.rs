//! The one queue through which the outside world reaches the vCPU thread.
//!
//! Many producers (readers, disk threads, signal watchers), one consumer. The consumer looks at every guest exit, so
//! looking into an empty queue is one atomic load; the same atomic tells the patience monitor since when an event has
//! been waiting (DESIGN, idea 3). A mutex and two condition variables rather than a channel, because the time of the
//! *oldest* event must be exact, and because the three classes of producers need three answers to "full":
//! frames are dropped ([`EventSender::offer`]), typists wait ([`EventSender::push`]), and answers to something the guest
//! asked for always fit ([`EventSender::answer`]): their number is bounded by the requests in flight.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use ftvm_roles::host_event::{HostEvent, MAX_EVENTS};
use ftvm_roles::live::Events;

/// Bytes that `offer` and `push` may have waiting: [`MAX_EVENTS`] frames of full size.
pub const MAX_BYTES: usize = MAX_EVENTS * 1536;

/// The consumer is gone: there is no guest any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has ended: its event queue is closed")]
pub struct Closed;

/// Why an event was not queued by [`EventSender::push`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There was no room until the deadline; here is the event.
    Full(HostEvent),
    /// The consumer is gone.
    Closed,
}

/// What became of an offered event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is in the queue.
    Queued,
    /// The queue was full, or closed; the event is gone.
    Dropped,
}

/// A producer's end. Clones share the queue.
#[derive(Clone, Debug)]
pub struct EventSender {
    shared: Arc<QueueShared>,
}

/// The consumer's end. Dropping it closes the queue.
#[derive(Debug)]
pub struct EventQueue {
    shared: Arc<QueueShared>,
}

#[derive(Debug)]
struct QueueShared {
    state: Mutex<QueueState>,
    /// The consumer waits here for events.
    ready: Condvar,
    /// Producers in `push` wait here for room.
    room: Condvar,
    /// When the oldest waiting event was queued: nanoseconds since `epoch`, plus one; 0 when there is none. Written
    /// only under the lock.
    oldest: AtomicU64,
    epoch: Instant,
}

#[derive(Debug)]
struct QueueState {
    events: VecDeque<(u64, HostEvent)>,
    bytes: usize,
    woken: bool,
    consumer: Consumer,
    waiting_for_room: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consumer {
    Busy,
    Waiting,
    Gone,
}

/// Makes an empty queue.
#[must_use]
pub fn event_queue() -> (EventSender, EventQueue) {
    let state = QueueState {
        events: VecDeque::with_capacity(MAX_EVENTS),
        bytes: 0,
        woken: false,
        consumer: Consumer::Busy,
        waiting_for_room: 0,
    };
    let shared = Arc::new(QueueShared {
        state: Mutex::new(state),
        ready: Condvar::new(),
        room: Condvar::new(),
        oldest: AtomicU64::new(0),
        epoch: Instant::now(),
    });
    let sender = EventSender {
        shared: Arc::clone(&shared),
    };
    (sender, EventQueue { shared })
}

impl Events for EventQueue {
    fn try_recv(&mut self) -> Option<HostEvent> {
        EventQueue::try_recv(self)
    }

    fn oldest_pending(&self) -> Option<Instant> {
        EventQueue::oldest_pending(self)
    }
}

impl EventSender {
    /// Queues an event that may be lost, such as a frame.
    pub fn offer(&self, event: HostEvent) -> Offered {
        let mut state = self.shared.state.lock();
        if state.consumer == Consumer::Gone || !state.has_room(&event) {
            return Offered::Dropped;
        }
        self.shared.queue(&mut state, event);
        Offered::Queued
    }

    /// Queues an event, waiting for room until `deadline`.
    ///
    /// # Errors
    /// [`Refused::Full`] with the event after the deadline; [`Refused::Closed`] if the consumer is gone, or goes while
    /// this waits.
    pub fn push(&self, event: HostEvent, deadline: Instant) -> Result<(), Refused> {
        let mut state = self.shared.state.lock();
        while state.consumer != Consumer::Gone && !state.has_room(&event) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Refused::Full(event));
            }
            state.waiting_for_room += 1;
            self.shared.room.wait_for(&mut state, left);
            state.waiting_for_room -= 1;
        }
        if state.consumer == Consumer::Gone {
            return Err(Refused::Closed);
        }
        self.shared.queue(&mut state, event);
        Ok(())
    }

    /// Queues the answer to something that was asked for (a finished disk request, entropy), or a request to stop.
    /// Never waits and never refuses: such events are as many as their requests, which are bounded where they are made.
    ///
    /// # Errors
    /// [`Closed`] if the consumer is gone.
    pub fn answer(&self, event: HostEvent) -> Result<(), Closed> {
        let mut state = self.shared.state.lock();
        if state.consumer == Consumer::Gone {
            return Err(Closed);
        }
        self.shared.queue(&mut state, event);
        Ok(())
    }

    /// Ends the consumer's current or next wait without an event: something else it looks at has changed.
    pub fn wake(&self) {
        let mut state = self.shared.state.lock();
        state.woken = true;
        self.shared.notify(&state);
    }

    /// Since when the oldest waiting event has been waiting. Takes no lock.
    #[must_use]
    pub fn oldest_pending(&self) -> Option<Instant> {
        self.shared.oldest_pending()
    }
}

impl EventQueue {
    /// Takes the oldest event, if there is one. One atomic load where there is none.
    pub fn try_recv(&self) -> Option<HostEvent> {
        if self.shared.oldest.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.shared.take(&mut self.shared.state.lock())
    }

    /// Takes the oldest event, waiting for one until `deadline` (for ever without one). `None` after the deadline, or
    /// after a [`EventSender::wake`]: the caller looks at the world again.
    pub fn recv_deadline(&self, deadline: Option<Instant>) -> Option<HostEvent> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(event) = self.shared.take(&mut state) {
                return Some(event);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if std::mem::take(&mut state.woken) || left == Some(Duration::ZERO) {
                return None;
            }
            state.consumer = Consumer::Waiting;
            match left {
                Some(left) => {
                    self.shared.ready.wait_for(&mut state, left);
                }
                None => self.shared.ready.wait(&mut state),
            }
            state.consumer = Consumer::Busy;
        }
    }

    /// Since when the oldest waiting event has been waiting. Takes no lock.
    #[must_use]
    pub fn oldest_pending(&self) -> Option<Instant> {
        self.shared.oldest_pending()
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.consumer = Consumer::Gone;
        state.events.clear();
        state.bytes = 0;
        self.shared.oldest.store(0, Ordering::Release);
        self.shared.room.notify_all();
    }
}

impl QueueState {
    /// Whether an event that is not an answer may come in. One event always fits into an empty queue.
    fn has_room(&self, event: &HostEvent) -> bool {
        self.events.is_empty() || (self.events.len() < MAX_EVENTS && self.bytes + event.weight() <= MAX_BYTES)
    }
}

impl QueueShared {
    fn queue(&self, state: &mut QueueState, event: HostEvent) {
        let since_epoch = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        let stamp = since_epoch + 1;
        if state.events.is_empty() {
            self.oldest.store(stamp, Ordering::Release);
        }
        state.bytes += event.weight();
        state.events.push_back((stamp, event));
        self.notify(state);
    }

    fn take(&self, state: &mut QueueState) -> Option<HostEvent> {
        let (_, event) = state.events.pop_front()?;
        let next = state.events.front().map_or(0, |(stamp, _)| *stamp);
        self.oldest.store(next, Ordering::Release);
        state.bytes -= event.weight();
        // Not before half is free, or each event taken would wake every waiting producer for the room of one.
        let half_free = state.events.len() <= MAX_EVENTS / 2 && state.bytes <= MAX_BYTES / 2;
        if state.waiting_for_room > 0 && half_free {
            self.room.notify_all();
        }
        Some(event)
    }

    /// Notifying costs a system call even when nobody waits, so only a waiting consumer is notified.
    fn notify(&self, state: &QueueState) {
        if state.consumer == Consumer::Waiting {
            self.ready.notify_one();
        }
    }

    fn oldest_pending(&self) -> Option<Instant> {
        let stamp = self.oldest.load(Ordering::Acquire);
        (stamp != 0).then(|| self.epoch + Duration::from_nanos(stamp - 1))
    }
}

#[cfg(test)]
mod tests;
