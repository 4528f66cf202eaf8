//! The host's clock as a live machine sees it. This is a shell: the only place where guest time meets host time.

use std::time::{Duration, Instant};

/// Time never advances further than this past the guest's last tick, so that its 24-bit PM timer, which wraps every
/// 4.69 s, cannot wrap unseen after the host was stopped (PROTOCOL 20).
const LEAP: u64 = 1_900_000_000;

/// Maps the host's monotonic clock to virtual nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct LiveClock {
    host: Instant,
    virtual_ns: u64,
    last_tick: u64,
}

impl LiveClock {
    /// Virtual time is `virtual_ns` at `host`, and runs on from there.
    #[must_use]
    pub fn starting(virtual_ns: u64, host: Instant) -> Self {
        LiveClock {
            host,
            virtual_ns,
            last_tick: virtual_ns,
        }
    }

    /// Virtual time at host time `now`, before the limit on leaps.
    #[must_use]
    pub fn at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.host).as_nanos();
        self.virtual_ns
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// Virtual time at host time `now` to be given to the guest; at least `floor`. A timer that is armed for `deadline`
    /// must tick before time may leap past it; that tick itself always comes.
    #[must_use]
    pub fn reading(&self, now: Instant, floor: u64, deadline: Option<u64>) -> u64 {
        let limit = deadline.map_or(u64::MAX, |at| at.max(self.last_tick.saturating_add(LEAP)));
        self.at(now).min(limit).max(floor)
    }

    /// A timer fired at virtual time `time`.
    pub fn ticked(&mut self, time: u64) {
        self.last_tick = time;
    }

    /// Host time at which virtual time reaches `deadline`.
    #[must_use]
    pub fn host_time(&self, deadline: u64) -> Instant {
        self.host + Duration::from_nanos(deadline.saturating_sub(self.virtual_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaps_in_steps_with_ticks_between() {
        let start = Instant::now();
        let mut clock = LiveClock::starting(5_000, start);
        let later = start + Duration::from_secs(10);
        assert_eq!(clock.reading(later, 0, None), 10_000_005_000);
        assert_eq!(clock.reading(later, 0, Some(9_000)), 5_000 + LEAP);
        clock.ticked(5_000 + LEAP);
        assert_eq!(clock.reading(later, 0, Some(9_000)), 5_000 + 2 * LEAP);
        assert_eq!(clock.reading(start, 7_777, Some(9_000)), 7_777, "never below the floor");
        assert_eq!(clock.host_time(clock.at(later)), later);
    }

    #[test]
    fn a_timer_armed_late_still_ticks() {
        let start = Instant::now();
        let clock = LiveClock::starting(0, start);
        let later = start + Duration::from_secs(60);
        // The guest saw 50 s go by without a timer, then arms its first one.
        let deadline = 50_004_000_000;
        assert_eq!(clock.reading(later, 50_000_000_000, Some(deadline)), deadline);
    }
}
