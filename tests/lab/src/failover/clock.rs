//! What time it is, for this machine and for the guest.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

/// The guest's clock may be off by this: it begins with the whole seconds of its RTC, and its host's clock did too.
const TOLERANCE: Duration = Duration::from_secs(2);
/// The guest says whole seconds, rounded down.
const SECOND: Duration = Duration::from_secs(1);

/// The time that this machine's clock said at the start and what has gone by since. If the clock is set meanwhile, the
/// emulated hosts, whose clocks began with the same time, know nothing of it, and nor does this one.
#[derive(Debug, Clone, Copy)]
pub struct SteadyClock {
    start: (SystemTime, Instant),
}

impl SteadyClock {
    /// Begins now: the first host is to start in this moment.
    #[must_use]
    pub fn start() -> Self {
        SteadyClock {
            start: (SystemTime::now(), Instant::now()),
        }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let (time, since) = self.start;
        time + since.elapsed()
    }
}

/// A clock that was off: what it said, when it was asked and when the answer was heard, by this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Off {
    /// By so much at least, as the guest says whole seconds only.
    pub by: Duration,
    date: SystemTime,
    asked: SystemTime,
    heard: SystemTime,
}

impl fmt::Display for Off {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unix = |at: SystemTime| {
            at.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64()
        };
        let which = if self.date > self.heard { "fast" } else { "slow" };
        write!(
            f,
            "too {which} by {:?} or more: it said {} between {:.3} and {:.3} (Unix time)",
            self.by,
            unix(self.date),
            unix(self.asked),
            unix(self.heard)
        )
    }
}

impl Off {
    /// Whether it was off by more than it may.
    #[must_use]
    pub fn too_far(&self) -> bool {
        self.by > TOLERANCE
    }
}

/// What the guest's clock has said.
#[derive(Debug, Default)]
pub struct GuestClock {
    last: Option<SystemTime>,
}

impl GuestClock {
    /// Whether it was off when it said `date` to somebody who had asked at `asked` and heard it at `heard`.
    ///
    /// # Errors
    /// If it went back.
    pub fn said(&mut self, date: SystemTime, asked: SystemTime, heard: SystemTime) -> Result<Option<Off>, String> {
        if let Some(last) = self.last
            && date < last
        {
            return Err(format!("the guest's clock went back from {last:?} to {date:?}"));
        }
        self.last = Some(date);
        let slow = asked.duration_since(date + SECOND).unwrap_or_default();
        let fast = date.duration_since(heard).unwrap_or_default();
        let by = slow.max(fast);
        Ok((!by.is_zero()).then_some(Off { by, date, asked, heard }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_guests_time_lies_between_question_and_answer() {
        let said = |date, asked, heard| {
            let off = GuestClock::default().said(at(date), asked, heard);
            off.map(|off| off.map_or(Duration::ZERO, |off| off.by))
        };
        let half = Duration::from_millis(500);
        assert_eq!(said(100, at(100) + half, at(101)), Ok(Duration::ZERO), "rounded down");
        assert_eq!(
            said(100, at(90), at(100)),
            Ok(Duration::ZERO),
            "after a failover of ten seconds"
        );
        assert_eq!(said(100, at(102) + half, at(120)), Ok(SECOND + half), "too slow");
        assert_eq!(said(100, at(90), at(98) + half), Ok(SECOND + half), "too fast");
    }

    #[test]
    fn the_guests_time_never_goes_back() {
        let mut clock = GuestClock::default();
        for date in [100, 100, 101] {
            assert_eq!(clock.said(at(date), at(date), at(date)), Ok(None));
        }
        assert!(clock.said(at(100), at(100), at(101)).unwrap_err().contains("went back"));
    }

    #[test]
    fn a_clock_that_is_off_says_when() {
        let off = |heard| GuestClock::default().said(at(100), at(103), heard).unwrap().unwrap();
        assert_eq!(
            off(at(104)).to_string(),
            "too slow by 2s or more: it said 100 between 103.000 and 104.000 (Unix time)"
        );
        let fast = GuestClock::default().said(at(100), at(97), at(98)).unwrap().unwrap();
        assert!(fast.to_string().starts_with("too fast by 2s or more: it said 100 "));
    }
}
