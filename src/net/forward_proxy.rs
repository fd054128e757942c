//! A forward proxy between this machine and a hub: which one the environment names (`HTTPS_PROXY`, `NO_PROXY`), and
//! CONNECT through it.

use std::env;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::connect::dial;
use super::duplex::Duplex;
use super::http_client;
use super::http_client::ClientRequest;
use super::http_stream::HttpStream;
use super::stop::Stop;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::message::percent_decoded;
use crate::model::host_port::HostPort;

const FORWARD_PROXY_PORT: u16 = 3128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardProxy {
    pub at: HostPort,
    /// The value of `Proxy-Authorization`, if the proxy's URL contains a user.
    authorization: Option<String>,
}

/// Connects to `at`, through the proxy that the environment names for it, if any.
pub fn dial_by_environment(at: &HostPort, deadline: Instant, stop: &Stop) -> Result<Duplex> {
    let Some(proxy) = proxy_for(at)? else {
        return Ok(Duplex::plain(dial(&at.host, at.port, deadline, stop)?));
    };
    let dialled = dial(&proxy.at.host, proxy.at.port, deadline, stop);
    let socket = dialled.map_err(|error| {
        error.hint(format!("HTTPS_PROXY names {}; unset it, or add the hub to NO_PROXY", proxy.at))
    })?;
    let _cut = stop.attach(&socket).ok_or_else(Error::stopped)?;
    proxy.connect_to(at, Duplex::plain(Arc::clone(&socket)), deadline)
}

/// The proxy for a connection to `at`, according to `HTTPS_PROXY` and `NO_PROXY`.
pub fn proxy_for(at: &HostPort) -> Result<Option<ForwardProxy>> {
    let read =
        |names: [&str; 2]| names.into_iter().find_map(|name| env::var(name).ok().filter(|v| !v.is_empty()));
    let Some(address) = read(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
    let except = read(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    if is_excepted(&except, &at.host, at.port) {
        return Ok(None);
    }
    parse_proxy(&address).map(Some).ok_or_else(|| {
        Error::new("HTTPS_PROXY is not a proxy address")
            .hint("Write it like HTTPS_PROXY=http://proxy.example:3128")
    })
}

impl ForwardProxy {
    /// Asks the proxy for a tunnel with CONNECT. Bytes after the proxy's answer belong to the tunnel and are read from it
    /// first.
    fn connect_to(&self, at: &HostPort, stream: Duplex, deadline: Instant) -> Result<Duplex> {
        let authority = at.to_string();
        let authorization = self.authorization.as_deref().map(|value| ("Proxy-Authorization", value));
        let request = ClientRequest {
            method: "CONNECT",
            path: &authority,
            host: &authority,
            fields: authorization.as_slice(),
            body: None,
        };
        let mut stream = HttpStream::new(stream);
        let answered = http_client::send_request(&mut stream, &request, deadline);
        let (response, _) = answered.or_say(|| format!("The proxy {} does not answer", self.at))?;
        if !(200..300).contains(&response.status) {
            return Err(Error::new(format!("The proxy {} refused with status {}", self.at, response.status))
                .hint(format!("Allow {authority} on the proxy, or add it to NO_PROXY"))
                .kind(ErrorKind::Unreachable));
        }
        Ok(stream.into_duplex())
    }
}

fn parse_proxy(text: &str) -> Option<ForwardProxy> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => text,
    };
    let (user, address) = match rest.trim_end_matches('/').rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, rest.trim_end_matches('/')),
    };
    let at = HostPort::parse(address, FORWARD_PROXY_PORT)?;
    let authorization = user.map(|user| format!("Basic {}", STANDARD.encode(percent_decoded(user).0)));
    Some(ForwardProxy { at, authorization })
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
        let (name, its_port) = match HostPort::parse(entry.trim_start_matches(['*', '.']), 0) {
            Some(HostPort { host, port }) => (host, port),
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
    // An IPv4 address as the first bits of a number as wide as an IPv6 address.
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let width = if host.is_ipv4() { 32 } else { 128 };
    let differing = (number(host) ^ number(network)).checked_shr(128 - bits.min(128)).unwrap_or(0);
    host.is_ipv4() == network.is_ipv4() && bits <= width && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_may_have_a_port_and_a_user() {
        let proxy = parse_proxy("http://me:p%40ss@proxy.example:8080/").unwrap();
        assert_eq!(proxy.at.to_string(), "proxy.example:8080");
        assert_eq!(proxy.authorization.as_deref(), Some("Basic bWU6cEBzcw=="));
        assert_eq!(parse_proxy("proxy").unwrap().at.port, 3128);
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
