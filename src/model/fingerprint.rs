//! Fingerprints of certificates, whole and short.
//!
//! A fingerprint is the SHA-256 of a certificate. Its first 128 bits in base32 are a pin. A pin is short enough for an API
//! key, a verified share code or a link, and long enough that nobody finds a second certificate with the same one (that
//! would take 2^128 key pairs).

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

const PIN_BYTES: usize = 16;
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; PIN_BYTES]);

impl Fingerprint {
    pub fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex_value(pair[0])? << 4 | hex_value(pair[1])?;
        }
        Some(Self(bytes))
    }

    pub fn pin(self) -> Pin {
        let mut short = [0; PIN_BYTES];
        short.copy_from_slice(&self.0[..PIN_BYTES]);
        Pin(short)
    }
}

impl Pin {
    /// Reads 26 base32 characters; case does not matter.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; PIN_BYTES];
        let (mut bits, mut held, mut at) = (0_u32, 0_u32, 0);
        for character in text.bytes() {
            let value = BASE32.iter().position(|b| *b == character.to_ascii_lowercase())?;
            bits = bits << 5 | u32::try_from(value).ok()?;
            held += 5;
            if held >= 8 {
                held -= 8;
                *bytes.get_mut(at)? = u8::try_from(bits >> held & 0xff).ok()?;
                at += 1;
            }
        }
        // 26 characters are 130 bits: the last two must be zero, or two texts would name one pin.
        (at == PIN_BYTES && held == 2 && bits & 0b11 == 0).then_some(Self(bytes))
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("not a fingerprint of 64 hexadecimal digits"))
    }
}

/// Lower-case base32 without padding; also the alphabet of every secret we make.
pub fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(BASE32[(bits >> held & 31) as usize] as char);
        }
    }
    if held > 0 {
        text.push(BASE32[(bits << (5 - held) & 31) as usize] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fingerprint {
        Fingerprint::new(std::array::from_fn(|i| u8::try_from(i * 7 % 256).unwrap()))
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Fingerprint::parse(&sample().to_string()), Some(sample()));
        assert_eq!(Pin::parse(&sample().pin().to_string()), Some(sample().pin()));
        assert_eq!(Pin::parse(&sample().pin().to_string().to_uppercase()), Some(sample().pin()));
        assert_eq!(sample().pin().to_string().len(), 26);
    }

    #[test]
    fn one_pin_has_one_spelling() {
        let text = sample().pin().to_string();
        let readable = BASE32.iter().filter(|last| {
            let other = format!("{}{}", &text[..25], **last as char);
            Pin::parse(&other).is_some()
        });
        assert_eq!(readable.count(), 8);
        for bad in [
            "",
            "a",
            &text[..25],
            &format!("{text}a"),
            &text.replace(&text[..1], "1"),
            "aaaaaaaaaaaaaaaaaaaaaaaaab",
        ] {
            assert_eq!(Pin::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_fingerprint_is_refused() {
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(63), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }
}
