//! The wall clock.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::model::time::Time;

/// A clock before 1970 counts as 1970.
pub fn now() -> Time {
    Time::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}
