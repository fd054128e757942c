//! Where a service listens beside its agent: `5432`, `localhost:3000`, `192.168.1.50:8080`, `[::1]:3000`.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
}

impl Target {
    /// `None` for what is no target. A port without a host is this machine's.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            None => ("localhost", text),
            Some((host, port)) => match host.strip_prefix('[') {
                Some(inner) => {
                    let address = inner.strip_suffix(']')?;
                    address.parse::<std::net::Ipv6Addr>().ok()?;
                    (address, port)
                }
                None => (host, port),
            },
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        let bare_colon = host.contains(':') && host.parse::<std::net::Ipv6Addr>().is_err();
        if host.is_empty() || host.len() > 253 || bare_colon || !host.bytes().all(plain) {
            return None;
        }
        Some(Self { host: host.to_owned(), port: parse_port(port)? })
    }
}

/// A port in digits only: `parse` alone would take `+5`.
pub fn parse_port(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a port like 3000 or an address like 192.168.1.50:8080")]
        enum PortOrText {
            Port(u16),
            Text(String),
        }
        let text = match PortOrText::deserialize(deserializer)? {
            PortOrText::Port(port) => port.to_string(),
            PortOrText::Text(text) => text,
        };
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("`{}` is no port and no HOST:PORT", text.escape_debug()))
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_with_and_without_a_host() {
        for (text, host, port, shown) in [
            ("5432", "localhost", 5432, "localhost:5432"),
            ("192.168.1.50:8080", "192.168.1.50", 8080, "192.168.1.50:8080"),
            ("[::1]:3000", "::1", 3000, "[::1]:3000"),
            ("db.internal:1", "db.internal", 1, "db.internal:1"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host.as_str(), target.port, target.to_string().as_str()), (host, port, shown));
        }
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for bad in [
            "",
            ":",
            "0",
            "70000",
            "+5",
            "-1",
            "5432x",
            "host:",
            ":5432",
            "[::1]",
            "[::1",
            "[x]:5",
            "a b:5",
            "a/b:5",
            "::1:3000x",
            "a:b:5",
            "host:+5",
            "\u{1b}:5",
        ] {
            assert_eq!(Target::parse(bad), None, "{bad}");
        }
    }
}
