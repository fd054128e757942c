//! The host that a request is for: its target and its `Host`, parsed strictly, and what that host is to the proxy.
//!
//! A text that two readers could take for different hosts is refused: user parts, percent signs, zones, empty or signed
//! ports, and numbers that some resolvers take for an address (`127.1`, `0x7f000001`).

use super::bad_message::BadHead;
use super::head::HttpVersion;
use super::head::RequestHead;
use crate::model::route::is_label;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

/// The longest a name can be in the DNS.
const HOST_NAME_LIMIT: usize = 253;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'b> {
    /// As it was sent, with the port. It contains no character that would need quoting.
    pub text: &'b str,
    pub name: HostName<'b>,
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostName<'b> {
    /// As it was sent, without a final dot.
    Dns(&'b str),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// What a host is to the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// `localhost` or a loopback address: the proxy's own page.
    Page,
    /// The first label of a name under `.localhost`, in lower case.
    Service(String),
    /// Not ours (421): somebody's DNS name points to this machine, perhaps on purpose.
    Outside,
}

/// The four forms of a request target (RFC 9112 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestTarget<'b> {
    /// Begins with a slash.
    Path(&'b str),
    /// What follows the host is empty or begins with a slash or a question mark.
    Url { host: Host<'b>, path: &'b str },
    /// Of a CONNECT. It always has a port.
    Authority(Host<'b>),
    /// The `*` of OPTIONS.
    Server,
}

/// The host that a request is for. A host in the target overrides the `Host` field, which must be valid all the same
/// (RFC 9112 3.2.2). `None` only if an HTTP/1.0 request names no host at all.
pub fn host_of<'b>(request: &RequestHead<'b>) -> Result<Option<Host<'b>>, BadHead> {
    let field = request.fields.one("host")?.map(parse_host).transpose()?;
    if field.is_none() && request.version == HttpVersion::Http11 {
        return Err(BadHead::NoHost);
    }
    match parse_target(request.method, request.target)? {
        RequestTarget::Url { host, .. } | RequestTarget::Authority(host) => Ok(Some(host)),
        RequestTarget::Path(_) | RequestTarget::Server => Ok(field),
    }
}

pub fn parse_target<'b>(method: &str, target: &'b str) -> Result<RequestTarget<'b>, BadHead> {
    if method == "CONNECT" {
        let host = parse_host(target.as_bytes()).map_err(|_| BadHead::Target)?;
        return if host.port.is_some() { Ok(RequestTarget::Authority(host)) } else { Err(BadHead::Target) };
    }
    if target.starts_with('/') {
        return Ok(RequestTarget::Path(target));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(RequestTarget::Server);
    }
    let rest = after_scheme(target).ok_or(BadHead::Target)?;
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Ok(RequestTarget::Url { host: parse_host(host.as_bytes()).map_err(|_| BadHead::Target)?, path })
}

/// What follows `http://` or `https://`, without regard to case. Requests for other schemes are not ours.
fn after_scheme(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    known.then_some(rest)
}

pub fn parse_host(text: &[u8]) -> Result<Host<'_>, BadHead> {
    let text = str::from_utf8(text).map_err(|_| BadHead::Host)?;
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(BadHead::Host)?;
        (HostName::V6(address.parse().map_err(|_| BadHead::Host)?), port)
    } else {
        let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
        (parse_name(name)?, port)
    };
    let port = if port.is_empty() { None } else { Some(parse_port(port)?) };
    Ok(Host { text, name, port })
}

fn parse_name(text: &str) -> Result<HostName<'_>, BadHead> {
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > HOST_NAME_LIMIT || !name.split('.').all(is_label) {
        return Err(BadHead::Host);
    }
    if is_number(last_label(name)) {
        // With a final dot, some readers take it for an address and some for a name.
        return text.parse().map(HostName::V4).map_err(|_| BadHead::Host);
    }
    Ok(HostName::Dns(name))
}

/// Some readers take a name with such a last label for an address ("ends in a number" in the URL standard).
fn is_number(label: &str) -> bool {
    match label.as_bytes() {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

/// A colon and one to five digits. Port 0 is refused: nothing can listen on it.
fn parse_port(text: &str) -> Result<u16, BadHead> {
    let digits = text.strip_prefix(':').ok_or(BadHead::Host)?;
    if !(1..=5).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadHead::Host);
    }
    digits.parse().ok().filter(|&port| port != 0).ok_or(BadHead::Host)
}

impl Host<'_> {
    pub fn kind(&self) -> HostKind {
        let name = match self.name {
            HostName::V4(address) if address.is_loopback() => return HostKind::Page,
            HostName::V6(address) if address.is_loopback() => return HostKind::Page,
            HostName::V4(_) | HostName::V6(_) => return HostKind::Outside,
            HostName::Dns(name) => name,
        };
        let service = name.split_once('.').map(|(first, _)| first);
        match service {
            _ if !last_label(name).eq_ignore_ascii_case("localhost") => HostKind::Outside,
            None => HostKind::Page,
            Some(label) => HostKind::Service(label.to_ascii_lowercase()),
        }
    }
}

fn last_label(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::super::head::parse_request;
    use super::*;

    #[test]
    fn names_and_addresses_are_hosts_with_or_without_a_port() {
        let v4 = |a, b, c, d| HostName::V4(Ipv4Addr::new(a, b, c, d));
        let cases = [
            ("localhost", HostName::Dns("localhost"), None),
            ("Api.LocalHost:3456", HostName::Dns("Api.LocalHost"), Some(3456)),
            ("my_api-2.localhost.:1", HostName::Dns("my_api-2.localhost"), Some(1)),
            ("xn--bcher-kva.localhost", HostName::Dns("xn--bcher-kva.localhost"), None),
            ("127.0.0.1:00080", v4(127, 0, 0, 1), Some(80)),
            ("1.2.3.4.com", HostName::Dns("1.2.3.4.com"), None),
            ("0xa.0xg", HostName::Dns("0xa.0xg"), None),
            ("[::1]:65535", HostName::V6(Ipv6Addr::LOCALHOST), Some(65535)),
            ("[0:0::0001]", HostName::V6(Ipv6Addr::LOCALHOST), None),
        ];
        for (text, name, port) in cases {
            assert_eq!(parse_host(text.as_bytes()), Ok(Host { text, name, port }));
        }
    }

    #[test]
    fn what_two_readers_could_take_for_different_hosts_is_refused() {
        let label = "a".repeat(64);
        let name = "a.".repeat(127) + "a";
        let cases = [
            "",
            ".",
            "..",
            ".a",
            "a..b",
            "a..",
            " a",
            "a b",
            "a,b",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a@b",
            "user:1@a",
            "a%2eb",
            "a:",
            "a:+1",
            "a:0x1",
            "a:-1",
            "a: 1",
            "a:1:2",
            "a:65536",
            "a:000080",
            "a:0",
            ":80",
            "*",
            "a*",
            "127.1",
            "127.0.0.1.",
            "127.0.0.01",
            "127.0.0.256",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "0x",
            "1.2.3.4.5",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:",
            "[::1%lo]",
            "[127.0.0.1]",
            "[]",
            "[v1.a]",
            "a[::1]",
            "\u{e4}",
            "a\0",
            "a\tb",
            &label,
            &name,
        ];
        for text in cases {
            assert_eq!(parse_host(text.as_bytes()), Err(BadHead::Host), "{text:?}");
        }
        assert_eq!(parse_host(b"\xff"), Err(BadHead::Host));
        assert!(parse_host(&label.as_bytes()[1..]).is_ok() && parse_host(&name.as_bytes()[2..]).is_ok());
    }

    #[test]
    fn the_first_label_under_localhost_is_the_service() {
        let service = |name: &'static str| HostKind::Service(name.to_owned());
        let cases = [
            ("localhost", HostKind::Page),
            ("LOCALHOST.:3456", HostKind::Page),
            ("127.0.0.1:3456", HostKind::Page),
            ("127.9.9.9", HostKind::Page),
            ("[::1]", HostKind::Page),
            ("api.localhost", service("api")),
            ("API.Localhost.", service("api")),
            ("a.b.localhost:80", service("a")),
            ("localhost.localhost", service("localhost")),
            ("example.com", HostKind::Outside),
            ("api.localhost.example.com", HostKind::Outside),
            ("api.notlocalhost", HostKind::Outside),
            ("notlocalhost", HostKind::Outside),
            ("localhost.localdomain", HostKind::Outside),
            ("10.0.0.1", HostKind::Outside),
            ("0.0.0.0", HostKind::Outside),
            ("[::]", HostKind::Outside),
            ("[::ffff:127.0.0.1]", HostKind::Outside),
        ];
        for (text, place) in cases {
            assert_eq!(parse_host(text.as_bytes()).map(|host| host.kind()), Ok(place), "{text}");
        }
    }

    #[test]
    fn the_target_overrides_the_field_and_both_must_be_valid() {
        let of = |line: &str, fields: &str| {
            let text = format!("{line}\r\n{fields}\r\n");
            let request = parse_request(text.as_bytes()).expect("valid").expect("complete");
            host_of(&request).map(|host| host.map(|host| host.text.to_owned()))
        };
        let host = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(of("GET / HTTP/1.1", "Host: a\r\n"), host("a"));
        assert_eq!(of("GET http://b:1/ HTTP/1.1", "Host: a\r\n"), host("b:1"));
        assert_eq!(of("CONNECT b:1 HTTP/1.1", "Host: a\r\n"), host("b:1"));
        assert_eq!(of("OPTIONS * HTTP/1.1", "Host: a\r\n"), host("a"));
        assert_eq!(of("GET / HTTP/1.0", ""), Ok(None));
        assert_eq!(of("GET / HTTP/1.0", "Host: a\r\n"), host("a"));
        assert_eq!(of("GET http://b/ HTTP/1.0", ""), host("b"));
        assert_eq!(of("GET / HTTP/1.1", ""), Err(BadHead::NoHost));
        assert_eq!(of("GET http://b/ HTTP/1.1", ""), Err(BadHead::NoHost));
        assert_eq!(of("GET / HTTP/1.1", "Host: a\r\nHost: a\r\n"), Err(BadHead::Repeated));
        assert_eq!(of("GET / HTTP/1.0", "Host: a\r\nHost: b\r\n"), Err(BadHead::Repeated));
        assert_eq!(of("GET / HTTP/1.1", "Host:\r\n"), Err(BadHead::Host));
        assert_eq!(of("GET http://b/ HTTP/1.1", "Host: a b\r\n"), Err(BadHead::Host));
        assert_eq!(of("GET b HTTP/1.1", "Host: a\r\n"), Err(BadHead::Target));
    }

    #[test]
    fn targets_of_no_known_form_are_refused() {
        let cases = [
            ("GET", "*"),
            ("GET", "a"),
            ("GET", "a:80"),
            ("OPTIONS", "**"),
            ("GET", "ftp://a/"),
            ("GET", "http:/a/"),
            ("GET", "http:///a"),
            ("GET", "http://user@a/"),
            ("GET", "http://a:x/"),
            ("GET", "http://?a"),
            ("GET", "://a"),
            ("CONNECT", "a"),
            ("CONNECT", "/"),
            ("CONNECT", "http://a:80/"),
            ("CONNECT", "a:80/"),
            ("CONNECT", "*"),
        ];
        for (method, target) in cases {
            assert_eq!(parse_target(method, target), Err(BadHead::Target), "{method} {target}");
        }
    }
}
