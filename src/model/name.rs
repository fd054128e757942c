//! Names of services: one DNS label, so that every name can stand before `.localhost`.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;

/// The length of a DNS label.
const SERVICE_NAME_LIMIT: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

/// Which names are meant, like `staging-*`: a star stands for any characters, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct NamePattern(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    Empty,
    TooLong,
    BadCharacter,
    EdgeHyphen,
}

impl Name {
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if text.is_empty() {
            Err(BadName::Empty)
        } else if text.len() > SERVICE_NAME_LIMIT {
            Err(BadName::TooLong)
        } else if !text.bytes().all(allowed) {
            Err(BadName::BadCharacter)
        } else if text.starts_with('-') || text.ends_with('-') {
            Err(BadName::EdgeHyphen)
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// The nearest name that would be accepted, for the hint of a refusal.
    pub fn nearest(text: &str) -> Option<Self> {
        let folded: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let cut: String = folded.trim_matches('-').chars().take(SERVICE_NAME_LIMIT).collect();
        Self::parse(cut.trim_matches('-')).ok()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its spelling in environment variables: `staging-db` becomes `STAGING_DB`.
    pub fn for_environment(&self) -> String {
        self.0.to_ascii_uppercase().replace('-', "_")
    }
}

impl NamePattern {
    pub fn matches(&self, name: &Name) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == name.0 };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        let Some(mut left) = name.0.strip_prefix(first) else { return false };
        for part in middle.split('*') {
            let Some(at) = left.find(part) else { return false };
            left = &left[at + part.len()..];
        }
        left.ends_with(last)
    }
}

impl TryFrom<String> for NamePattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match Name::parse(&text.replace('*', "x")) {
            Err(BadName::BadCharacter) => Err("may only have a-z, 0-9, - and *"),
            Err(bad) => Err(bad.reason()),
            Ok(_) => Ok(Self(text)),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl BadName {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Empty => "is empty",
            Self::TooLong => "is longer than 63 characters",
            Self::BadCharacter => "may only have a-z, 0-9 and -",
            Self::EdgeHyphen => "may not begin or end with -",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|bad| serde::de::Error::custom(format!("a name {}", bad.reason())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_in_a_pattern_stands_for_any_characters() {
        for (pattern, fits, fits_not) in [
            ("db", "db", "db2"),
            ("staging-*", "staging-db", "xstaging-db"),
            ("*-db", "staging-db", "staging-db2"),
            ("*", "anything", ""),
            ("a*b*c", "a-b-b-c", "a-c-b"),
            ("ab*ba", "ab-ba", "aba"),
            ("a**c", "abc", "ab"),
        ] {
            let pattern = NamePattern::try_from(pattern.to_owned()).unwrap();
            assert!(pattern.matches(&Name::parse(fits).unwrap()), "{pattern} {fits}");
            assert!(
                Name::parse(fits_not).is_err() || !pattern.matches(&Name(fits_not.into())),
                "{pattern} {fits_not}"
            );
        }
        for bad in ["", "A*", "a.*", "-a", "a b", &"a".repeat(64)] {
            assert!(NamePattern::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["a", "staging-db", "3scale", "x--y", &"n".repeat(63)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("", BadName::Empty),
            ("DB", BadName::BadCharacter),
            ("a.b", BadName::BadCharacter),
            ("a_b", BadName::BadCharacter),
            ("-a", BadName::EdgeHyphen),
            ("a-", BadName::EdgeHyphen),
            ("\u{1b}[31m", BadName::BadCharacter),
            ("é", BadName::BadCharacter),
            (&"n".repeat(64), BadName::TooLong),
        ] {
            assert_eq!(Name::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn a_refused_name_has_a_neighbour_that_is_accepted() {
        assert_eq!(Name::nearest("My DB!").unwrap().as_str(), "my-db");
        assert_eq!(Name::nearest("!!"), None);
        assert_eq!(Name::nearest(&"A".repeat(90)).unwrap().as_str().len(), 63);
    }
}
