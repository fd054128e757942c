//! Which protocol two ends speak, and which of them is to be updated when they do not understand each other.
//!
//! Ends of one major version do, whatever their minor ones: what one of them does not know it ignores. A
//! field whose neglect would widen a right is a new major version.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

/// What this connect speaks.
pub const OURS: Version = Version { major: 1, minor: 0 };
/// The field of a request in which its sender says what it speaks, and of an answer that says in what it is
/// spoken.
pub const FIELD: &str = "x-connect-protocol";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    major: u16,
    minor: u16,
}

/// Who says nothing is a `curl`, which speaks what it is told to.
impl Default for Version {
    fn default() -> Self {
        OURS
    }
}

impl Version {
    /// Reads `1.0`; what a later version adds behind that is not looked at.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.').map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            part[..digits].parse().ok()
        });
        Some(Self { major: parts.next()??, minor: parts.next().unwrap_or(Some(0))? })
    }

    /// From a field that may be missing. One that says nothing we can read is of another protocol.
    pub fn said(text: Option<&str>) -> Self {
        text.map_or(OURS, |text| Self::parse(text).unwrap_or(Self { major: 0, minor: 0 }))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::said(Some(&text)))
    }
}

/// One of two ends, as the one who reads about it knows it.
pub struct End<'e> {
    pub called: &'e str,
    /// Where connect is to be updated, if this end is the older one.
    pub at: &'e str,
    pub speaks: Version,
}

/// What stands between them and what to do about it; `None` when they understand each other.
pub fn objection(one: &End<'_>, other: &End<'_>) -> Option<(String, String)> {
    if one.speaks.major == other.speaks.major {
        return None;
    }
    let older = if one.speaks.major < other.speaks.major { one } else { other };
    Some((
        format!("{} speaks protocol {}, {} speaks {}", one.called, one.speaks, other.called, other.speaks),
        format!("Update connect on {}", older.at),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_what_is_none_is_of_another_protocol() {
        for (text, read) in [
            ("1.0", Some((1, 0))),
            ("2", Some((2, 0))),
            (" 1.17 ", Some((1, 17))),
            ("3.1-beta", Some((3, 1))),
            ("1.2.3", Some((1, 2))),
            ("", None),
            ("+1.0", None),
            ("-1", None),
            ("1.x", None),
            ("99999.0", None),
            ("one", None),
        ] {
            assert_eq!(Version::parse(text).map(|v| (v.major, v.minor)), read, "{text}");
        }
        assert_eq!((Version::said(None), Version::said(Some("?")).major), (OURS, 0));
    }

    #[test]
    fn the_older_end_is_to_be_updated_and_minor_versions_live_together() {
        let end = |called, at, text| End { called, at, speaks: Version::parse(text).unwrap() };
        for (hub, own, update) in [
            ("1.0", "1.9", None),
            ("1.9", "1.0", None),
            ("2.0", "1.9", Some("this machine")),
            ("1.9", "2.0", Some("the hub's machine")),
            ("0.0", "1.0", Some("the hub's machine")),
        ] {
            let (one, other) =
                (end("The hub", "the hub's machine", hub), end("this connect", "this machine", own));
            let expected = update.map(|at| {
                (
                    format!("The hub speaks protocol {hub}, this connect speaks {own}"),
                    format!("Update connect on {at}"),
                )
            });
            assert_eq!(objection(&one, &other), expected);
        }
    }
}
