//! The head of an HTTP/1.x message: bytes in, a borrowed head out, or "not yet", or why it is refused.
//!
//! A head that is not plainly valid is refused at its first wrong byte, and more bytes never change that. The parser keeps
//! nothing between calls. The caller calls it again when more bytes have come; a call reads at most `HEAD_LIMIT` bytes.

use super::bad_message::BadHead;
use super::cursor;
use super::cursor::Cursor;
use super::cursor::ParseStop;

/// Room for many cookies: four times what Node accepts by default.
pub const HEAD_LIMIT: usize = 64 * 1024;
/// Browsers send about 20. Every lookup of a field compares with each of them.
pub const FIELDS_LIMIT: usize = 100;
/// RFC 9112 3 asks for at least 8000 bytes; nginx's default is 8 KiB as well.
pub const TARGET_LIMIT: usize = 8 * 1024;
/// Trailers hold a checksum or a status, so they need far less room than a head.
pub const TRAILERS_LIMIT: usize = 8 * 1024;
/// The longest registered method, UPDATEREDIRECTREF, has 17.
pub const METHOD_LIMIT: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    Http10,
    Http11,
}

#[derive(Debug, PartialEq)]
pub struct RequestHead<'b> {
    pub method: &'b str,
    pub target: &'b str,
    pub version: HttpVersion,
    pub fields: Fields<'b>,
    /// Length of the whole head in bytes, with an ignored empty line before it and the empty line that ends it.
    pub length: usize,
}

#[derive(Debug, PartialEq)]
pub struct ResponseHead<'b> {
    pub version: HttpVersion,
    pub status: u16,
    /// May be empty, and need not be text.
    pub reason: &'b [u8],
    pub fields: Fields<'b>,
    /// Length of the whole head in bytes, with the empty line that ends it.
    pub length: usize,
}

/// Parses a request's head. `Ok(None)`: it is not complete yet.
pub fn parse_request(bytes: &[u8]) -> Result<Option<RequestHead<'_>>, BadHead> {
    within(bytes, HEAD_LIMIT, request)
}

/// Parses a response's head. `Ok(None)`: it is not complete yet. To a client, every refusal of a response is a 502,
/// whatever its `status()`.
pub fn parse_response(bytes: &[u8]) -> Result<Option<ResponseHead<'_>>, BadHead> {
    within(bytes, HEAD_LIMIT, response)
}

/// The fields after the last chunk, and their length in bytes with the empty line that ends them.
pub fn parse_trailers(bytes: &[u8]) -> Result<Option<(Fields<'_>, usize)>, BadHead> {
    within(bytes, TRAILERS_LIMIT, |cursor| Ok((fields(cursor)?, cursor.at)))
}

/// Reads only the first `limit` bytes, so whether a head is too large does not depend on how it arrives.
fn within<'b, T>(
    bytes: &'b [u8],
    limit: usize,
    parse: impl FnOnce(&mut Cursor<'b>) -> Result<T, ParseStop>,
) -> Result<Option<T>, BadHead> {
    let mut cursor = Cursor::new(&bytes[..bytes.len().min(limit)]);
    match parse(&mut cursor) {
        Ok(value) => Ok(Some(value)),
        Err(ParseStop::Bad(bad)) => Err(bad),
        Err(ParseStop::NotYet) if bytes.len() >= limit => Err(BadHead::TooLarge),
        Err(ParseStop::NotYet) => Ok(None),
    }
}

fn request<'b>(cursor: &mut Cursor<'b>) -> Result<RequestHead<'b>, ParseStop> {
    // RFC 9112 2.2: some old clients send an extra empty line after a body. One is ignored, but not more.
    if cursor.peek()? == b'\r' {
        cursor.line_end(BadHead::Method)?;
    }
    let method = cursor.take_text(cursor::TOKEN_CHAR, METHOD_LIMIT, BadHead::MethodTooLong)?;
    if method.is_empty() {
        return Err(cursor.refuse(BadHead::Method));
    }
    cursor.expect(b" ", BadHead::Method)?;
    let target = cursor.take_text(cursor::TARGET_CHAR, TARGET_LIMIT, BadHead::TargetTooLong)?;
    if target.is_empty() {
        return Err(cursor.refuse(BadHead::Target));
    }
    cursor.expect(b" ", BadHead::Target)?;
    let version = version(cursor)?;
    cursor.line_end(BadHead::Version)?;
    Ok(RequestHead { method, target, version, fields: fields(cursor)?, length: cursor.at })
}

fn response<'b>(cursor: &mut Cursor<'b>) -> Result<ResponseHead<'b>, ParseStop> {
    let version = version(cursor)?;
    cursor.expect(b" ", BadHead::Status)?;
    let status = status(cursor)?;
    // The space before an empty reason is required but often missing. Nothing depends on it.
    let reason = if cursor.peek()? == b' ' {
        cursor.at += 1;
        cursor.take(cursor::VALUE_CHAR)?
    } else {
        b""
    };
    cursor.line_end(BadHead::Status)?;
    Ok(ResponseHead { version, status, reason, fields: fields(cursor)?, length: cursor.at })
}

fn version(cursor: &mut Cursor<'_>) -> Result<HttpVersion, ParseStop> {
    cursor.expect(b"HTTP/", BadHead::Version)?;
    let major = cursor.digit(BadHead::Version)?;
    cursor.expect(b".", BadHead::Version)?;
    match (major, cursor.digit(BadHead::Version)?) {
        (1, 0) => Ok(HttpVersion::Http10),
        (1, 1) => Ok(HttpVersion::Http11),
        _ => Err(BadHead::OtherVersion.into()),
    }
}

/// Three digits, from 100 to 599. Other values have no meaning (RFC 9110 15).
fn status(cursor: &mut Cursor<'_>) -> Result<u16, ParseStop> {
    let class = cursor.peek()?;
    if !(b'1'..=b'5').contains(&class) {
        return Err(cursor.refuse(BadHead::Status));
    }
    let mut status = 0;
    for _ in 0..3 {
        status = status * 10 + u16::from(cursor.digit(BadHead::Status)?);
    }
    Ok(status)
}

fn fields<'b>(cursor: &mut Cursor<'b>) -> Result<Fields<'b>, ParseStop> {
    let mut lines = Vec::with_capacity(FIELDS_EXPECTED);
    loop {
        match cursor.peek()? {
            b'\r' => break,
            b' ' | b'\t' => return Err(BadHead::Folded.into()),
            _ if lines.len() == FIELDS_LIMIT => return Err(BadHead::TooManyFields.into()),
            _ => {}
        }
        lines.push(field(cursor)?);
    }
    cursor.line_end(BadHead::LineEnd)?;
    Ok(Fields { lines })
}

/// As many as a browser sends, so the list rarely has to grow.
const FIELDS_EXPECTED: usize = 20;

fn field<'b>(cursor: &mut Cursor<'b>) -> Result<(&'b str, &'b [u8]), ParseStop> {
    let name = cursor.take(cursor::TOKEN_CHAR)?;
    if name.is_empty() {
        return Err(cursor.refuse(BadHead::FieldName));
    }
    cursor.expect(b":", BadHead::FieldName)?;
    let value = cursor::trim(cursor.take(cursor::VALUE_CHAR)?);
    cursor.line_end(BadHead::FieldValue)?;
    Ok((str::from_utf8(name).map_err(|_| BadHead::FieldName)?, value))
}

/// The fields in their order and spelling, with the blanks around each value removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields<'b> {
    lines: Vec<(&'b str, &'b [u8])>,
}

impl<'b> Fields<'b> {
    pub fn iter(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.lines.iter().copied()
    }

    /// The values of all fields with that name.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of a field that may occur once. A second one is refused even if it is equal: a sender that repeats `Host`
    /// or `Content-Length` may count on two readers choosing differently.
    pub fn one(&self, name: &str) -> Result<Option<&'b [u8]>, BadHead> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(BadHead::Repeated) } else { Ok(first) }
    }

    /// The elements of the comma-separated lists in all fields with that name.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.all(name).flat_map(|value| value.split(|&byte| byte == b',')).map(cursor::trim)
    }

    /// Whether the sender of a message of that version takes part in another exchange on this connection.
    pub fn keep_alive(&self, version: HttpVersion) -> bool {
        match version {
            _ if self.has_token("connection", "close") => false,
            HttpVersion::Http11 => true,
            HttpVersion::Http10 => self.has_token("connection", "keep-alive"),
        }
    }

    /// Whether a comma-separated list has that element, without regard to case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    /// The verdict, which has to be the same however the bytes arrive: whole, or a cut anywhere.
    fn verdict<'b, T: Debug + PartialEq>(
        bytes: &'b [u8],
        parse: impl Fn(&'b [u8]) -> Result<Option<T>, BadHead>,
    ) -> Result<Option<T>, BadHead> {
        let whole = parse(bytes);
        let show = || String::from_utf8_lossy(bytes);
        for cut in 0..bytes.len() {
            let early = parse(&bytes[..cut]);
            assert!(early == Ok(None) || early == whole, "{:?}: {early:?} at {cut}, {whole:?}", show());
        }
        whole
    }

    fn request(bytes: &[u8]) -> RequestHead<'_> {
        verdict(bytes, parse_request).expect("valid").expect("complete")
    }

    fn response(bytes: &[u8]) -> ResponseHead<'_> {
        verdict(bytes, parse_response).expect("valid").expect("complete")
    }

    #[test]
    fn a_request_is_read_without_its_blanks_and_without_what_follows() {
        let bytes = b"POST /a?b={|} HTTP/1.1\r\nHost: a\r\nx-Empty:\r\nx:\t \xe4 b\t\r\n\r\nGET /";
        let it = request(bytes);
        assert_eq!((it.method, it.target, it.version), ("POST", "/a?b={|}", HttpVersion::Http11));
        let fields: Vec<_> = it.fields.iter().collect();
        assert_eq!(fields, [("Host", b"a".as_slice()), ("x-Empty", b""), ("x", b"\xe4 b")]);
        assert_eq!(&bytes[it.length..], b"GET /");
    }

    #[test]
    fn one_empty_line_before_a_request_is_ignored_and_counted() {
        assert_eq!(request(b"\r\nGET / HTTP/1.0\r\n\r\n").length, 20);
        assert_eq!(verdict(b"\r\n\r\nGET / HTTP/1.0\r\n\r\n", parse_request), Err(BadHead::LineEnd));
        assert_eq!(verdict(b"\r\nHTTP/1.1 200 OK\r\n\r\n", parse_response), Err(BadHead::LineEnd));
    }

    #[test]
    fn a_response_is_read_with_any_reason_or_none() {
        let it = response(b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nbody");
        assert_eq!((it.version, it.status, it.reason), (HttpVersion::Http11, 404, b"Not Found".as_slice()));
        assert_eq!(it.length, 32);
        assert_eq!(response(b"HTTP/1.0 200 \r\n\r\n").reason, b"");
        assert_eq!(response(b"HTTP/1.0 200\r\n\r\n").reason, b"");
        assert_eq!(response(b"HTTP/1.1 200 \xfc \t\r\n\r\n").reason, b"\xfc \t");
    }

    #[test]
    fn every_kind_of_bad_request_has_its_verdict() {
        let cases: &[(&[u8], BadHead)] = &[
            (b" GET / HTTP/1.1\r\n\r\n", BadHead::Method),
            (b"G@T / HTTP/1.1\r\n\r\n", BadHead::Method),
            (b"GET\t/ HTTP/1.1\r\n\r\n", BadHead::Method),
            (b"\x16\x03\x01", BadHead::Method),
            (b"\0", BadHead::Method),
            (b"GET\r\n\r\n", BadHead::LineEnd),
            (b"\n", BadHead::LineEnd),
            (b"\rGET / HTTP/1.1\r\n\r\n", BadHead::LineEnd),
            (b"GET  / HTTP/1.1\r\n\r\n", BadHead::Target),
            (b"GET /a#b HTTP/1.1\r\n\r\n", BadHead::Target),
            (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", BadHead::Target),
            (b"GET /\t HTTP/1.1\r\n\r\n", BadHead::Target),
            (b"GET /\0 HTTP/1.1\r\n\r\n", BadHead::Target),
            (b"GET /\x7f HTTP/1.1\r\n\r\n", BadHead::Target),
            (b"GET /\r\n\r\n", BadHead::LineEnd),
            (b"GET / a HTTP/1.1\r\n\r\n", BadHead::Version),
            (b"GET /  HTTP/1.1\r\n\r\n", BadHead::Version),
            (b"GET / http/1.1\r\n\r\n", BadHead::Version),
            (b"GET / HTTP/11\r\n\r\n", BadHead::Version),
            (b"GET / HTTP/+1.1\r\n\r\n", BadHead::Version),
            (b"GET / HTTP/1.10\r\n\r\n", BadHead::Version),
            (b"GET / HTTP/1.1 \r\n\r\n", BadHead::Version),
            (b"GET / HTTPS/1.1\r\n\r\n", BadHead::Version),
            (b"GET / HTTP/1.\r\n\r\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\n\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\r\r\n\r\n", BadHead::LineEnd),
            (b"GET / HTTP/0.9\r\n\r\n", BadHead::OtherVersion),
            (b"GET / HTTP/1.2\r\n\r\n", BadHead::OtherVersion),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadHead::OtherVersion),
            (b"GET / HTTP/1.1\r\n a: b\r\n\r\n", BadHead::Folded),
            (b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n", BadHead::Folded),
            (b"GET / HTTP/1.1\r\na: b\r\n\tc\r\n\r\n", BadHead::Folded),
            (b"GET / HTTP/1.1\r\na: b\r\n \r\n\r\n", BadHead::Folded),
            (b"GET / HTTP/1.1\r\na : b\r\n\r\n", BadHead::FieldName),
            (b"GET / HTTP/1.1\r\na\t: b\r\n\r\n", BadHead::FieldName),
            (b"GET / HTTP/1.1\r\n: b\r\n\r\n", BadHead::FieldName),
            (b"GET / HTTP/1.1\r\na b: c\r\n\r\n", BadHead::FieldName),
            (b"GET / HTTP/1.1\r\na\0: c\r\n\r\n", BadHead::FieldName),
            (b"GET / HTTP/1.1\r\n\xe4: c\r\n\r\n", BadHead::FieldName),
            (b"GET / HTTP/1.1\r\na\r\n\r\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\r\na: b\0c\r\n\r\n", BadHead::FieldValue),
            (b"GET / HTTP/1.1\r\na: b\x0bc\r\n\r\n", BadHead::FieldValue),
            (b"GET / HTTP/1.1\r\na: \x7f\r\n\r\n", BadHead::FieldValue),
            (b"GET / HTTP/1.1\r\na: b\rc: d\r\n\r\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\r\na: b\r\r\n\r\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\r\na: b\r\n\n", BadHead::LineEnd),
            (b"GET / HTTP/1.1\r\na: b\r\n\r\r\n", BadHead::LineEnd),
        ];
        for (bytes, bad) in cases {
            assert_eq!(verdict(bytes, parse_request), Err(*bad), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn every_kind_of_bad_response_has_its_verdict() {
        let cases: &[(&[u8], BadHead)] = &[
            (b"http/1.1 200 OK\r\n\r\n", BadHead::Version),
            (b"ICY 200 OK\r\n\r\n", BadHead::Version),
            (b"HTTP/2 200\r\n\r\n", BadHead::Version),
            (b"HTTP/2.0 200 OK\r\n\r\n", BadHead::OtherVersion),
            (b"HTTP/1.1  200 OK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 20 OK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 2000 OK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 +20 OK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 099 OK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 600 OK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 200\tOK\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 200 O\0\r\n\r\n", BadHead::Status),
            (b"HTTP/1.1 200 OK\n\n", BadHead::LineEnd),
            (b"HTTP/1.1\r\n\r\n", BadHead::LineEnd),
            (b"HTTP/1.1 200 OK\r\na : b\r\n\r\n", BadHead::FieldName),
            (b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", BadHead::Folded),
        ];
        for (bytes, bad) in cases {
            assert_eq!(verdict(bytes, parse_response), Err(*bad), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_wrong_byte_is_refused_before_anything_follows_it() {
        assert_eq!(parse_request(b"GET / HTTP/1.1\r\na "), Err(BadHead::FieldName));
        assert_eq!(parse_request(b"GET / HTTP/1.1\r\na: b\r\n "), Err(BadHead::Folded));
        assert_eq!(parse_request(b"GET / X"), Err(BadHead::Version));
        assert_eq!(parse_response(b"HTTP/1.1 6"), Err(BadHead::Status));
    }

    #[test]
    fn limits_are_met_exactly_and_seen_without_the_rest() {
        let of = |length: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(length - 1));
        let (fits, long) = (of(TARGET_LIMIT), of(TARGET_LIMIT + 1));
        assert_eq!(parse_request(fits.as_bytes()).map(|it| it.is_some()), Ok(true));
        assert_eq!(parse_request(long.as_bytes()), Err(BadHead::TargetTooLong));
        assert_eq!(parse_request(&long.as_bytes()[..5 + TARGET_LIMIT]), Err(BadHead::TargetTooLong));
        assert_eq!(parse_request(&long.as_bytes()[..4 + TARGET_LIMIT]), Ok(None));

        let of = |length: usize| "M".repeat(length);
        assert_eq!(parse_request(of(METHOD_LIMIT).as_bytes()), Ok(None));
        assert_eq!(parse_request(of(METHOD_LIMIT + 1).as_bytes()), Err(BadHead::MethodTooLong));

        let of = |count: usize| format!("GET / HTTP/1.1\r\n{}", "a:b\r\n".repeat(count));
        assert_eq!(parse_request(of(FIELDS_LIMIT).as_bytes()), Ok(None));
        assert!(parse_request((of(FIELDS_LIMIT) + "\r\n").as_bytes()).is_ok_and(|it| it.is_some()));
        assert_eq!(parse_request((of(FIELDS_LIMIT) + "a").as_bytes()), Err(BadHead::TooManyFields));
    }

    #[test]
    fn a_head_of_exactly_the_limit_fits_and_one_byte_more_does_not() {
        let of = |length: usize| format!("GET / HTTP/1.1\r\na:{}\r\n\r\n", "b".repeat(length - 22));
        let (fits, large) = (of(HEAD_LIMIT), of(HEAD_LIMIT + 1));
        assert_eq!(parse_request(fits.as_bytes()).map(|it| it.map(|it| it.length)), Ok(Some(HEAD_LIMIT)));
        assert_eq!(parse_request(large.as_bytes()), Err(BadHead::TooLarge));
        assert_eq!(parse_request(&large.as_bytes()[..HEAD_LIMIT]), Err(BadHead::TooLarge));
        assert_eq!(parse_request(&large.as_bytes()[..HEAD_LIMIT - 1]), Ok(None));
        // Bytes after the limit are never read, so they do not change the verdict.
        assert_eq!(parse_request((large + "\0").as_bytes()), Err(BadHead::TooLarge));
    }

    #[test]
    fn a_field_that_may_stand_once_is_refused_twice_even_when_both_agree() {
        let it = request(b"GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\nOther: b\r\n\r\n");
        assert_eq!(it.fields.one("host"), Err(BadHead::Repeated));
        assert_eq!(it.fields.one("other"), Ok(Some(b"b".as_slice())));
        assert_eq!(it.fields.one("none"), Ok(None));
        assert_eq!(it.fields.all("host").count(), 2);
    }

    #[test]
    fn tokens_are_found_over_all_lines_in_any_case_and_never_as_a_part() {
        let it = request(b"GET / HTTP/1.1\r\nConnection: a ,\tUpgrade\r\nconnection: Keep-Alive\r\n\r\n");
        for token in ["a", "upgrade", "keep-alive"] {
            assert!(it.fields.has_token("Connection", token), "{token}");
        }
        assert!(!it.fields.has_token("connection", "keep"));
        assert!(!it.fields.has_token("upgrade", "a"));
    }

    #[test]
    fn connections_stay_open_as_their_version_says() {
        let cases = [
            ("1.1", "", true),
            ("1.1", "Connection: Close\r\n", false),
            ("1.1", "Connection: keep-alive, close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ];
        for (version, fields, stays) in cases {
            let text = format!("GET / HTTP/{version}\r\n{fields}\r\n");
            let head = request(text.as_bytes());
            assert_eq!(head.fields.keep_alive(head.version), stays);
            let text = format!("HTTP/{version} 200 OK\r\n{fields}\r\n");
            let head = response(text.as_bytes());
            assert_eq!(head.fields.keep_alive(head.version), stays);
        }
    }

    #[test]
    fn trailers_are_as_strict_as_heads_and_smaller() {
        let parse = |bytes| verdict(bytes, |bytes| parse_trailers(bytes).map(|it| it.map(|it| it.1)));
        assert_eq!(parse(b"\r\nGET"), Ok(Some(2)));
        assert_eq!(parse(b"a: b\r\n\r\nGET"), Ok(Some(8)));
        assert_eq!(parse(b"a: b\r\n c\r\n\r\n"), Err(BadHead::Folded));
        assert_eq!(parse(b"a : b\r\n\r\n"), Err(BadHead::FieldName));
        assert_eq!(parse_trailers(&[b'a'; TRAILERS_LIMIT]), Err(BadHead::TooLarge));
        assert_eq!(parse_trailers(&[b'a'; TRAILERS_LIMIT - 1]), Ok(None));
    }
}
