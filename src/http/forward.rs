//! The heads of forwarded messages. Each is written from the parsed head, never copied.
//!
//! Fields about one connection are dropped (RFC 9110 7.6.1), a client's claims about itself are replaced by what we know,
//! and the framing fields say what our own `BodyWalker` has read. Everything is appended to a `Vec`, which cannot fail.

use super::bad_message::BadHead;
use super::body::Body;
use super::head::Fields;
use super::head::HttpVersion;
use super::head::RequestHead;
use super::head::ResponseHead;
use super::host::RequestTarget;
use super::host::parse_target;
use std::io::Write;
use std::net::IpAddr;

/// What the next hop learns about the client. It is the same for all requests of a connection, so it is formatted once.
pub struct ClientInfo {
    /// The client speaks TLS with us.
    pub https: bool,
    claims: String,
    via: String,
}

impl ClientInfo {
    /// `via` is our name in `Via`. No other proxy has it, so finding it in a request means a loop.
    pub fn new(client: IpAddr, https: bool, via: &str) -> ClientInfo {
        let client = client.to_canonical();
        let scheme = if https { "https" } else { "http" };
        let (open, close) = if client.is_ipv6() { ("\"[", "]\"") } else { ("", "") };
        let claims = format!(
            "X-Forwarded-For: {client}\r\nX-Forwarded-Proto: {scheme}\r\n\
             Forwarded: for={open}{client}{close};proto={scheme};host="
        );
        ClientInfo { https, claims, via: via.to_owned() }
    }
}

/// How a request is forwarded.
pub struct RequestForwarding<'a> {
    pub client: &'a ClientInfo,
    pub body: Body,
    /// The text of the host that the request is for.
    pub host: &'a str,
    /// The host for a service that accepts only its own. `None`: the service gets the host that the client sent.
    pub rewrite_host: Option<&'a str>,
}

/// Whether a request has been through the proxy of that name already.
pub fn has_passed(request: &RequestHead<'_>, via: &str) -> bool {
    request.fields.list("via").filter_map(name_in_via).any(|name| name.eq_ignore_ascii_case(via.as_bytes()))
}

/// The name in one entry of `Via`: a protocol, a name and perhaps a comment.
fn name_in_via(entry: &[u8]) -> Option<&[u8]> {
    entry.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(1)
}

/// Whether a client asks to leave HTTP for another protocol. An upgrade to HTTP/2 is ignored: requests inside it would
/// not be checked, and a client whose upgrade is ignored continues with HTTP/1.1.
pub fn is_upgrade(request: &RequestHead<'_>) -> bool {
    let mut protocols = request.fields.list("upgrade").peekable();
    request.version == HttpVersion::Http11
        && protocols.peek().is_some()
        && request.fields.has_token("connection", "upgrade")
        && !protocols.any(|protocol| protocol.eq_ignore_ascii_case(b"h2c"))
}

/// Whether a client logs in for the whole connection and not for one request: with NTLM, or with Negotiate where that
/// is NTLM.
pub fn is_connection_login(request: &RequestHead<'_>) -> bool {
    let of_connection =
        |scheme: &[u8]| scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate");
    let mut proofs = request.fields.all("authorization");
    proofs.any(|proof| proof.split(u8::is_ascii_whitespace).next().is_some_and(of_connection))
}

/// Appends the head that goes to the service. Nothing is appended on an error.
pub fn write_request(
    request: &RequestHead<'_>,
    forwarding: &RequestForwarding<'_>,
    out: &mut Vec<u8>,
) -> Result<(), BadHead> {
    write_request_line(request.method, parse_target(request.method, request.target)?, out);
    line(out, "Host", forwarding.rewrite_host.unwrap_or(forwarding.host));

    let named = named_in_connection(&request.fields);
    // RFC 9110 10.1.1: an HTTP/1.0 client does not know 100, so the service must not be asked for one.
    let expects = |name: &str| request.version == HttpVersion::Http10 && name.eq_ignore_ascii_case("expect");
    for (name, value) in request.fields.iter() {
        if !concerns_one_hop(name) && !is_claim(name) && !is_named(&named, name) && !expects(name) {
            line(out, name, value);
        }
    }
    if is_upgrade(request) {
        write_upgrade(&request.fields, out);
        out.extend_from_slice(b"Connection: Upgrade\r\n");
    } else if request.fields.has_token("te", "trailers") {
        out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
    }
    write_framing(forwarding.body, out);
    write_our_claims(request.version, forwarding, out);
    Ok(())
}

fn write_request_line(method: &str, target: RequestTarget<'_>, out: &mut Vec<u8>) {
    let (slash, path) = match target {
        RequestTarget::Path(path) => ("", path),
        // RFC 9112 3.2.4: this is how `OPTIONS *` reaches a proxy.
        RequestTarget::Url { path: "", .. } if method == "OPTIONS" => ("", "*"),
        RequestTarget::Url { path, .. } => (if path.starts_with('/') { "" } else { "/" }, path),
        RequestTarget::Authority(host) => ("", host.text),
        RequestTarget::Server => ("", "*"),
    };
    for part in [method, " ", slash, path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Appends the fields that are ours, and the empty line after them.
fn write_our_claims(version: HttpVersion, forwarding: &RequestForwarding<'_>, out: &mut Vec<u8>) {
    let via = if version == HttpVersion::Http10 { "\r\nVia: 1.0 " } else { "\r\nVia: 1.1 " };
    let ClientInfo { claims, via: name, .. } = forwarding.client;
    for part in
        [claims, "\"", forwarding.host, "\"\r\nX-Forwarded-Host: ", forwarding.host, via, name, "\r\n\r\n"]
    {
        out.extend_from_slice(part.as_bytes());
    }
}

/// The framing towards the client of a body that was read with the framing `body`. With `UntilClose` the connection must
/// close.
pub fn body_for(client: HttpVersion, body: Body) -> Body {
    match (client, body) {
        (HttpVersion::Http10, Body::Chunked) => Body::UntilClose,
        // Chunks keep the client's connection usable, and show the client when the service fails in the middle.
        (HttpVersion::Http11, Body::UntilClose) => Body::Chunked,
        (_, body) => body,
    }
}

/// How a response is forwarded to the client.
pub struct ResponseForwarding {
    pub client: HttpVersion,
    /// The framing towards the client, from `body_for`.
    pub body: Body,
    pub keep_alive: bool,
}

/// Appends the head that goes to the client. An HTTP/1.0 client must not be sent a 1xx at all.
pub fn write_response(response: &ResponseHead<'_>, forwarding: &ResponseForwarding, out: &mut Vec<u8>) {
    let _ = write!(out, "HTTP/1.1 {} ", response.status);
    out.extend_from_slice(response.reason);
    out.extend_from_slice(b"\r\n");

    let named = named_in_connection(&response.fields);
    for (name, value) in response.fields.iter() {
        if !concerns_one_hop(name) && !is_named(&named, name) {
            line(out, name, value);
        }
    }
    match (response.status, forwarding.body) {
        (100..=199 | 204, _) => {}
        // In the response to a HEAD and in a 304, the length is that of another response's body.
        (_, Body::None) => {
            for length in response.fields.all("content-length") {
                line(out, "Content-Length", length);
            }
        }
        (_, body) => write_framing(body, out),
    }
    if matches!(response.status, 101 | 426) {
        write_upgrade(&response.fields, out);
    }
    out.extend_from_slice(connection_line(response.status, forwarding));
}

/// The `Connection` field, and the empty line that ends the head.
fn connection_line(status: u16, forwarding: &ResponseForwarding) -> &'static [u8] {
    let stays = forwarding.keep_alive && forwarding.body != Body::UntilClose;
    match (status, stays, forwarding.client) {
        (101, ..) | (426, true, _) => b"Connection: Upgrade\r\n\r\n",
        (426, false, _) => b"Connection: Upgrade, close\r\n\r\n",
        (100..=199, ..) | (_, true, HttpVersion::Http11) => b"\r\n",
        (_, true, HttpVersion::Http10) => b"Connection: keep-alive\r\n\r\n",
        (_, false, _) => b"Connection: close\r\n\r\n",
    }
}

/// Appends the end of a chunked body. Trailers about framing, routing or authentication are dropped, since they must not
/// come after the body (RFC 9110 6.5.1).
pub fn write_last_chunk(trailers: &Fields<'_>, out: &mut Vec<u8>) {
    const NOT_BEHIND: [&str; 8] = [
        "authorization",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "set-cookie",
        "trailer",
        "via",
    ];
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter() {
        if !concerns_one_hop(name) && !is_claim(name) && !NOT_BEHIND.iter().any(|other| is_same(name, other))
        {
            line(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn write_framing(body: Body, out: &mut Vec<u8>) {
    match body {
        Body::Length(length) => {
            let _ = write!(out, "Content-Length: {length}\r\n");
        }
        Body::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Body::None | Body::UntilClose => {}
    }
}

fn write_upgrade(fields: &Fields<'_>, out: &mut Vec<u8>) {
    for protocols in fields.all("upgrade") {
        line(out, "Upgrade", protocols);
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: impl AsRef<[u8]>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_ref());
    out.extend_from_slice(b"\r\n");
}

/// Fields about the connection or the framing; the next connection gets its own.
fn concerns_one_hop(name: &str) -> bool {
    const ONE_HOP: [&str; 11] = [
        "te",
        "upgrade",
        "connection",
        "keep-alive",
        "content-length",
        "http2-settings",
        "proxy-connection",
        "transfer-encoding",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
    ];
    ONE_HOP.iter().any(|other| is_same(name, other))
}

/// Fields in which a request says who sent it and for which host. We write our own.
fn is_claim(name: &str) -> bool {
    const PREFIX: &str = "x-forwarded-";
    let prefix = name.get(..PREFIX.len()).is_some_and(|start| is_same(start, PREFIX));
    prefix || ["host", "forwarded", "x-real-ip"].iter().any(|other| is_same(name, other))
}

/// Compares names without regard to case, and takes `_` for `-`: services on CGI, WSGI or Rack cannot tell them apart.
fn is_same(name: &str, other: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == other.len() && name.bytes().map(fold).eq(other.bytes())
}

/// The other fields that the sender has listed in `Connection`, so that they are not forwarded. Nearly always none.
fn named_in_connection<'b>(fields: &Fields<'b>) -> Vec<&'b [u8]> {
    let known =
        |name: &[u8]| str::from_utf8(name).is_ok_and(|name| name == "close" || concerns_one_hop(name));
    fields.list("connection").filter(|name| !known(name)).collect()
}

/// Whether `Connection` lists the field. `Via` does not count: without it, loops would not be detected.
fn is_named(named: &[&[u8]], name: &str) -> bool {
    let named = named.iter().any(|other| other.eq_ignore_ascii_case(name.as_bytes()));
    named && !name.eq_ignore_ascii_case("via")
}

#[cfg(test)]
mod tests {
    use super::super::body::request_body;
    use super::super::body::response_body;
    use super::super::head::parse_request;
    use super::super::head::parse_response;
    use super::super::head::parse_trailers;
    use super::super::host::host_of;
    use super::*;
    use std::net::Ipv4Addr;

    const CLAIMS: &str = "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\
        Forwarded: for=127.0.0.1;proto=http;host=\"a.localhost:3456\"\r\n\
        X-Forwarded-Host: a.localhost:3456\r\nVia: 1.1 connect-x\r\n\r\n";

    fn forwarded_from(
        client: &ClientInfo,
        text: &str,
        rewrite_host: Option<&str>,
    ) -> Result<String, BadHead> {
        let request = parse_request(text.as_bytes()).expect("valid").expect("complete");
        let host = host_of(&request)?.ok_or(BadHead::NoHost)?.text;
        let body = request_body(&request)?;
        let mut out = b"before".to_vec();
        write_request(&request, &RequestForwarding { client, body, host, rewrite_host }, &mut out)?;
        Ok(String::from_utf8(out).expect("text").strip_prefix("before").expect("appended").to_owned())
    }

    fn onward(text: &str) -> Result<String, BadHead> {
        forwarded_from(&ClientInfo::new(Ipv4Addr::LOCALHOST.into(), false, "connect-x"), text, None)
    }

    /// What is forwarded of a request with these fields after its Host, without the lines that every request has.
    fn fields_onward(fields: &str) -> String {
        let text = format!("GET /a HTTP/1.1\r\nHost: a.localhost:3456\r\n{fields}\r\n");
        let out = onward(&text).expect("sound");
        let out =
            out.strip_prefix("GET /a HTTP/1.1\r\nHost: a.localhost:3456\r\n").expect("the Host comes first");
        out.strip_suffix(CLAIMS).expect("what we say comes last").to_owned()
    }

    fn homeward(method: &str, text: &str, client: HttpVersion, keep_alive: bool) -> String {
        let response = parse_response(text.as_bytes()).expect("valid").expect("complete");
        let body = body_for(client, response_body(method, &response).expect("framed"));
        let mut out = b"before".to_vec();
        write_response(&response, &ResponseForwarding { client, body, keep_alive }, &mut out);
        String::from_utf8(out).expect("text").strip_prefix("before").expect("appended").to_owned()
    }

    #[test]
    fn a_plain_request_goes_on_as_it_came() {
        assert_eq!(
            fields_onward("Accept: */*\r\ncookie: a=b\r\nCookie: c\r\n"),
            "Accept: */*\r\ncookie: a=b\r\nCookie: c\r\n"
        );
    }

    #[test]
    fn what_concerns_one_connection_stays_behind() {
        let hop = "Connection: Keep-Alive, x-Secret\r\nKeep-Alive: 5\r\nX-Secret: 1\r\nProxy-Connection: a\r\n\
            Proxy-Authorization: b\r\nTE: gzip\r\nUpgrade: websocket\r\nconnection: other\r\nOTHER: 2\r\n\
            Content_Length: 7\r\nTransfer_Encoding: chunked\r\n";
        assert_eq!(fields_onward(hop), "");
        assert_eq!(fields_onward("Connection: via, host\r\nVia: 1.0 other\r\n"), "Via: 1.0 other\r\n");
    }

    #[test]
    fn what_a_client_claims_about_itself_is_replaced() {
        let claims = "X-Forwarded-For: 1.2.3.4\r\nx-forwarded-host: evil\r\nX-Forwarded-Proto: https\r\n\
            X-Forwarded-Port: 1\r\nX_Forwarded_For: 1\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1\r\n";
        assert_eq!(fields_onward(claims), "");
        let mapped = ClientInfo::new("::ffff:10.0.0.1".parse().expect("address"), true, "v");
        let out = forwarded_from(&mapped, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", None).expect("sound");
        assert!(out.contains("\r\nForwarded: for=10.0.0.1;proto=https;host=\"a\"\r\n"), "{out}");
        let six = ClientInfo::new("::1".parse().expect("address"), false, "v");
        let out = forwarded_from(&six, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", None).expect("sound");
        assert!(out.contains("\r\nX-Forwarded-For: ::1\r\n"), "{out}");
        assert!(out.contains("\r\nForwarded: for=\"[::1]\";proto=http;host=\"a\"\r\n"), "{out}");
    }

    #[test]
    fn the_framing_is_written_anew() {
        assert_eq!(fields_onward("Content-Length: 007\r\n"), "Content-Length: 7\r\n");
        assert_eq!(
            fields_onward("Transfer-Encoding: CHUNKED\r\nA: b\r\n"),
            "A: b\r\nTransfer-Encoding: chunked\r\n"
        );
        assert_eq!(
            fields_onward("Connection: content-length\r\nContent-Length: 7\r\n"),
            "Content-Length: 7\r\n"
        );
    }

    #[test]
    fn an_upgrade_goes_on_and_one_to_http_2_does_not() {
        let websocket = "Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\nUpgrade: websocket\r\n";
        assert_eq!(
            fields_onward(websocket),
            "Sec-WebSocket-Key: k\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        );
        assert_eq!(
            fields_onward("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n"),
            ""
        );
        assert_eq!(fields_onward("Connection: Upgrade\r\n"), "");
        let old = onward("GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: b\r\n\r\n");
        assert!(!old.expect("sound").contains("Upgrade"));
    }

    #[test]
    fn trailers_are_asked_for_and_expectations_passed_on() {
        assert_eq!(
            fields_onward("TE: trailers, gzip;q=0.5\r\nConnection: TE\r\n"),
            "TE: trailers\r\nConnection: TE\r\n"
        );
        assert_eq!(fields_onward("Expect: 100-continue\r\n"), "Expect: 100-continue\r\n");
        let old = onward("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n").expect("sound");
        assert!(!old.contains("Expect") && old.contains("Via: 1.0 connect-x\r\n"), "{old}");
    }

    #[test]
    fn every_form_of_target_becomes_what_a_service_expects() {
        let cases = [
            ("GET /a//b?c", "GET /a//b?c", "h"),
            ("GET http://A.localhost:80", "GET /", "A.localhost:80"),
            ("GET https://a.localhost?b", "GET /?b", "a.localhost"),
            ("GET HTTP://a.localhost/b?c", "GET /b?c", "a.localhost"),
            ("OPTIONS *", "OPTIONS *", "h"),
            ("OPTIONS http://a.localhost", "OPTIONS *", "a.localhost"),
            ("OPTIONS http://a.localhost/", "OPTIONS /", "a.localhost"),
        ];
        for (line, wanted, host) in cases {
            let out = onward(&format!("{line} HTTP/1.1\r\nHost: h\r\n\r\n")).expect("sound");
            assert!(out.starts_with(&format!("{wanted} HTTP/1.1\r\nHost: {host}\r\n")), "{out}");
            assert!(out.contains(&format!("\r\nX-Forwarded-Host: {host}\r\n")), "{out}");
        }
        assert_eq!(onward("GET * HTTP/1.1\r\nHost: h\r\n\r\n"), Err(BadHead::Target));
        assert_eq!(onward("GET / HTTP/1.0\r\n\r\n"), Err(BadHead::NoHost));
    }

    #[test]
    fn a_rewritten_host_leaves_the_true_one_in_the_claims() {
        let client = ClientInfo::new(Ipv4Addr::LOCALHOST.into(), false, "connect-x");
        let text = "GET / HTTP/1.1\r\nHost: a.localhost:3456\r\n\r\n";
        let out = forwarded_from(&client, text, Some("127.0.0.1:8080")).expect("sound");
        assert_eq!(out, format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n{CLAIMS}"));
    }

    #[test]
    fn a_request_that_has_passed_is_known_by_its_via() {
        let been = |via: &str| {
            let text = format!("GET / HTTP/1.1\r\n{via}\r\n");
            has_passed(&parse_request(text.as_bytes()).expect("valid").expect("complete"), "connect-x")
        };
        assert!(been("Via: 1.1 connect-x\r\n"));
        assert!(been("Via: 1.0 fred, 1.1 Connect-X (comment)\r\n"));
        assert!(been("Via: 1.0 fred\r\nvia: HTTP/1.1 connect-x\r\n"));
        assert!(been("Via: 1.1 \t connect-x\r\n"));
        assert!(!been("Via: 1.1 connect-xy, 1.1 connect\r\n"));
        assert!(!been(""));
    }

    #[test]
    fn an_answer_goes_home_without_what_was_between_us_and_the_service() {
        let text = "HTTP/1.0 200 Fine\r\nServer: a\r\nConnection: x-internal, close\r\nX-Internal: 1\r\n\
            Keep-Alive: 5\r\nUpgrade: h2\r\nSet-Cookie: b\r\nSet-Cookie: c\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(
            homeward("GET", text, HttpVersion::Http11, true),
            "HTTP/1.1 200 Fine\r\nServer: a\r\nSet-Cookie: b\r\nSet-Cookie: c\r\nContent-Length: 3\r\n\r\n"
        );
    }

    #[test]
    fn every_client_gets_a_framing_and_a_connection_it_understands() {
        use HttpVersion::{Http10, Http11};
        let (length, chunked) = ("Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n");
        let (close, keep) = ("Connection: close\r\n", "Connection: keep-alive\r\n");
        let cases = [
            ("GET", "200", length, Http11, true, [length, ""]),
            ("GET", "200", length, Http11, false, [length, close]),
            ("GET", "200", length, Http10, true, [length, keep]),
            ("GET", "200", length, Http10, false, [length, close]),
            ("GET", "200", chunked, Http11, true, [chunked, ""]),
            ("GET", "200", chunked, Http10, true, [close, ""]),
            ("GET", "200", "", Http11, true, [chunked, ""]),
            ("GET", "200", "", Http10, true, [close, ""]),
            ("HEAD", "200", length, Http11, true, [length, ""]),
            ("HEAD", "200", chunked, Http11, true, ["", ""]),
            ("GET", "304", length, Http10, true, [length, keep]),
            ("GET", "204", length, Http11, true, ["", ""]),
            ("GET", "204", "", Http11, false, [close, ""]),
            ("GET", "100", "", Http11, false, ["", ""]),
            ("GET", "103", "Link: a\r\n", Http11, false, ["Link: a\r\n", ""]),
        ];
        for (method, status, fields, client, keep_alive, wanted) in cases {
            let wanted = wanted.concat();
            let out = homeward(method, &format!("HTTP/1.1 {status} \r\n{fields}\r\n"), client, keep_alive);
            assert_eq!(out, format!("HTTP/1.1 {status} \r\n{wanted}\r\n"), "{method} {fields} {client:?}");
        }
    }

    #[test]
    fn an_upgrade_is_granted_or_demanded_aloud() {
        let text = "HTTP/1.1 101 \r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(
            homeward("GET", text, HttpVersion::Http11, true),
            "HTTP/1.1 101 \r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        );
        let text = "HTTP/1.1 426 \r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n";
        let out = "HTTP/1.1 426 \r\nContent-Length: 0\r\nUpgrade: websocket\r\nConnection: Upgrade";
        assert_eq!(homeward("GET", text, HttpVersion::Http11, true), format!("{out}\r\n\r\n"));
        assert_eq!(homeward("GET", text, HttpVersion::Http11, false), format!("{out}, close\r\n\r\n"));
    }

    #[test]
    fn trailers_stay_unless_they_would_change_the_message() {
        let text = b"X-Sum: 1\r\nContent-Length: 5\r\nHost: a\r\nSet-Cookie: b\r\nX_Forwarded_For: c\r\nGrpc-Status: 0\r\n\r\n";
        let (trailers, _) = parse_trailers(text).expect("valid").expect("complete");
        let mut out = Vec::new();
        write_last_chunk(&trailers, &mut out);
        assert_eq!(out, b"0\r\nX-Sum: 1\r\nGrpc-Status: 0\r\n\r\n");
    }
}
