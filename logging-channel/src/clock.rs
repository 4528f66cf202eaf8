//! The host's clock that leases are measured by.
//!
//! It is read by the shells that drive this crate; everything else here takes times as arguments. CLOCK_BOOTTIME goes
//! on while the host is suspended, so that a lease does not outlive a closed lid (PROTOCOL 12).

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in nanoseconds.
///
/// # Panics
/// On a kernel without CLOCK_BOOTTIME (before 2.6.39).
#[must_use]
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(now.tv_sec()).expect("a boot is never in the future");
    let nanoseconds = u64::try_from(now.tv_nsec()).expect("0 to 999999999");
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_goes_on() {
        let first = super::boottime_ns();
        assert!(first > 0 && super::boottime_ns() >= first);
    }
}
