//! `HOST:PORT` as users and peers write it, for hubs, etcd, forward proxies, targets and addresses to listen on.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;

/// The longest name in DNS.
const HOST_LIMIT: usize = 253;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// In lower case; an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// Reads `host`, `host:port`, `[v6]` and `[v6]:port`. `default_port` is used where no port is written. The text
    /// cannot contain port 0, so with 0 as the default a caller can tell that there was none.
    pub fn parse(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || host.len() > HOST_LIMIT || !host.bytes().all(plain) {
            return None;
        }
        let port = port.map_or(Some(default_port), parse_port)?;
        Some(Self { host: host.to_ascii_lowercase(), port })
    }
}

/// Whether this host is certainly the machine itself.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

/// A host as it is written before a port: an IPv6 address gets brackets.
pub fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// A port in digits only: `parse` alone would take `+5`.
pub fn parse_port(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_with_and_without_a_port() {
        for (text, shown) in [
            ("Hub.example", "hub.example:443"),
            ("hub.example:7443", "hub.example:7443"),
            ("[::1]", "[::1]:443"),
            ("[FE80::1]:65535", "[fe80::1]:65535"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("a_b-c.d", "a_b-c.d:443"),
        ] {
            assert_eq!(HostPort::parse(text, 443).map(|at| at.to_string()).as_deref(), Some(shown), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_host_and_a_port_is_refused() {
        let long = "a".repeat(HOST_LIMIT + 1);
        for bad in [
            "",
            ":",
            ":1",
            "a:",
            "a:0",
            "a:+5",
            "a:-1",
            "a:65536",
            "a:1x",
            "a:b:5",
            "::1",
            "::1:3000",
            "[]",
            "[",
            "[::1",
            "[::1]5",
            "[::1]:",
            "[x]:5",
            "[1.2.3.4]:5",
            "a b:5",
            "a/b:5",
            "\u{1b}:5",
            "é:5",
            &long,
        ] {
            assert_eq!(HostPort::parse(bad, 443), None, "{bad}");
        }
    }
}
