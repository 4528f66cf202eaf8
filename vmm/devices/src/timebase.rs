//! Conversion between virtual nanoseconds and the ticks of a device's oscillator.
//!
//! Every counter a guest can read is derived from the one virtual clock, so that PIT, RTC and PM timer never disagree
//! and a replay needs one logged time only. Both directions are exact: `ns_at(k)` is the first nanosecond at which
//! `ticks` says `k`.

const NS_PER_S: u64 = 1_000_000_000;

/// An oscillator that started at virtual time 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Oscillator {
    hz: u64,
}

impl Oscillator {
    /// An oscillator of `hz` hertz, 1 to 10^9.
    pub(super) const fn new(hz: u64) -> Self {
        assert!(hz > 0 && hz <= NS_PER_S, "products below must fit 64 bits");
        Oscillator { hz }
    }

    /// Whole ticks in the first `ns` nanoseconds.
    pub(super) fn ticks(self, ns: u64) -> u64 {
        (ns / NS_PER_S) * self.hz + (ns % NS_PER_S) * self.hz / NS_PER_S
    }

    /// The first nanosecond at which `ticks` many ticks have passed, capped at `u64::MAX`.
    pub(super) fn ns_at(self, ticks: u64) -> u64 {
        let seconds = (ticks / self.hz).saturating_mul(NS_PER_S);
        seconds.saturating_add(((ticks % self.hz) * NS_PER_S).div_ceil(self.hz))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ns_at_is_the_first_nanosecond_of_its_tick() {
        for hz in [1, 32_768, 1_193_182, 3_579_545, NS_PER_S] {
            let oscillator = Oscillator::new(hz);
            for ticks in [1, 2, 3, 17, hz - 1, hz, hz + 1, 1_000_003, 1 << 33]
                .into_iter()
                .filter(|&t| t > 0)
            {
                let ns = oscillator.ns_at(ticks);
                assert_eq!(oscillator.ticks(ns), ticks, "{hz} Hz, {ticks} ticks");
                assert_eq!(oscillator.ticks(ns - 1), ticks - 1, "{hz} Hz, {ticks} ticks");
            }
        }
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        let oscillator = Oscillator::new(1_193_182);
        assert!(oscillator.ticks(u64::MAX) > 1 << 53);
        assert_eq!(oscillator.ns_at(u64::MAX), u64::MAX);
    }
}
