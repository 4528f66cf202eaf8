//! What the vCPU thread leaves in a few atomics for the monitor, which kicks a guest that does not exit while something waits
//! for it (docs, "Design", idea 3; `--patience`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Limits, Waiting};

/// Entries for which no output and no disk request waits leave after this long: two ticks of an idle guest, which are at most
/// 55 ms apart (a PIT counts no further), share a frame.
pub(crate) const FLUSH_AFTER: Duration = Duration::from_millis(60);

/// What the vCPU thread tells the monitor. Times are nanoseconds since `epoch`; 0 means none.
#[derive(Debug)]
pub struct Watched {
    epoch: Instant,
    in_guest: AtomicBool,
    deadline: AtomicU64,
    tick_wait: AtomicU64,
    event_wait: AtomicU64,
    rest_until: AtomicU64,
    unflushed_since: AtomicU64,
    kick_at: AtomicU64,
}

impl Watched {
    /// Nothing has happened since `epoch`, which is now.
    #[must_use]
    pub fn new(epoch: Instant) -> Self {
        Watched {
            epoch,
            in_guest: AtomicBool::new(false),
            deadline: AtomicU64::new(0),
            tick_wait: AtomicU64::new(0),
            event_wait: AtomicU64::new(0),
            rest_until: AtomicU64::new(0),
            unflushed_since: AtomicU64::new(0),
            kick_at: AtomicU64::new(0),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.epoch)).max(1)
    }

    fn instant(&self, nanos: &AtomicU64) -> Option<Instant> {
        let nanos = nanos.load(Ordering::Relaxed);
        (nanos != 0).then(|| self.epoch + Duration::from_nanos(nanos))
    }

    /// How long things may wait from now on.
    pub fn limit(&self, limits: &Limits) {
        self.tick_wait.store(nanos(limits.tick), Ordering::Relaxed);
        self.event_wait.store(nanos(limits.event), Ordering::Relaxed);
        self.rest_until
            .store(limits.rest_until.map_or(0, |at| self.nanos(at)), Ordering::Relaxed);
    }

    /// The guest is about to run; its next timer is due at `deadline`, and entries have been waiting to leave since
    /// `unflushed_since`.
    pub fn enter(&self, deadline: Option<Instant>, unflushed_since: Option<Instant>) {
        let nanos = |at: Option<Instant>| at.map_or(0, |at| self.nanos(at));
        self.deadline.store(nanos(deadline), Ordering::Relaxed);
        self.unflushed_since.store(nanos(unflushed_since), Ordering::Relaxed);
        self.in_guest.store(true, Ordering::Release);
    }

    /// Whether the guest is running.
    #[must_use]
    pub fn is_in_guest(&self) -> bool {
        self.in_guest.load(Ordering::Acquire)
    }

    /// The guest has come back.
    pub fn leave(&self) {
        self.in_guest.store(false, Ordering::Release);
    }

    /// A kick met the guest at a bad moment.
    pub(crate) fn kick_again(&self, at: Instant) {
        self.kick_at.store(self.nanos(at), Ordering::Relaxed);
    }

    /// Whether a kick is due at `now`.
    #[must_use]
    pub fn due(&self, now: Instant, oldest_event: Option<Instant>) -> bool {
        let limits = Limits {
            tick: Duration::from_nanos(self.tick_wait.load(Ordering::Relaxed)),
            event: Duration::from_nanos(self.event_wait.load(Ordering::Relaxed)),
            rest_until: self.instant(&self.rest_until),
        };
        let waiting = Waiting {
            tick: self.instant(&self.deadline),
            event: oldest_event,
        };
        let passed = |at: Option<Instant>, delay| at.is_some_and(|at| now >= at + delay);
        let again = self.kick_at.swap(0, Ordering::Relaxed);
        limits.due(&waiting, now)
            || (again != 0 && self.nanos(now) >= again)
            || passed(self.instant(&self.unflushed_since), FLUSH_AFTER)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_only_when_something_has_waited_long_enough() {
        let watched = Watched::new(Instant::now());
        let start = watched.epoch + Duration::from_millis(100);
        let after = |ms| start + Duration::from_millis(ms);
        watched.limit(&Limits {
            tick: Duration::from_millis(30),
            event: Duration::from_millis(7),
            rest_until: None,
        });
        watched.enter(Some(start), None);
        assert!(!watched.due(after(29), None) && watched.due(after(30), None));
        watched.enter(None, None);
        assert!(!watched.due(after(9000), None));
        assert!(!watched.due(after(6), Some(start)) && watched.due(after(7), Some(start)));
        watched.kick_again(start);
        assert!(watched.due(start, None));
        assert!(!watched.due(start, None), "one kick only");
        watched.enter(None, Some(start));
        assert!(
            !watched.due(after(59), None) && watched.due(after(60), None),
            "entries leave"
        );
    }
}
