//! A block of IP addresses, such as `10.0.0.0/8`: whom an option means, and what limits count as one caller.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;

use serde::Deserialize;
use serde::Serialize;
use serde::Serializer;

/// The bits before those of an IPv4 address that is mapped into IPv6.
const MAPPED_BITS: u32 = 96;

/// Blocks of IPv4 addresses are kept mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressBlock {
    first: Ipv6Addr,
    bits: u32,
}

impl AddressBlock {
    /// The block around `address` whose addresses share its first `bits` bits.
    pub fn around(address: IpAddr, bits: u32) -> Self {
        let before = if address.to_canonical().is_ipv4() { MAPPED_BITS } else { 0 };
        Self::mapped(address, (before + bits).min(128))
    }

    fn mapped(address: IpAddr, bits: u32) -> Self {
        let address = match address.to_canonical() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        Self { first: Ipv6Addr::from_bits(address.to_bits() & mask), bits }
    }

    /// `10.0.0.0/8`, `2001:db8::/32`; an address alone is a block of one.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "128"));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() && text.contains('/') { 32 } else { 128 };
        let bits = Some(bits).filter(|bits| bits.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
        (bits <= most).then(|| Self::around(address, bits))
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        Self::mapped(address, self.bits) == *self
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        IpAddr::V6(self.first).to_canonical()
    }
}

impl TryFrom<String> for AddressBlock {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("is neither an address nor a block like 10.0.0.0/8")
    }
}

impl fmt::Display for AddressBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first(), self.bits) {
            (first, 128) => write!(f, "{first}"),
            (first @ IpAddr::V4(_), bits) if bits >= MAPPED_BITS => {
                write!(f, "{first}/{}", bits - MAPPED_BITS)
            }
            (_, bits) => write!(f, "{}/{bits}", self.first),
        }
    }
}

impl Serialize for AddressBlock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_contains_what_shares_its_first_bits() {
        for (block, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3/8", "::ffff:10.9.9.9", "::ffff:9.9.9.9"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "127.0.0.1"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
        ] {
            let block = AddressBlock::parse(block).unwrap();
            assert!(block.contains(inside.parse().unwrap()), "{block:?} {inside}");
            assert!(!block.contains(outside.parse().unwrap()), "{block:?} {outside}");
            assert_eq!(AddressBlock::parse(&block.to_string()), Some(block), "{block}");
        }
    }

    #[test]
    fn other_text_is_no_block() {
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0.0/", "10.0.0/8", "host/8", "1.2.3.4/8/8"]
        {
            assert_eq!(AddressBlock::parse(text), None, "{text}");
        }
    }
}
