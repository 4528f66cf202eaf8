//! The MC146818 real-time clock and its NVRAM at ports 0x70 and 0x71, IRQ 8 (Motorola MC146818A data sheet).
//!
//! Time is the wall clock at the guest's start, plus the virtual clock, plus what the guest has set it by; nothing
//! ticks. Flags of register C are brought up to date when something looks at them, and an interrupt is a deadline only
//! while its flag is down, so periods nobody acknowledged are one. The time base never stops, whatever register A says
//! of it.

mod calendar;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::error::BadState;
use super::timebase::Oscillator;
use calendar::{DAY, DateTime};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

/// The crystal that periodic interrupts are divided from.
const CRYSTAL: Oscillator = Oscillator::new(32_768);
const NS_PER_S: u64 = 1_000_000_000;
/// "Update in progress" is up this long before the registers change.
const UPDATE_NS: u64 = 244_000;

/// Registers, by index.
mod register {
    pub(super) const SECOND: u8 = 0x00;
    pub(super) const SECOND_ALARM: u8 = 0x01;
    pub(super) const MINUTE: u8 = 0x02;
    pub(super) const MINUTE_ALARM: u8 = 0x03;
    pub(super) const HOUR: u8 = 0x04;
    pub(super) const HOUR_ALARM: u8 = 0x05;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0A;
    pub(super) const B: u8 = 0x0B;
    pub(super) const C: u8 = 0x0C;
    pub(super) const D: u8 = 0x0D;
    pub(super) const CENTURY: u8 = 0x32;
}

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
const A_RATE: u8 = 0x0F;
/// Divider for 32,768 Hz, and 1,024 Hz periodic: what firmware leaves.
const A_DEFAULT: u8 = 0x26;

const B_SET: u8 = 1 << 7;
const B_PERIODIC: u8 = 1 << 6;
const B_ALARM: u8 = 1 << 5;
const B_UPDATE: u8 = 1 << 4;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Flags of C and their enables in B share bits 6 to 4.
const INTERRUPTS: u8 = B_PERIODIC | B_ALARM | B_UPDATE;

const C_INTERRUPT: u8 = 1 << 7;
/// Register D: time and NVRAM are valid, because the battery is good.
const D_VALID: u8 = 1 << 7;

const HOUR_PM: u8 = 1 << 7;
/// An alarm byte of this value or above matches anything.
const ALARM_ANY: u8 = 0xC0;

const NVRAM: usize = 128;

/// The clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rtc {
    /// Unix time at virtual time 0, in nanoseconds.
    wall_clock_ns: u64,
    /// Seconds by which the guest has set the clock forward.
    set_by: i64,
    /// The registers while the guest holds them to set them (register B, SET).
    held: Option<DateTime>,
    index: u8,
    a: u8,
    b: u8,
    /// Flags of register C, up to `accounted`.
    flags: u8,
    accounted: u64,
    /// Second, minute, hour, as written.
    alarm: [u8; 3],
    /// By index; the registers' own places are unused.
    nvram: Vec<u8>,
}

impl Rtc {
    /// A clock that shows `wall_clock_ns` (Unix time in nanoseconds) at virtual time 0; BCD and 24 hours.
    pub(super) fn new(wall_clock_ns: u64) -> Self {
        Rtc {
            wall_clock_ns,
            set_by: 0,
            held: None,
            index: 0,
            a: A_DEFAULT,
            b: B_24_HOURS,
            flags: 0,
            accounted: 0,
            alarm: [0; 3],
            nvram: vec![0; NVRAM],
        }
    }

    /// Whether the clock answers at this port.
    pub(super) fn claims(port: u16) -> bool {
        matches!(port, INDEX | DATA)
    }

    /// Whether a read shows time: not for alarms, registers B and D, and NVRAM.
    pub(super) fn read_needs_clock(&self, port: u16) -> bool {
        port == DATA && (self.is_time() || matches!(self.index, register::A | register::C))
    }

    /// Whether a write depends on time: not for NVRAM.
    pub(super) fn write_needs_clock(&self, port: u16) -> bool {
        port == DATA && (self.is_time() || self.index <= register::B)
    }

    /// The level of the interrupt output.
    pub(super) fn interrupt(&self) -> bool {
        self.flags & self.b & INTERRUPTS != 0
    }

    /// Reads one byte at virtual time `now` (nanoseconds).
    pub(super) fn read(&mut self, port: u16, now: u64) -> u8 {
        if port == INDEX {
            return self.index;
        }
        match self.index {
            register::SECOND_ALARM => self.alarm[0],
            register::MINUTE_ALARM => self.alarm[1],
            register::HOUR_ALARM => self.alarm[2],
            register::A if self.update_in_progress(now) => self.a | A_UPDATE_IN_PROGRESS,
            register::A => self.a,
            register::B => self.b,
            register::C => self.read_flags(now),
            register::D => D_VALID,
            _ if self.is_time() => self.encode(self.date_time(now)),
            index => self.nvram[usize::from(index)],
        }
    }

    /// Writes one byte at virtual time `now` (nanoseconds).
    pub(super) fn write(&mut self, port: u16, value: u8, now: u64) {
        if port == INDEX {
            self.index = value & 0x7F;
            return;
        }
        if self.write_needs_clock(port) {
            // What happened before now happened under the old settings.
            self.advance(now);
        }
        match self.index {
            register::SECOND_ALARM => self.alarm[0] = value,
            register::MINUTE_ALARM => self.alarm[1] = value,
            register::HOUR_ALARM => self.alarm[2] = value,
            register::A => self.a = value & !A_UPDATE_IN_PROGRESS,
            register::B => self.write_b(value, now),
            register::C | register::D => {}
            _ if self.is_time() => self.write_time(value, now),
            index => self.nvram[usize::from(index)] = value,
        }
    }

    /// Fires what is due at `now` (nanoseconds).
    pub(super) fn tick(&mut self, now: u64) {
        if self.next_deadline().is_some_and(|due| due <= now) {
            self.advance(now);
        }
    }

    /// Raises the flags of everything that happened up to `now` (nanoseconds).
    fn advance(&mut self, now: u64) {
        if now <= self.accounted {
            return;
        }
        for (flag, due) in [
            (B_PERIODIC, self.next_period()),
            (B_ALARM, self.next_alarm()),
            (B_UPDATE, self.next_update()),
        ] {
            if due.is_some_and(|due| due <= now) {
                self.flags |= flag;
            }
        }
        self.accounted = now;
    }

    /// When the next enabled interrupt is due whose flag is not up yet, in virtual nanoseconds.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let wanted = self.b & !self.flags & INTERRUPTS;
        if wanted == 0 {
            return None;
        }
        let if_wanted = |flag: u8, due: fn(&Self) -> Option<u64>| if wanted & flag == 0 { None } else { due(self) };
        let all = [
            if_wanted(B_PERIODIC, Self::next_period),
            if_wanted(B_ALARM, Self::next_alarm),
            if_wanted(B_UPDATE, Self::next_update),
        ];
        all.into_iter().flatten().min()
    }

    /// Refuses a state of another wall clock, or with an NVRAM of another size.
    pub(super) fn check(&self, built: &Self) -> Result<(), BadState> {
        if self.wall_clock_ns != built.wall_clock_ns {
            return Err(BadState::new(
                "the wall clock",
                "the one configured here",
                self.wall_clock_ns,
            ));
        }
        if self.nvram.len() != NVRAM || usize::from(self.index) >= NVRAM {
            return Err(BadState::new("RTC NVRAM", "128 bytes", self.nvram.len()));
        }
        Ok(())
    }

    fn is_time(&self) -> bool {
        use register::{CENTURY, DAY, HOUR, MINUTE, MONTH, SECOND, WEEKDAY, YEAR};
        matches!(
            self.index,
            SECOND | MINUTE | HOUR | WEEKDAY | DAY | MONTH | YEAR | CENTURY
        )
    }

    /// Unix time in nanoseconds, without what the guest has set.
    fn wall(&self, now: u64) -> u64 {
        self.wall_clock_ns.saturating_add(now)
    }

    fn date_time(&self, now: u64) -> DateTime {
        self.held.unwrap_or_else(|| DateTime::from_seconds(self.seconds(now)))
    }

    fn seconds(&self, now: u64) -> i64 {
        (self.wall(now) / NS_PER_S).cast_signed().saturating_add(self.set_by)
    }

    fn set_seconds(&mut self, seconds: i64, now: u64) {
        self.set_by = seconds.saturating_sub((self.wall(now) / NS_PER_S).cast_signed());
    }

    fn update_in_progress(&self, now: u64) -> bool {
        self.held.is_none() && self.wall(now) % NS_PER_S >= NS_PER_S - UPDATE_NS
    }

    fn read_flags(&mut self, now: u64) -> u8 {
        self.advance(now);
        let interrupt = if self.interrupt() { C_INTERRUPT } else { 0 };
        std::mem::take(&mut self.flags) | interrupt
    }

    /// SET holds the registers, and clears the update interrupt's enable; taking SET back starts them from what they
    /// hold.
    fn write_b(&mut self, value: u8, now: u64) {
        self.b = value;
        if value & B_SET != 0 {
            self.b &= !B_UPDATE;
            self.held = Some(self.date_time(now));
        } else if let Some(held) = self.held.take() {
            self.set_seconds(held.to_seconds(), now);
        }
    }

    fn write_time(&mut self, value: u8, now: u64) {
        let mut date_time = self.date_time(now);
        let decoded = self.decode(value);
        match self.index {
            register::SECOND => date_time.second = decoded,
            register::MINUTE => date_time.minute = decoded,
            register::HOUR => date_time.hour = self.decode_hour(value),
            register::WEEKDAY => date_time.weekday = decoded,
            register::DAY => date_time.day = decoded,
            register::MONTH => date_time.month = decoded,
            register::YEAR => date_time.year = decoded,
            _ => date_time.century = decoded,
        }
        if self.held.is_some() {
            self.held = Some(date_time);
        } else {
            self.set_seconds(date_time.to_seconds(), now);
        }
    }

    /// The register that `index` names, as the guest wants it written.
    fn encode(&self, date_time: DateTime) -> u8 {
        let value = match self.index {
            register::SECOND => date_time.second,
            register::MINUTE => date_time.minute,
            register::HOUR => return self.encode_hour(date_time.hour),
            register::WEEKDAY => date_time.weekday,
            register::DAY => date_time.day,
            register::MONTH => date_time.month,
            register::YEAR => date_time.year,
            _ => date_time.century,
        };
        self.encode_number(value)
    }

    fn encode_number(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            value
        } else {
            (value / 10 % 10) << 4 | (value % 10)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.encode_number(hour);
        }
        let of_half = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode_number(of_half) | if hour % 24 < 12 { 0 } else { HOUR_PM }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0x0F)
        }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let afternoon = if value & HOUR_PM == 0 { 0 } else { 12 };
        self.decode(value & !HOUR_PM) % 12 + afternoon
    }

    /// First edge of the periodic divider after `accounted`.
    fn next_period(&self) -> Option<u64> {
        let ticks = match self.a & A_RATE {
            0 => return None,
            1 => 128,
            2 => 256,
            rate => 1 << (rate - 1),
        };
        let periods = CRYSTAL.ticks(self.accounted) / ticks + 1;
        Some(CRYSTAL.ns_at(periods * ticks))
    }

    /// The first change of second after `accounted`.
    fn next_update(&self) -> Option<u64> {
        self.starts_in(1)
    }

    /// When the second begins that is `seconds` after that of `accounted`.
    fn starts_in(&self, seconds: u64) -> Option<u64> {
        if self.held.is_some() {
            return None;
        }
        let second = self.wall(self.accounted) / NS_PER_S + seconds;
        second.checked_mul(NS_PER_S)?.checked_sub(self.wall_clock_ns)
    }

    /// The first second after that of `accounted` that the alarm matches.
    fn next_alarm(&self) -> Option<u64> {
        let matching = |alarm: u8, decoded: u8, value: u8| alarm >= ALARM_ANY || decoded == value;
        let [second_alarm, minute_alarm, hour_alarm] = self.alarm;
        let second_matches = |second| matching(second_alarm, self.decode(second_alarm), second);
        let minute_matches = |minute| matching(minute_alarm, self.decode(minute_alarm), minute);
        let hour_matches = |hour| matching(hour_alarm, self.decode_hour(hour_alarm), hour);
        let first = (self.seconds(self.accounted).rem_euclid(DAY) + 1) % DAY;
        // From the hour of `first` on, once round the day; whole minutes before `first` are stepped over.
        let hours = (0..=24).map(|hours| first / 3600 + hours);
        for hour in hours.filter(|hour| hour_matches(byte(hour % 24))) {
            for minute in (0..60).filter(|&minute| minute_matches(minute)) {
                let minute_ends = hour * 3600 + i64::from(minute) * 60 + 60;
                if minute_ends <= first {
                    continue;
                }
                let starts = minute_ends - 60;
                let found = (0..60).find(|&second| second_matches(second) && starts + i64::from(second) >= first);
                if let Some(second) = found {
                    let after = starts + i64::from(second) - first + 1;
                    return self.starts_in(after.unsigned_abs());
                }
            }
        }
        None
    }
}

fn byte(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}
