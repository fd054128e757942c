//! Where a service listens, as its agent connects to it: `5432`, `localhost:3000`, `192.168.1.50:8080`, `[::1]:3000`.

use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use super::host_port::HostPort;
use super::host_port::bracketed;
use super::host_port::is_loopback;
use super::host_port::parse_port;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
}

impl Target {
    /// Reads a port of this machine, or a host and its port.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(port) = parse_port(text) {
            return Some(Self { host: "localhost".to_owned(), port });
        }
        let HostPort { host, port } = HostPort::parse(text, 0).filter(|at| at.port != 0)?;
        Some(Self { host, port })
    }

    /// Whether it is certainly on the agent's own machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
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
            serde::de::Error::custom(format!("`{}` is neither a port nor HOST:PORT", text.escape_debug()))
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
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
