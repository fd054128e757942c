//! The protocol versions of two ends, and which end must be updated if they are incompatible.
//!
//! Ends with the same major version are compatible: each ignores what it does not know. A field that must not be ignored,
//! because that would widen a right, needs a new major version.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

/// The version of this program.
pub const OURS: Version = Version { major: 1, minor: 0 };
/// The header field with the sender's version, in requests and in answers.
pub const FIELD: &str = "x-connect-protocol";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    major: u16,
    minor: u16,
}

/// A sender without the field is a tool like `curl`, whose user follows the current version.
impl Default for Version {
    fn default() -> Self {
        OURS
    }
}

impl Version {
    /// Reads `1.0`. Anything that a later version adds after the digits is ignored.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '.').map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            part[..digits].parse().ok()
        });
        Some(Self { major: parts.next()??, minor: parts.next().unwrap_or(Some(0))? })
    }

    /// From a field that may be missing. A field that we cannot read is an incompatible version.
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

/// One of the two ends, in the words of the message to the user.
pub struct End<'e> {
    pub called: &'e str,
    /// Where to update connect if this end is the older one.
    pub at: &'e str,
    pub speaks: Version,
}

/// Why the two ends are incompatible, and what to do about it. `None` if they are compatible.
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
