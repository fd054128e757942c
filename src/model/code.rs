//! Share codes, and the three forms of an invitation: a code, a verified code, a link.

use std::fmt;

use super::fingerprint::Pin;

/// No 0, o, 1, i and l: a code is read out and typed.
const CODE_ALPHABET: &[u8; 31] = b"23456789abcdefghjkmnpqrstuvwxyz";
/// 49 bits: a day of work for a graphics card, for somebody who has the hashes and the key that they were made under.
const CODE_LENGTH: usize = 10;
const CODE_MIN_LENGTH: usize = 6;
const CODE_MAX_LENGTH: usize = 32;
/// 128 bits in base32, as `os::secret::secret` makes them.
const SECRET_LENGTH: usize = 26;

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Code(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCode {
    Length,
    Character,
    Fingerprint,
    Link,
}

impl Code {
    /// Trims and folds case, so that `" ABC123 "` is `abc123`.
    pub fn parse(text: &str) -> Result<Self, BadCode> {
        let text = text.trim();
        if !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            Err(BadCode::Character)
        } else if !(CODE_MIN_LENGTH..=CODE_MAX_LENGTH).contains(&text.len()) {
            Err(BadCode::Length)
        } else {
            Ok(Self(text.to_ascii_lowercase()))
        }
    }

    /// Draws bytes from `random` until there are enough letters. It skips the highest values, which would favour some
    /// letters.
    pub fn make(random: impl FnMut() -> u8) -> Self {
        let fair = u8::MAX - u8::MAX % 31;
        let letters = std::iter::repeat_with(random).filter(|byte| *byte < fair);
        Self(letters.take(CODE_LENGTH).map(|byte| CODE_ALPHABET[usize::from(byte % 31)] as char).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl BadCode {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Length => "a share code has 6 to 32 characters",
            Self::Character => "a share code has only letters and digits",
            Self::Fingerprint => "the part after the - is not a fingerprint",
            Self::Link => "this is not a whole share link",
        }
    }
}

/// Hides the code, so that `{:?}` cannot put it into a log.
impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(…)")
    }
}

/// The argument of `connect join`.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    pub code: Code,
    /// The agent that must be at the other end, whatever the hub says.
    pub agent: Option<Pin>,
    pub link: Option<Link>,
}

/// What a link has in addition to its code, so that it works without an account.
#[derive(Clone, PartialEq, Eq)]
pub struct Link {
    pub hub: String,
    pub secret: String,
    /// `None` for a hub with a public certificate.
    pub hub_pin: Option<Pin>,
}

impl Invitation {
    /// Reads `abc123`, `abc123-FINGERPRINT` or `https://hub:7443/join#CODE.SECRET.HUBPIN.AGENT`.
    pub fn parse(text: &str) -> Result<Self, BadCode> {
        let text = text.trim();
        if text.contains("://") {
            return Self::parse_link(text).ok_or(BadCode::Link);
        }
        let (code, agent) = match text.split_once('-') {
            None => (text, None),
            Some((code, pin)) => (code, Some(Pin::parse(pin).ok_or(BadCode::Fingerprint)?)),
        };
        Ok(Self { code: Code::parse(code)?, agent, link: None })
    }

    fn parse_link(text: &str) -> Option<Self> {
        let (address, fragment) = text.split_once('#')?;
        let hub = address.strip_suffix("/join")?;
        let mut parts = fragment.split('.');
        let (code, secret, hub_pin, agent) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_secret = secret.len() == SECRET_LENGTH && secret.bytes().all(|b| b.is_ascii_alphanumeric());
        if parts.next().is_some() || !is_secret {
            return None;
        }
        let hub_pin = if hub_pin.is_empty() { None } else { Some(Pin::parse(hub_pin)?) };
        let link = Link { hub: hub.to_owned(), secret: secret.to_owned(), hub_pin };
        Some(Self { code: Code::parse(code).ok()?, agent: Some(Pin::parse(agent)?), link: Some(link) })
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agent = self.agent.map(|pin| pin.to_string()).unwrap_or_default();
        match &self.link {
            Some(link) => {
                let pin = link.hub_pin.map(|pin| pin.to_string()).unwrap_or_default();
                write!(f, "{}/join#{}.{}.{pin}.{agent}", link.hub, self.code.0, link.secret)
            }
            None if agent.is_empty() => f.write_str(&self.code.0),
            None => write!(f, "{}-{agent}", self.code.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fingerprint::Fingerprint;

    fn pin(seed: u8) -> Pin {
        Fingerprint::new([seed; 32]).pin()
    }

    #[test]
    fn codes_are_trimmed_and_folded() {
        assert_eq!(Code::parse("  XYZ789\n").unwrap().as_str(), "xyz789");
        for (bad, why) in [
            ("abc", BadCode::Length),
            ("abc 123", BadCode::Character),
            ("", BadCode::Length),
            ("pr_1234", BadCode::Character),
            (&"a".repeat(33), BadCode::Length),
        ] {
            assert_eq!(Code::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn made_codes_use_every_letter_alike() {
        let mut byte = 0_u8;
        let mut counts = [0; 31];
        for _ in 0..31 * 100 {
            let code = Code::make(|| {
                byte = byte.wrapping_add(1);
                byte
            });
            assert_eq!(Code::parse(code.as_str()).as_ref(), Ok(&code));
            for letter in code.as_str().bytes() {
                counts[CODE_ALPHABET.iter().position(|b| *b == letter).unwrap()] += 1;
            }
        }
        assert!(counts.iter().all(|count| (995..=1005).contains(count)), "{counts:?}");
    }

    #[test]
    fn every_invitation_is_read_as_it_was_written() {
        let link =
            Link { hub: "https://hub.example:7443".into(), secret: "a".repeat(26), hub_pin: Some(pin(1)) };
        let public = Link { hub_pin: None, ..link.clone() };
        let code = Code::parse("abc123").unwrap();
        for (agent, link) in
            [(None, None), (Some(pin(2)), None), (Some(pin(2)), Some(link)), (Some(pin(2)), Some(public))]
        {
            let invitation = Invitation { code: code.clone(), agent, link };
            assert!(
                Invitation::parse(&format!(" {invitation}\n")).as_ref() == Ok(&invitation),
                "{invitation}"
            );
        }
    }

    #[test]
    fn a_cut_invitation_is_refused_and_never_taken_for_a_weaker_one() {
        let link = Link { hub: "https://hub.example".into(), secret: "a".repeat(26), hub_pin: Some(pin(1)) };
        let whole =
            Invitation { code: Code::parse("abc123").unwrap(), agent: Some(pin(2)), link: Some(link) }
                .to_string();
        for cut in whole.find("://").unwrap() + 3..whole.len() {
            assert!(Invitation::parse(&whole[..cut]).is_err(), "{}", &whole[..cut]);
        }
        assert!(Invitation::parse("abc123-").is_err());
        assert!(Invitation::parse(&format!("{whole}.x")).is_err());
    }

    #[test]
    fn a_code_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", Code::parse("secret1").unwrap()).contains("secret1"));
    }
}
