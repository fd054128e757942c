//! Hub addresses, and which of them are reached through a proxy.

use std::env;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv6Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::Error;
use crate::error::Result;
use crate::http::message::percent_decoded;
use crate::model::target::parse_port;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubUrl {
    pub host: String,
    pub port: u16,
}

impl HubUrl {
    /// Reads `https://host[:port]`; the scheme may be left out, since there is only one.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::misread(text, "is not a hub address").hint("Write it like --hub https://hub.example:7443")
        };
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("http://") {
            return Err(Error::usage("A hub speaks https only").hint(format!("Try: --hub https://{rest}")));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = split_host_port(rest, 443).ok_or_else(bad)?;
        Ok(Self { host, port })
    }

    /// As a Host header has it.
    pub fn authority(&self) -> String {
        if self.port == 443 {
            bracketed(&self.host)
        } else {
            format!("{}:{}", bracketed(&self.host), self.port)
        }
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// Splits `host`, `host:port`, `[v6]` and `[v6]:port`; the host comes back without brackets.
pub fn split_host_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (
                host,
                behind
                    .strip_prefix(':')
                    .map_or(behind.is_empty().then_some(None), |port| Some(Some(port)))?,
            )
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
    if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
        return None;
    }
    let port = port.map_or(Some(default_port), parse_port)?;
    Some((host.to_ascii_lowercase(), port))
}

pub fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// A proxy between this machine and the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyServer {
    pub host: String,
    pub port: u16,
    /// The value of `Proxy-Authorization`, when the address has a user.
    pub authorization: Option<String>,
}

/// What `HTTPS_PROXY` and `NO_PROXY` say about a connection to `host`.
pub fn proxy_for(host: &str, port: u16) -> Result<Option<ProxyServer>> {
    let read =
        |names: [&str; 2]| names.into_iter().find_map(|name| env::var(name).ok().filter(|v| !v.is_empty()));
    let Some(address) = read(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
    let except = read(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    if is_excepted(&except, host, port) {
        return Ok(None);
    }
    parse_proxy(&address).map(Some).ok_or_else(|| {
        Error::new("HTTPS_PROXY is not a proxy address")
            .hint("Write it like HTTPS_PROXY=http://proxy.example:3128")
    })
}

fn parse_proxy(text: &str) -> Option<ProxyServer> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => text,
    };
    let (user, address) = match rest.trim_end_matches('/').rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, rest.trim_end_matches('/')),
    };
    let (host, port) = split_host_port(address, 3128)?;
    let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(percent_decoded(user).0)));
    Some(ProxyServer { host, port, authorization })
}

/// `NO_PROXY` as curl reads it: `*`, names with all their subdomains, addresses, and networks like `10.0.0.0/8`.
fn is_excepted(list: &str, host: &str, port: u16) -> bool {
    let host = host.to_ascii_lowercase();
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        if entry == "*" {
            return true;
        }
        if let Some((network, bits)) = entry.split_once('/') {
            return is_within(&host, network, bits);
        }
        let (name, its_port) = match split_host_port(entry.trim_start_matches(['*', '.']), 0) {
            Some((name, its_port)) => (name, its_port),
            None => (entry, 0),
        };
        let same = host == name || host.strip_suffix(&name).is_some_and(|front| front.ends_with('.'));
        same && (its_port == 0 || its_port == port)
    })
}

fn is_within(host: &str, network: &str, bits: &str) -> bool {
    let (Ok(host), Ok(network), Ok(bits)) =
        (host.parse::<IpAddr>(), network.parse::<IpAddr>(), bits.parse::<u32>())
    else {
        return false;
    };
    match (host, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) if bits <= 32 => {
            (u32::from(a) ^ u32::from(b)).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) if bits <= 128 => {
            (u128::from(a) ^ u128::from(b)).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_addresses_are_read_with_and_without_scheme_and_port() {
        for (text, shown) in [
            ("https://h:7443", "https://h:7443"),
            ("hub.example", "https://hub.example"),
            ("https://[::1]:7443/", "https://[::1]:7443"),
            (" HTTPS.example:443 ", "https://https.example"),
        ] {
            assert_eq!(HubUrl::parse(text).unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "https://",
            "http://h:7443",
            "https://h:0",
            "https://h:+1",
            "https://h:1:2",
            "https://a b",
            "https://h/x",
        ] {
            assert!(HubUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_may_have_a_port_and_a_user() {
        let proxy = parse_proxy("http://me:p%40ss@proxy.example:8080/").unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 8080));
        assert_eq!(proxy.authorization.as_deref(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(parse_proxy("proxy").unwrap().port, 3128);
        assert_eq!(parse_proxy("socks5://proxy"), None);
        let raw = parse_proxy("http://me:100%%40@proxy.example:8080/").unwrap();
        assert_eq!(raw.authorization, Some(format!("Basic {}", STANDARD.encode("me:100%@"))));
    }

    #[test]
    fn exceptions_name_hosts_their_subdomains_and_networks() {
        for (list, host, port, excepted) in [
            ("example.com", "hub.example.com", 443, true),
            (".example.com", "example.com", 443, true),
            ("example.com", "notexample.com", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("0.0.0.0/0", "11.1.2.3", 443, true),
            ("*", "x", 1, true),
            ("a, b", "b", 1, true),
            ("h:7443", "h", 7443, true),
            ("h:7443", "h", 443, false),
        ] {
            assert_eq!(is_excepted(list, host, port), excepted, "{list} {host}");
        }
    }
}
