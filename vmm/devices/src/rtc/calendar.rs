//! Seconds since 1970 as the RTC's registers count them, and back (proleptic Gregorian calendar, UTC).

use serde::{Deserialize, Serialize};

/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;

/// Days from 1 March of year 0, where 400-year eras begin, to 1 January 1970.
const EPOCH: i64 = 719_468;
const DAYS_PER_ERA: i64 = 146_097;

/// A date and time, in binary. What a guest wrote may be no date at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DateTime {
    pub second: u8,
    pub minute: u8,
    pub hour: u8,
    /// 1 is Sunday.
    pub weekday: u8,
    pub day: u8,
    pub month: u8,
    pub year: u8,
    pub century: u8,
}

impl DateTime {
    /// The date and time `seconds` after 1970 began; before year 0 and after year 25,599 the nearest there is.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let days = seconds
            .div_euclid(DAY)
            .clamp(-EPOCH, 25_600 * DAYS_PER_ERA / 400 - EPOCH - 366);
        let of_day = seconds.rem_euclid(DAY);
        // Years begin in March here, so that the leap day is a year's last.
        let shifted = days + EPOCH;
        let of_era = shifted.rem_euclid(DAYS_PER_ERA);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = year_of_era + shifted.div_euclid(DAYS_PER_ERA) * 400 + i64::from(month <= 2);
        DateTime {
            second: byte(of_day % 60),
            minute: byte(of_day / 60 % 60),
            hour: byte(of_day / 3600),
            weekday: byte((days + 4).rem_euclid(7) + 1),
            day: byte(of_year - (153 * march_month + 2) / 5 + 1),
            month: byte(month),
            year: byte(year % 100),
            century: byte(year / 100),
        }
    }

    /// Seconds since 1970 began. Values out of range carry over; the weekday does not count.
    pub(super) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = i64::from(self.century) * 100 + i64::from(self.year) - i64::from(month <= 2);
        let march_month = (month + 9) % 12;
        let of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - EPOCH;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

fn byte(value: i64) -> u8 {
    u8::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let date = DateTime::from_seconds(1_800_000_000);
        let expected = DateTime {
            second: 0,
            minute: 0,
            hour: 8,
            weekday: 6,
            day: 15,
            month: 1,
            year: 27,
            century: 20,
        };
        assert_eq!(date, expected);
        let leap = DateTime::from_seconds(951_782_400);
        assert_eq!(
            (leap.day, leap.month, leap.year, leap.century, leap.weekday),
            (29, 2, 0, 20, 3)
        );
        assert_eq!(DateTime::from_seconds(0).weekday, 5, "1 January 1970 was a Thursday");
    }

    #[test]
    fn there_and_back() {
        for days in (-700_000..8_000_000).step_by(97) {
            let seconds = days * DAY + days.rem_euclid(DAY);
            assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds, "day {days}");
        }
    }

    #[test]
    fn no_second_and_no_date_overflows() {
        for seconds in [i64::MIN, -1 << 40, 1 << 50, i64::MAX] {
            DateTime::from_seconds(seconds);
        }
        let all = DateTime {
            second: 255,
            minute: 255,
            hour: 255,
            weekday: 255,
            day: 255,
            month: 255,
            year: 255,
            century: 255,
        };
        assert!(all.to_seconds() > 0);
    }
}
