//! Points in time as the state files and the API write them: seconds since 1970, shown as RFC 3339 in UTC.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

const SECONDS_PER_DAY: u64 = 86_400;
/// Year 9999: the last one that RFC 3339 can write. Clamping keeps a damaged record from overflowing.
const LAST_SECOND: u64 = 253_402_300_799;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    pub fn from_unix(seconds: u64) -> Self {
        Self(seconds.min(LAST_SECOND))
    }

    pub fn unix(self) -> u64 {
        self.0
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self::from_unix(self.0.saturating_add(duration.as_secs()))
    }

    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// Reads `2026-03-02T10:30:00Z`, with or without a fraction of a second (which is dropped).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let digits = |from: usize, to: usize| -> Option<u64> {
            let part = bytes.get(from..to)?;
            part.iter().try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u64::from(b - b'0')))
        };
        let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if separators.iter().any(|(at, mark)| bytes.get(*at) != Some(mark)) {
            return None;
        }
        let rest = text.get(19..)?;
        let fraction =
            rest.strip_prefix('.').map_or(rest, |r| r.trim_start_matches(|c: char| c.is_ascii_digit()));
        let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
        let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
        let sane = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        if fraction != "Z" || !sane || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        Some(Self::from_unix(
            days_before(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second,
        ))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.0 / SECONDS_PER_DAY);
        let (hour, minute, second) = (self.0 % SECONDS_PER_DAY / 3600, self.0 % 3600 / 60, self.0 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a time like 2026-03-02T10:30:00Z"))
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the
/// leap day is the last of its year; 719468 is the distance from 0000-03-01 to 1970-01-01.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// The inverse of `days_before`, in the eras of 400 years (146097 days) after which the calendar repeats.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Reads `30d`, `12h`, `90m`, `45s`, `500ms` or plain seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => SECONDS_PER_DAY,
        "w" => 7 * SECONDS_PER_DAY,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// One unit, rounded, as people say it: `22 hours`, `1 minute`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let rounded = |unit: u64| (seconds + unit / 2) / unit;
    let (count, unit) = match seconds {
        172_800.. => (rounded(SECONDS_PER_DAY), "day"),
        3570.. => (rounded(3600), "hour"),
        60.. => (rounded(60), "minute"),
        _ => (seconds, "second"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_three_centuries_is_read_as_it_was_written() {
        for day in (0..110_000).step_by(3) {
            let time = Time::from_unix(day * SECONDS_PER_DAY + 86_399);
            assert_eq!(Time::parse(&time.to_string()), Some(time));
        }
    }

    #[test]
    fn known_dates_are_written_as_the_calendar_has_them() {
        assert_eq!(Time::from_unix(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Time::from_unix(951_827_696).to_string(), "2000-02-29T12:34:56Z");
        assert_eq!(Time::from_unix(1_772_447_400).to_string(), "2026-03-02T10:30:00Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026",
            "2026-03-02",
            "2026-13-02T10:30:00Z",
            "2026-03-02T10:30:00",
            "2026-03-02T10:30:00+01:00",
            "2026-03-02 10:30:00Z",
            "٢٠٢٦-03-02T10:30:00Z",
            "2026-03-02T24:30:00Z",
        ] {
            assert_eq!(Time::parse(text), None, "{text}");
        }
        assert!(Time::parse("2024-01-15T10:30:00.000Z").is_some());
    }

    #[test]
    fn durations_are_read_in_their_units() {
        assert_eq!(parse_duration("30d"), Some(Duration::from_secs(30 * SECONDS_PER_DAY)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("5"), Some(Duration::from_secs(5)));
        for bad in ["", "d", "-5s", "+5s", "5x", "99999999999999999999d", "99999999999999999d", "1.5h"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_duration_is_said_in_one_unit() {
        assert_eq!(in_words(Duration::from_secs(22 * 3600 + 5)), "22 hours");
        assert_eq!(in_words(Duration::from_secs(22 * 3600 - 5)), "22 hours");
        assert_eq!(in_words(Duration::from_secs(3599)), "1 hour");
        assert_eq!(in_words(Duration::from_hours(24)), "24 hours");
        assert_eq!(in_words(Duration::from_secs(61)), "1 minute");
        assert_eq!(in_words(Duration::from_secs(30 * SECONDS_PER_DAY)), "30 days");
    }
}
