//! What must hold of HTTP in any bytes whatever.

use super::cuts::Cuts;
use crate::http::bad_message::BadBody;
use crate::http::bad_message::BadHead;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::http::body::request_body;
use crate::http::body::response_body;
use crate::http::chunks::write_chunk;
use crate::http::forward::ClientInfo;
use crate::http::forward::RequestForwarding;
use crate::http::forward::ResponseForwarding;
use crate::http::forward::body_for;
use crate::http::forward::has_passed;
use crate::http::forward::is_upgrade;
use crate::http::forward::write_last_chunk;
use crate::http::forward::write_request;
use crate::http::forward::write_response;
use crate::http::head::FIELDS_LIMIT;
use crate::http::head::Fields;
use crate::http::head::HEAD_LIMIT;
use crate::http::head::HttpVersion;
use crate::http::head::RequestHead;
use crate::http::head::ResponseHead;
use crate::http::head::parse_request;
use crate::http::head::parse_response;
use crate::http::host::HostKind;
use crate::http::host::host_of;
use crate::http::host::parse_host;
use crate::http::host::parse_target;
use std::fmt::Debug;
use std::net::Ipv6Addr;

const VIA: &str = "connect-properties";

/// A head has one verdict, wherever it is cut; what is accepted says the same when it is written again.
pub fn head(bytes: &[u8], cuts: Cuts) {
    if let Some(request) = one_verdict(bytes, cuts, parse_request) {
        let again = request_text(&request);
        let second = parse_request(&again).expect("valid again").expect("complete again");
        assert_eq!(RequestHead { length: request.length, ..second }, request);
        ends_exactly(bytes, request.length, parse_request);
        fields_are_sound(&request.fields);
    }
    if let Some(response) = one_verdict(bytes, cuts, parse_response) {
        let again = response_text(&response);
        let second = parse_response(&again).expect("valid again").expect("complete again");
        assert_eq!(ResponseHead { length: response.length, ..second }, response);
        ends_exactly(bytes, response.length, parse_response);
        fields_are_sound(&response.fields);
    }
}

/// A head with one body: what goes on to the next hop says the same as what came in, and no more.
pub fn framing(bytes: &[u8], cuts: Cuts) {
    if let Ok(Some(request)) = parse_request(bytes)
        && let Ok(body) = request_body(&request)
    {
        one_framing(&request.fields, body);
        walks_alike(body, &bytes[request.length..], cuts);
        goes_onward(&request, body);
    }
    if let Ok(Some(response)) = parse_response(bytes) {
        for method in ["GET", "HEAD", "CONNECT"] {
            if let Ok(body) = response_body(method, &response) {
                if body != Body::None {
                    one_framing(&response.fields, body);
                }
                walks_alike(body, &bytes[response.length..], cuts);
                goes_homeward(method, &response, body);
            }
        }
    }
}

/// A host is taken as it stands or not at all, and has one place however it is spelt.
pub fn host(bytes: &[u8], _: Cuts) {
    if let Ok(text) = str::from_utf8(bytes) {
        for method in ["GET", "OPTIONS", "CONNECT"] {
            let _ = parse_target(method, text);
        }
    }
    let Ok(host) = parse_host(bytes) else { return };
    assert_eq!(host.text.as_bytes(), bytes);
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
    assert!(bytes.iter().all(|&byte| harmless(byte)), "{}", host.text);
    assert_eq!(parse_host(bytes.to_ascii_uppercase().as_slice()).map(|upper| upper.kind()), Ok(host.kind()));
    if let HostKind::Service(name) = host.kind() {
        assert!(!name.contains('.') && !name.is_empty() && *name == name.to_lowercase());
    }
}

/// A chunked body has one verdict, wherever it is cut; its content survives being written in chunks anew.
pub fn chunks(bytes: &[u8], cuts: Cuts) {
    walks_alike(Body::Chunked, bytes, cuts);
    let Ok(walked) = walk(Body::Chunked, &[bytes]) else { return };
    let mut again = Vec::new();
    for piece in walked.content.chunks(7) {
        write_chunk(piece, &mut again);
    }
    write_last_chunk(&Fields::default(), &mut again);
    let second = walk(Body::Chunked, &[&again]).expect("valid again");
    assert_eq!((second.content, second.used, second.ended), (walked.content, again.len(), true));
}

fn one_verdict<'b, T: Debug + PartialEq>(
    bytes: &'b [u8],
    cuts: Cuts,
    parse: impl Fn(&'b [u8]) -> Result<Option<T>, BadHead>,
) -> Option<T> {
    let whole = parse(bytes);
    for cut in cuts.of(bytes) {
        let early = parse(&bytes[..cut]);
        assert!(early == Ok(None) || early == whole, "cut at {cut}: {early:?}, then {whole:?}");
    }
    whole.ok().flatten()
}

/// The head is complete with its last byte and not before.
fn ends_exactly<'b, T: Debug + PartialEq>(
    bytes: &'b [u8],
    length: usize,
    parse: impl Fn(&'b [u8]) -> Result<Option<T>, BadHead>,
) {
    assert!(length <= HEAD_LIMIT);
    assert_eq!(parse(&bytes[..length]), parse(bytes));
    assert_eq!(parse(&bytes[..length - 1]), Ok(None));
}

fn fields_are_sound(fields: &Fields<'_>) {
    assert!(fields.iter().count() <= FIELDS_LIMIT);
    for (name, value) in fields.iter() {
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'));
        assert!(value.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control()));
        assert_eq!(value, value.trim_ascii());
    }
}

fn request_text(request: &RequestHead<'_>) -> Vec<u8> {
    let minor = u8::from(request.version == HttpVersion::Http11);
    let line = format!("{} {} HTTP/1.{minor}\r\n", request.method, request.target);
    [line.into_bytes(), fields_text(&request.fields)].concat()
}

fn response_text(response: &ResponseHead<'_>) -> Vec<u8> {
    let minor = u8::from(response.version == HttpVersion::Http11);
    let line = format!("HTTP/1.{minor} {} ", response.status);
    [line.as_bytes(), response.reason, b"\r\n", &fields_text(&response.fields)].concat()
}

fn fields_text(fields: &Fields<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in fields.iter() {
        text.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// Counted from the lines themselves, with nothing of the code under test but the names.
fn one_framing(fields: &Fields<'_>, body: Body) {
    let named = |wanted: &str| -> Vec<Vec<u8>> {
        let lines = fields.iter().filter(|(name, _)| name.to_lowercase() == wanted);
        lines.map(|(_, value)| value.to_ascii_lowercase()).collect()
    };
    let (lengths, codings) = (named("content-length"), named("transfer-encoding"));
    match body {
        Body::None | Body::UntilClose => assert!(lengths.is_empty() && codings.is_empty()),
        Body::Chunked => assert!(lengths.is_empty() && codings == [b"chunked"]),
        Body::Length(length) => {
            assert!(lengths.len() == 1 && codings.is_empty());
            let digits = String::from_utf8(lengths[0].clone()).expect("digits");
            let digits = digits.trim_start_matches('0');
            assert_eq!(if digits.is_empty() { "0" } else { digits }, length.to_string());
        }
    }
}

#[derive(Debug, PartialEq)]
struct Walked {
    content: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    used: usize,
    ended: bool,
}

fn walk(body: Body, slices: &[&[u8]]) -> Result<Walked, BadBody> {
    let mut walker = BodyWalker::new(body);
    let (mut content, mut used) = (Vec::new(), 0);
    for slice in slices {
        let mut at = 0;
        while at < slice.len() && !walker.ended() {
            let ahead = walker.ahead();
            let step = walker.step(&slice[at..])?;
            assert!(step.used > 0, "a step without progress");
            assert!(step.payload.is_empty() || step.payload.end == step.used);
            if ahead.is_some_and(|ahead| ahead > 0) {
                assert_eq!(step.payload.start, 0, "framing before what was said to be content");
            }
            content.extend_from_slice(&slice[at..][step.payload]);
            at += step.used;
        }
        used += at;
    }
    let trailers = walker.trailers().iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    Ok(Walked { content, trailers, used, ended: walker.ended() })
}

fn walks_alike(body: Body, bytes: &[u8], cuts: Cuts) {
    let whole = walk(body, &[bytes]);
    if cuts == Cuts::Every {
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(walk(body, &single), whole, "byte by byte");
    }
    for cut in cuts.of(bytes) {
        assert_eq!(walk(body, &[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
    }
    let mut collected = Vec::new();
    let used = BodyWalker::new(body).collect(bytes, &mut collected, usize::MAX);
    match whole {
        Ok(whole) if used.is_ok() => assert_eq!((collected, used), (whole.content, Ok(whole.used))),
        Ok(_) => assert_eq!(used, Err(BadBody::TooLarge)),
        Err(bad) => assert_eq!(used, Err(bad)),
    }
}

fn goes_onward(request: &RequestHead<'_>, body: Body) {
    let Ok(Some(before)) = host_of(request) else { return };
    let sender = ClientInfo::new(Ipv6Addr::LOCALHOST.into(), true, VIA);
    let onward = RequestForwarding { client: &sender, body, host: before.text, rewrite_host: None };
    let mut out = Vec::new();
    write_request(request, &onward, &mut out).expect("a target that was good enough for its host");
    let Ok(second) = parse_request(&out) else {
        // A head just below a limit may pass it with what we add. It is still one head.
        return assert!(out.len() > HEAD_LIMIT || request.fields.iter().count() + 9 > FIELDS_LIMIT);
    };
    let second = second.expect("complete");
    assert_eq!(second.length, out.len(), "one head and nothing behind it");
    assert_eq!((second.method, second.version), (request.method, HttpVersion::Http11));
    assert_eq!(request_body(&second), Ok(body));
    assert_eq!(is_upgrade(&second), is_upgrade(request));
    assert!(has_passed(&second, VIA));
    assert_eq!(second.fields.one("host"), Ok(Some(before.text.as_bytes())));
    assert_eq!(host_of(&second).map(|host| host.map(|host| host.kind())), Ok(Some(before.kind())));
    for name in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"] {
        assert!(second.fields.one(name).is_ok_and(|value| value.is_some()), "{name}");
    }
}

fn goes_homeward(method: &str, response: &ResponseHead<'_>, body: Body) {
    for client in [HttpVersion::Http10, HttpVersion::Http11] {
        for keep_alive in [true, false] {
            let sent = body_for(client, body);
            let mut out = Vec::new();
            write_response(response, &ResponseForwarding { client, body: sent, keep_alive }, &mut out);
            let Ok(second) = parse_response(&out) else {
                return assert!(out.len() > HEAD_LIMIT || response.fields.iter().count() + 3 > FIELDS_LIMIT);
            };
            let second = second.expect("complete");
            assert_eq!(second.length, out.len(), "one head and nothing behind it");
            assert_eq!((second.status, second.reason), (response.status, response.reason));
            assert_eq!(response_body(method, &second), Ok(sent));
            assert!(client == HttpVersion::Http11 || sent != Body::Chunked);
            let ends = !keep_alive || sent == Body::UntilClose;
            assert!(!ends || response.status < 200 || !second.fields.keep_alive(second.version));
        }
    }
}
