//! Points in time as the state files and the API write them: seconds since 1970, shown as RFC 3339 in UTC.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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

    /// `in 3 h`, `2 days ago`: what is left is rounded down, what is past to the nearest unit.
    pub fn relative(self, now: Self) -> String {
        let seconds = self.0.abs_diff(now.0);
        let (unit, name) = match seconds {
            0..60 => (1, "s"),
            60..3600 => (60, "min"),
            3600..172_800 => (3600, "h"),
            _ => (SECONDS_PER_DAY, "days"),
        };
        let added = if self > now { A_MOMENT.min(unit - 1) } else { unit / 2 };
        let count = (seconds + added) / unit;
        if self > now { format!("in {count} {name}") } else { format!("{count} {name} ago") }
    }

    /// Reads `2026-03-02T10:30:00Z`, with or without a fraction of a second (which is dropped). RFC 3339 also
    /// allows offsets from UTC and lower-case letters, which none of our programs writes.
    pub fn parse(text: &str) -> Option<Self> {
        if text.as_bytes().get(10) != Some(&b'T') || !text.ends_with('Z') {
            return None;
        }
        let seconds = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp();
        u64::try_from(seconds).ok().map(Self::from_unix)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(self.0);
        f.write_str(&at.format(&Rfc3339).map_err(|_| fmt::Error)?)
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

/// So that a share of 90 minutes has `1 hour 30 minutes` when a teammate reads it seconds later.
const A_MOMENT: u64 = 10;

/// The duration in two units, rounded down: `22 hours`, `1 hour 30 minutes`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let seconds = if seconds < 3600 { seconds } else { seconds + A_MOMENT };
    let (large, small) = match seconds {
        172_800.. => ((SECONDS_PER_DAY, "day"), (3600, "hour")),
        3600.. => ((3600, "hour"), (60, "minute")),
        _ => ((60, "minute"), (1, "second")),
    };
    let seconds = seconds - seconds % small.0;
    let counted = |seconds: u64, (unit, name): (u64, &str)| match seconds / unit {
        0 => String::new(),
        1 => format!("1 {name}"),
        count => format!("{count} {name}s"),
    };
    let words = [counted(seconds, large), counted(seconds % large.0, small)].join(" ");
    if seconds == 0 { "0 seconds".to_owned() } else { words.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_lists_are_near_or_far() {
        let now = Time::from_unix(1_000_000);
        for (seconds, shown) in [
            (5, "in 5 s"),
            (10_799, "in 3 h"),
            (6000, "in 1 h"),
            (86_399, "in 24 h"),
            (30 * 86_400, "in 30 days"),
        ] {
            assert_eq!(Time::from_unix(1_000_000 + seconds).relative(now), shown);
        }
        assert_eq!(Time::from_unix(1_000_000 - 172_900).relative(now), "2 days ago");
        assert_eq!(now.relative(now), "0 s ago");
    }

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
    fn what_is_not_a_time_is_refused() {
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
            "2026-02-30T10:30:00Z",
            "2026-03-02t10:30:00Z",
            "2026-03-02T10:30:00z",
            "1969-12-31T23:59:59Z",
            "2026-03-02T10:30:00.Z",
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
    fn a_duration_is_said_in_two_units_and_never_longer_than_it_is() {
        assert_eq!(in_words(Duration::from_hours(22)), "22 hours");
        assert_eq!(in_words(Duration::from_secs(22 * 3600 - 5)), "22 hours");
        assert_eq!(in_words(Duration::from_mins(22 * 60 - 1)), "21 hours 59 minutes");
        assert_eq!(in_words(Duration::from_mins(90)), "1 hour 30 minutes");
        assert_eq!(in_words(Duration::from_secs(90 * 60 - 11)), "1 hour 29 minutes");
        assert_eq!(in_words(Duration::from_secs(30 * SECONDS_PER_DAY - 60)), "29 days 23 hours");
        assert_eq!(in_words(Duration::from_secs(3599)), "59 minutes 59 seconds");
        assert_eq!(in_words(Duration::from_hours(24)), "24 hours");
        assert_eq!(in_words(Duration::from_secs(61)), "1 minute 1 second");
        assert_eq!(in_words(Duration::ZERO), "0 seconds");
        assert_eq!(in_words(Duration::from_secs(30 * SECONDS_PER_DAY)), "30 days");
    }
}
