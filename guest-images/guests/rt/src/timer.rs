//! Time: the PIT's tick, the ACPI PM timer and the real-time clock.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_abi::{PIT_HZ, PM_TIMER_MASK, PM_TIMER_PORT};

use crate::cpu::{inb, inl, outb};
use crate::pic;

/// Ticks per second that guests use.
pub const TICK_HZ: u32 = 100;
/// The IRQ of PIT channel 0.
pub const TICK_IRQ: u8 = 0;

static TICKS: AtomicU64 = AtomicU64::new(0);

/// Starts PIT channel 0 in mode 2 at `hz` (19 to 1193182) and unmasks its interrupt.
///
/// # Panics
/// If the divisor does not fit the counter.
pub fn start(hz: u32) {
    let divisor = u16::try_from((PIT_HZ + hz / 2) / hz).expect("PIT frequency of at least 19 Hz");
    let [low, high] = divisor.to_le_bytes();
    outb(0x43, 0x34);
    outb(0x40, low);
    outb(0x40, high);
    pic::unmask(TICK_IRQ);
}

/// Tick interrupts taken so far.
#[must_use]
pub fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// The tick's interrupt handler; interrupts are disabled, so nothing comes between load and store.
pub(crate) fn tick() {
    TICKS.store(ticks() + 1, Ordering::Relaxed);
}

/// The PM timer's 24-bit counter.
#[must_use]
pub fn pm_timer() -> u32 {
    inl(PM_TIMER_PORT) & PM_TIMER_MASK
}

/// What is left in the counter of PIT channel 0, latched.
#[must_use]
pub fn pit_counter() -> u16 {
    outb(0x43, 0x00);
    u16::from_le_bytes([inb(0x40), inb(0x40)])
}

/// A register of the real-time clock (MC146818), as it is.
#[must_use]
pub fn rtc_register(register: u8) -> u8 {
    outb(0x70, register);
    inb(0x71)
}

/// The real-time clock in seconds since 1970-01-01 00:00:00, taken as UTC. `None` if it never holds still or holds no date.
#[must_use]
pub fn real_time() -> Option<u64> {
    // Two equal readings in a row are one that no update went through; a clock needs at most a few tries.
    let mut last = RtcReading::take();
    for _ in 0..8 {
        let reading = RtcReading::take();
        if reading == last {
            return reading.unix_seconds();
        }
        last = reading;
    }
    None
}

#[derive(PartialEq, Eq)]
struct RtcReading {
    /// Second, minute, hour, day, month, year, century; as the registers hold them.
    fields: [u8; 7],
    status_b: u8,
}

impl RtcReading {
    fn take() -> Self {
        // Status register A, bit 7: an update is under way. The bound is far beyond the 2 ms one takes.
        let _ = (0..10_000).find(|_| rtc_register(0x0a) & 0x80 == 0);
        Self {
            fields: [0x00, 0x02, 0x04, 0x07, 0x08, 0x09, 0x32].map(rtc_register),
            status_b: rtc_register(0x0b),
        }
    }

    fn unix_seconds(&self) -> Option<u64> {
        let binary = self.status_b & 4 != 0;
        let value = |raw: u8| u64::from(if binary { raw } else { (raw >> 4) * 10 + (raw & 15) });
        let [second, minute, hour, day, month, year, century] = self.fields;
        let hour = match (self.status_b & 2 != 0, hour & 0x80 != 0) {
            (true, _) => value(hour),
            (false, pm) => value(hour & 0x7f) % 12 + if pm { 12 } else { 0 },
        };
        let century = if (19..=99).contains(&value(century)) {
            value(century)
        } else {
            20
        };
        let (year, month, day) = (century * 100 + value(year), value(month), value(day));
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
            return None;
        }
        Some(((days_since_1970(year, month, day) * 24 + hour) * 60 + value(minute)) * 60 + value(second))
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin with March.
const fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

const _: () = assert!(days_since_1970(1970, 1, 1) == 0);
const _: () = assert!(days_since_1970(2000, 3, 1) == 11_017);
const _: () = assert!(days_since_1970(2026, 11, 21) == 20_778);
