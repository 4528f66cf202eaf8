//! The guest's one clock (DESIGN, idea 4; PROTOCOL 20).
//!
//! Virtual time is nanoseconds since the guest's start. It is logged at the exits that need it; whatever else looks
//! like a clock (the TSC) is derived from the last logged value and the readings since, without an entry. No value
//! handed out is smaller than one before it.

use serde::{Deserialize, Serialize};

/// Virtual nanoseconds a derived clock moves per reading.
const DERIVED_STEP: u64 = 100;

/// A derived clock never runs further than this ahead of the last logged value: one tick of the slowest usual timer.
const DERIVED_CAP: u64 = 10_000_000;

/// Last logged time and the largest value handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualClock {
    logged: u64,
    handed_out: u64,
}

impl VirtualClock {
    /// The last logged time.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.logged
    }

    /// The smallest value that may be logged next.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.logged
            .max(self.handed_out.saturating_add(u64::from(self.handed_out > self.logged)))
    }

    /// Takes over a logged value. `false`, and no change, if time would run backwards.
    #[must_use]
    pub fn set(&mut self, time: u64) -> bool {
        if time < self.floor() {
            return false;
        }
        self.logged = time;
        self.handed_out = time;
        true
    }

    /// A clock value without a log entry: moves a little with each call, never backwards, never far ahead.
    pub fn derive(&mut self) -> u64 {
        let next = self
            .handed_out
            .saturating_add(DERIVED_STEP)
            .min(self.logged.saturating_add(DERIVED_CAP));
        self.handed_out = self.handed_out.max(next);
        self.handed_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_backwards_and_capped() {
        let mut clock = VirtualClock::default();
        assert!(clock.set(1_000));
        assert_eq!(clock.floor(), 1_000);
        assert_eq!(clock.derive(), 1_100);
        assert_eq!(clock.floor(), 1_101, "a logged value lies behind every derived one");
        assert!(!clock.set(1_100));
        assert!(clock.set(1_101));
        for _ in 0..200_000 {
            clock.derive();
        }
        assert_eq!(clock.derive(), 1_101 + DERIVED_CAP);
        assert_eq!(clock.now(), 1_101);
    }
}
