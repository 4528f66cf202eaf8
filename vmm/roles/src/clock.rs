//! The host's clock as a live machine sees it. This is a shell: the only place where guest time meets host time.

use std::time::{Duration, Instant};

/// Time never advances further than this past the guest's last tick, so that its 24-bit PM timer, which wraps every
/// 4.69 s, cannot wrap unseen after the host was stopped (PROTOCOL 20).
const LEAP: u64 = 1_900_000_000;

/// After a tick, until the timer is armed again, time advances no further than this from one reading to the next: a
/// guest that was stopped there has not looked at its PM timer since before the tick, so the first readings of the handler
/// must not leap either.
const STRIDE: u64 = 75_000_000;

/// So many readings at most are held to [`STRIDE`]: a handler makes three or four before it arms the timer. A guest that
/// goes on without one is no longer held. With the leap before the tick this stays below a wrap: 1.9 s + 32 * 75 ms = 4.3 s.
const STRIDES: u8 = 32;

/// Readings are rounded up to this many nanoseconds, as the clocks of a machine tick in steps too (its PM timer every
/// 279 ns): an exit takes longer, and the log says such a difference in a byte or two.
pub(crate) const GRAIN: u64 = 1 << ftvm_schema::entry::CLOCK_GRAIN_BITS;

/// Maps the host's monotonic clock to virtual nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct LiveClock {
    host: Instant,
    virtual_ns: u64,
    last_tick: u64,
    /// The latest reading.
    last: u64,
    /// Readings that will still be held to [`STRIDE`].
    strides: u8,
    /// The time at which the guest is paused.
    stopped: Option<u64>,
}

impl LiveClock {
    /// A new guest's: virtual time is `virtual_ns` at `host`, and runs on from there.
    #[must_use]
    pub fn starting(virtual_ns: u64, host: Instant) -> Self {
        LiveClock {
            host,
            virtual_ns,
            last_tick: virtual_ns,
            last: virtual_ns,
            strides: 0,
            stopped: None,
        }
    }

    /// The clock of a guest that has lived on another host, and may be in the middle of a tick.
    #[must_use]
    pub(crate) fn resuming(virtual_ns: u64, host: Instant) -> Self {
        LiveClock {
            strides: STRIDES,
            ..LiveClock::starting(virtual_ns, host)
        }
    }

    /// Virtual time at host time `now`, before the limit on leaps.
    #[must_use]
    pub fn at(&self, now: Instant) -> u64 {
        if let Some(at) = self.stopped {
            return at;
        }
        let elapsed = now.saturating_duration_since(self.host).as_nanos();
        self.virtual_ns
            .saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))
    }

    /// The virtual time to give the guest at host time `now`: never below `floor`, and a multiple of [`GRAIN`] where no limit
    /// cuts it off. While a timer is armed for `deadline`, that is the limit, or a leap past the last tick if that is later: the
    /// tick itself always comes. Between a tick and the arming of the next one, a few readings advance by a bounded stride each.
    #[must_use]
    pub fn reading(&mut self, now: Instant, floor: u64, deadline: Option<u64>) -> u64 {
        let limit = match deadline {
            Some(at) => at.max(self.last_tick.saturating_add(LEAP)),
            None if self.strides > 0 => self.last.saturating_add(STRIDE),
            None => u64::MAX,
        };
        self.strides = if deadline.is_some() {
            0
        } else {
            self.strides.saturating_sub(1)
        };
        let grained = self.at(now).div_ceil(GRAIN).saturating_mul(GRAIN);
        self.last = grained.min(limit).max(floor);
        self.last
    }

    /// A timer fired at virtual time `time`.
    pub(crate) fn ticked(&mut self, time: u64) {
        self.last_tick = time;
        self.strides = STRIDES;
    }

    /// The guest sleeps, and no timer will wake it: it has no use for ticks.
    pub(crate) fn sleeps_without_timer(&mut self) {
        self.strides = 0;
    }

    /// Time stands still at `at`: the guest is paused.
    pub fn stop(&mut self, at: u64) {
        self.stopped = Some(at);
    }

    /// The guest goes on at host time `now`, where its time stood.
    pub fn go_on(&mut self, now: Instant) {
        if let Some(at) = self.stopped.take() {
            (self.host, self.virtual_ns) = (now, at);
        }
    }

    /// Host time at which virtual time reaches `deadline`.
    #[must_use]
    pub(crate) fn host_time(&self, deadline: u64) -> Instant {
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
        assert_eq!(clock.reading(later, 0, Some(9_000)), 5_000 + LEAP);
        clock.ticked(5_000 + LEAP);
        assert_eq!(clock.reading(later, 0, Some(9_000)), 5_000 + 2 * LEAP);
        assert_eq!(
            clock.reading(later, 0, None),
            10_000_005_000_u64.next_multiple_of(GRAIN),
            "without a timer there is no tick to wait for"
        );
        assert_eq!(clock.reading(start, 7_777, Some(9_000)), 7_777, "never below the floor");
        assert_eq!(clock.host_time(clock.at(later)), later);
        let mut clock = LiveClock::starting(0, start);
        let grained = [0, 1, GRAIN, GRAIN + 1].map(|ns| clock.reading(start + Duration::from_nanos(ns), 0, None));
        assert_eq!(grained, [0, GRAIN, GRAIN, 2 * GRAIN]);
    }

    #[test]
    fn a_timer_armed_late_still_ticks() {
        let start = Instant::now();
        let mut clock = LiveClock::starting(0, start);
        let later = start + Duration::from_secs(60);
        // The guest saw 50 s go by without a timer, then arms its first one.
        let deadline = 50_004_000_000;
        assert_eq!(clock.reading(later, 50_000_000_000, Some(deadline)), deadline);
    }

    /// A PM timer whose owner looks at it between a tick and the arming of the next, as Linux does.
    #[test]
    fn a_host_that_stops_in_the_middle_of_a_tick_loses_no_time() {
        const WRAP: u64 = 4_687_000_000;
        let start = Instant::now();
        let mut clock = LiveClock::starting(0, start);
        let tick = clock.reading(start + Duration::from_millis(4), 0, Some(4_000_000));
        clock.ticked(tick);
        let resumed = start + Duration::from_secs(60);
        let handler: Vec<u64> = (0..4).map(|_| clock.reading(resumed, 0, None)).collect();
        assert_eq!(handler[0], tick + STRIDE);
        assert_eq!(handler[3], tick + 4 * STRIDE);
        // From then on it follows from tick to tick, and has caught up within half a second of 250 Hz.
        let mut seen = handler[3];
        for _ in 0..125 {
            let tick = clock.reading(resumed, 0, Some(seen + 4_000_000));
            clock.ticked(tick);
            let looked = clock.reading(resumed, 0, None);
            assert!(looked - seen < WRAP, "from {seen} to {looked}");
            seen = looked;
        }
        assert_eq!(seen, clock.at(resumed).next_multiple_of(GRAIN));
    }

    #[test]
    fn a_guest_that_takes_over_in_the_middle_of_a_tick_loses_no_time() {
        let start = Instant::now();
        let mut clock = LiveClock::resuming(7_000, start);
        assert_eq!(clock.reading(start + Duration::from_secs(8), 0, None), 7_000 + STRIDE);
    }

    #[test]
    fn a_pause_is_no_time_at_all() {
        let start = Instant::now();
        let mut clock = LiveClock::starting(0, start);
        let paused = start + Duration::from_millis(100);
        let at = clock.reading(paused, 0, Some(104_000_000));
        clock.stop(at);
        let resumed = paused + Duration::from_secs(60);
        assert_eq!(clock.at(resumed), at);
        clock.go_on(resumed);
        assert_eq!(clock.at(resumed), at, "it does not jump");
        assert_eq!(clock.host_time(at + 4_000_000), resumed + Duration::from_millis(4));
        let reading = clock.reading(resumed + Duration::from_millis(3), 0, None);
        assert_eq!(reading, (at + 3_000_000).next_multiple_of(GRAIN));
    }

    #[test]
    fn a_guest_without_a_timer_is_not_held_back_for_long() {
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        let mut clock = LiveClock::resuming(0, start);
        let held = (0..u64::from(STRIDES)).map(|number| (number + 1) * STRIDE);
        assert!(held.eq((0..STRIDES).map(|_| clock.reading(later, 0, None))));
        assert_eq!(clock.reading(later, 0, None), clock.at(later).next_multiple_of(GRAIN));
        let mut clock = LiveClock::resuming(0, start);
        clock.sleeps_without_timer();
        assert_eq!(
            clock.reading(later, 0, None),
            clock.at(later).next_multiple_of(GRAIN),
            "it was woken by something else"
        );
    }
}
