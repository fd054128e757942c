//! The wall clock.

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::model::time::Time;

/// A clock before 1970 counts as 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub fn now() -> Time {
    Time::from_unix(since_1970().as_secs())
}

/// Now, with milliseconds, as `2026-03-02T10:30:00.000Z`.
pub fn stamp() -> String {
    let since = since_1970();
    let second = Time::from_unix(since.as_secs()).to_string();
    format!("{}.{:03}Z", second.trim_end_matches('Z'), since.subsec_millis())
}
