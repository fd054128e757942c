//! Where a message's body ends. The head decides that once; then the body is read in slices of any size.
//!
//! Every accepted message has exactly one framing. A message that could be read in two ways is refused.

use super::bad_message::BadBody;
use super::bad_message::BadHead;
use super::chunks::BodyStep;
use super::chunks::ChunkWalker;
use super::head::Fields;
use super::head::HttpVersion;
use super::head::RequestHead;
use super::head::ResponseHead;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing follows the head, and no field says so. `Length(0)` differs: there a field does.
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

pub fn request_body(request: &RequestHead<'_>) -> Result<Body, BadHead> {
    match declared(request.version, &request.fields)? {
        None => Ok(Body::None),
        // The bytes after a CONNECT belong to the tunnel; a length would turn some of them into a body.
        Some(_) if request.method == "CONNECT" => Err(BadHead::ConnectWithBody),
        Some(body) => Ok(body),
    }
}

/// The body of an answer to a request with that method.
pub fn response_body(request_method: &str, response: &ResponseHead<'_>) -> Result<Body, BadHead> {
    let declared = declared(response.version, &response.fields)?;
    // RFC 9112 6.3: these responses have no body, whatever their fields say.
    let bare = match response.status {
        100..=199 | 204 | 304 => true,
        200..=299 => matches!(request_method, "HEAD" | "CONNECT"),
        _ => request_method == "HEAD",
    };
    Ok(if bare { Body::None } else { declared.unwrap_or(Body::UntilClose) })
}

fn declared(version: HttpVersion, fields: &Fields<'_>) -> Result<Option<Body>, BadHead> {
    let length = fields.one("content-length")?.map(length).transpose()?;
    if fields.all("transfer-encoding").next().is_none() {
        return Ok(length.map(Body::Length));
    }
    if version == HttpVersion::Http10 {
        return Err(BadHead::CodingInHttp10);
    }
    if length.is_some() {
        return Err(BadHead::LengthAndCoding);
    }
    coding(fields).map(Some)
}

/// Digits only, and at most what a signed 64-bit number holds: the next reader may use one.
fn length(value: &[u8]) -> Result<u64, BadHead> {
    let add = |sum: u64, digit: &u8| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BadHead::Length);
    }
    let number = value.iter().try_fold(0, add).filter(|&sum| i64::try_from(sum).is_ok());
    number.ok_or(BadHead::Length)
}

/// Accepts `chunked` once and at the end. Otherwise nobody can tell where a request ends (RFC 9112 6.3).
fn coding(fields: &Fields<'_>) -> Result<Body, BadHead> {
    let (mut chunked, mut others, mut at_the_end) = (0, 0, false);
    for coding in fields.list("transfer-encoding") {
        at_the_end = coding.eq_ignore_ascii_case(b"chunked");
        if at_the_end {
            chunked += 1;
        } else if coding.is_empty() {
            return Err(BadHead::Coding);
        } else {
            others += 1;
        }
    }
    match (chunked, others) {
        (1, 0) => Ok(Body::Chunked),
        (1, _) if at_the_end => Err(BadHead::UnknownCoding),
        _ => Err(BadHead::Coding),
    }
}

/// Reads a body of any framing. The loop is the same for all:
///
/// ```text
/// while !walker.ended() { step = walker.step(bytes)?; content = bytes[step.payload]; bytes = bytes[step.used..] }
/// ```
///
/// Read more bytes when none are left, and call `end_of_stream()` when the sender has closed.
pub struct BodyWalker {
    framing: Framing,
    /// Bytes of content so far.
    content: u64,
}

enum Framing {
    Length { left: u64 },
    Chunked(ChunkWalker),
    UntilClose { closed: bool },
}

impl BodyWalker {
    pub fn new(body: Body) -> BodyWalker {
        let framing = match body {
            Body::None => Framing::Length { left: 0 },
            Body::Length(left) => Framing::Length { left },
            Body::Chunked => Framing::Chunked(ChunkWalker::new()),
            Body::UntilClose => Framing::UntilClose { closed: false },
        };
        BodyWalker { framing, content: 0 }
    }

    pub fn ended(&self) -> bool {
        match &self.framing {
            Framing::Length { left } => *left == 0,
            Framing::Chunked(chunks) => chunks.ended(),
            Framing::UntilClose { closed } => *closed,
        }
    }

    pub fn content(&self) -> u64 {
        self.content
    }

    /// Uses at least one byte of a non-empty slice, unless the body has ended.
    pub fn step(&mut self, bytes: &[u8]) -> Result<BodyStep, BadBody> {
        let step = self.next_step(bytes)?;
        self.content += step.payload.len() as u64;
        Ok(step)
    }

    fn next_step(&mut self, bytes: &[u8]) -> Result<BodyStep, BadBody> {
        let used = match &mut self.framing {
            Framing::Chunked(chunks) => return chunks.step(bytes),
            Framing::Length { left } => {
                let used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= used as u64;
                used
            }
            Framing::UntilClose { closed: true } => 0,
            Framing::UntilClose { closed: false } => bytes.len(),
        };
        Ok(BodyStep { used, payload: 0..used })
    }

    /// The sender has closed. With `UntilClose` that ends the body; with any other framing the message is broken.
    pub fn end_of_stream(&mut self) -> Result<(), BadBody> {
        if let Framing::UntilClose { closed } = &mut self.framing {
            *closed = true;
        }
        if self.ended() { Ok(()) } else { Err(BadBody::CutShort) }
    }

    /// How much content follows without any framing in between. `None`: all until the sender closes.
    pub fn ahead(&self) -> Option<u64> {
        match &self.framing {
            Framing::Length { left } => Some(*left),
            Framing::Chunked(chunks) => Some(chunks.ahead()),
            Framing::UntilClose { .. } => None,
        }
    }

    /// Counts `count` bytes of what was `ahead` that were moved from socket to socket without `step`.
    pub fn pass(&mut self, count: u64) {
        self.content += count;
        match &mut self.framing {
            Framing::Length { left } => *left = left.saturating_sub(count),
            Framing::Chunked(chunks) => chunks.pass(count),
            Framing::UntilClose { .. } => {}
        }
    }

    /// The fields after the last chunk. Empty before the end and with other framings.
    pub fn trailers(&self) -> Fields<'_> {
        match &self.framing {
            Framing::Chunked(chunks) => chunks.trailers(),
            _ => Fields::default(),
        }
    }

    /// Appends a small body's content to `into` and returns how many bytes of the slice belonged to the body. A declared
    /// length over the limit is refused before the first byte, so call it even if nothing came with the head.
    pub fn collect(&mut self, bytes: &[u8], into: &mut Vec<u8>, limit: usize) -> Result<usize, BadBody> {
        let mut used = 0;
        loop {
            let room = limit.saturating_sub(into.len()) as u64;
            if self.ahead().is_some_and(|ahead| ahead > room) {
                return Err(BadBody::TooLarge);
            }
            if self.ended() || used == bytes.len() {
                return Ok(used);
            }
            let step = self.step(&bytes[used..])?;
            let content = &bytes[used..][step.payload];
            if content.len() as u64 > room {
                return Err(BadBody::TooLarge);
            }
            into.extend_from_slice(content);
            used += step.used;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::parse_request;
    use super::super::head::parse_response;
    use super::*;

    fn of_request(line: &str, fields: &str) -> Result<Body, BadHead> {
        let text = format!("{line}\r\n{fields}\r\n");
        request_body(&parse_request(text.as_bytes()).expect("valid").expect("complete"))
    }

    fn of_response(method: &str, line: &str, fields: &str) -> Result<Body, BadHead> {
        let text = format!("{line}\r\n{fields}\r\n");
        response_body(method, &parse_response(text.as_bytes()).expect("valid").expect("complete"))
    }

    #[test]
    fn a_request_has_one_framing_or_none_or_is_refused() {
        let cases = [
            ("", Ok(Body::None)),
            ("Content-Length: 0\r\n", Ok(Body::Length(0))),
            ("content-length:\t007 \r\n", Ok(Body::Length(7))),
            ("Content-Length: 9223372036854775807\r\n", Ok(Body::Length(i64::MAX as u64))),
            ("Transfer-Encoding: Chunked\r\n", Ok(Body::Chunked)),
            ("Content-Length: 9223372036854775808\r\n", Err(BadHead::Length)),
            ("Content-Length: 18446744073709551617\r\n", Err(BadHead::Length)),
            ("Content-Length: 99999999999999999999999999999\r\n", Err(BadHead::Length)),
            ("Content-Length:\r\n", Err(BadHead::Length)),
            ("Content-Length: +3\r\n", Err(BadHead::Length)),
            ("Content-Length: -3\r\n", Err(BadHead::Length)),
            ("Content-Length: 0x3\r\n", Err(BadHead::Length)),
            ("Content-Length: 3 3\r\n", Err(BadHead::Length)),
            ("Content-Length: 3, 3\r\n", Err(BadHead::Length)),
            ("Content-Length: 3;\r\n", Err(BadHead::Length)),
            ("Content-Length: 3.0\r\n", Err(BadHead::Length)),
            ("Content-Length: \u{0663}\r\n", Err(BadHead::Length)),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", Err(BadHead::Repeated)),
            ("Content-Length: 3\r\ncontent-length: 4\r\n", Err(BadHead::Repeated)),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", Err(BadHead::LengthAndCoding)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Err(BadHead::LengthAndCoding)),
            ("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", Err(BadHead::LengthAndCoding)),
            ("Transfer-Encoding:\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: identity\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: chunked, chunked\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: chunked, gzip\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: ,chunked\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: chunked,\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: \"chunked\"\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: chunked;q=1\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: xchunked\r\n", Err(BadHead::Coding)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(BadHead::UnknownCoding)),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Err(BadHead::UnknownCoding)),
        ];
        for (fields, body) in cases {
            assert_eq!(of_request("POST / HTTP/1.1", fields), body, "{fields}");
        }
    }

    #[test]
    fn codings_are_not_for_http_10_and_bodies_not_for_connect() {
        let chunked = "Transfer-Encoding: chunked\r\n";
        assert_eq!(of_request("POST / HTTP/1.0", chunked), Err(BadHead::CodingInHttp10));
        assert_eq!(of_response("GET", "HTTP/1.0 200 OK", chunked), Err(BadHead::CodingInHttp10));
        assert_eq!(of_request("CONNECT a:1 HTTP/1.1", ""), Ok(Body::None));
        assert_eq!(of_request("CONNECT a:1 HTTP/1.1", chunked), Err(BadHead::ConnectWithBody));
        assert_eq!(
            of_request("CONNECT a:1 HTTP/1.1", "Content-Length: 1\r\n"),
            Err(BadHead::ConnectWithBody)
        );
    }

    #[test]
    fn an_answer_ends_as_its_request_its_status_and_its_fields_say() {
        let cases = [
            ("GET", "200", "", Ok(Body::UntilClose)),
            ("GET", "200", "Content-Length: 3\r\n", Ok(Body::Length(3))),
            ("GET", "500", "Transfer-Encoding: chunked\r\n", Ok(Body::Chunked)),
            ("HEAD", "200", "Content-Length: 3\r\n", Ok(Body::None)),
            ("HEAD", "404", "Transfer-Encoding: chunked\r\n", Ok(Body::None)),
            ("head", "200", "", Ok(Body::UntilClose)),
            ("GET", "100", "", Ok(Body::None)),
            ("GET", "101", "", Ok(Body::None)),
            ("GET", "103", "Content-Length: 3\r\n", Ok(Body::None)),
            ("GET", "204", "Content-Length: 3\r\n", Ok(Body::None)),
            ("GET", "205", "", Ok(Body::UntilClose)),
            ("GET", "304", "Content-Length: 3\r\n", Ok(Body::None)),
            ("CONNECT", "200", "Content-Length: 3\r\n", Ok(Body::None)),
            ("CONNECT", "407", "Content-Length: 3\r\n", Ok(Body::Length(3))),
            ("HEAD", "200", "Content-Length: +3\r\n", Err(BadHead::Length)),
            ("GET", "304", "Content-Length: 3\r\nContent-Length: 3\r\n", Err(BadHead::Repeated)),
            (
                "GET",
                "200",
                "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
                Err(BadHead::LengthAndCoding),
            ),
            ("GET", "200", "Transfer-Encoding: gzip\r\n", Err(BadHead::Coding)),
        ];
        for (method, status, fields, body) in cases {
            assert_eq!(of_response(method, &format!("HTTP/1.1 {status}"), fields), body, "{status} {fields}");
        }
    }

    #[test]
    fn a_length_takes_its_own_bytes_and_leaves_the_next_message_alone() {
        let mut walker = BodyWalker::new(Body::Length(5));
        assert_eq!(walker.step(b"abc"), Ok(BodyStep { used: 3, payload: 0..3 }));
        assert_eq!((walker.ahead(), walker.ended()), (Some(2), false));
        assert_eq!(walker.end_of_stream(), Err(BadBody::CutShort));
        assert_eq!(walker.step(b"deGET /"), Ok(BodyStep { used: 2, payload: 0..2 }));
        assert!(walker.ended());
        assert_eq!(walker.step(b"GET /"), Ok(BodyStep { used: 0, payload: 0..0 }));
        assert_eq!(walker.end_of_stream(), Ok(()));
    }

    #[test]
    fn nothing_and_a_length_of_zero_have_ended_before_their_first_byte() {
        assert!(BodyWalker::new(Body::None).ended());
        assert!(BodyWalker::new(Body::Length(0)).ended());
        assert!(!BodyWalker::new(Body::Chunked).ended());
        assert!(!BodyWalker::new(Body::UntilClose).ended());
    }

    #[test]
    fn only_the_close_ends_a_body_until_close() {
        let mut walker = BodyWalker::new(Body::UntilClose);
        assert_eq!(walker.step(b"abc"), Ok(BodyStep { used: 3, payload: 0..3 }));
        assert_eq!((walker.ahead(), walker.ended()), (None, false));
        assert_eq!(walker.end_of_stream(), Ok(()));
        assert!(walker.ended());
        assert_eq!(walker.step(b"abc"), Ok(BodyStep { used: 0, payload: 0..0 }));
    }

    #[test]
    fn bytes_that_went_past_the_walker_count() {
        let mut walker = BodyWalker::new(Body::Length(1 << 40));
        walker.pass((1 << 40) - 1);
        assert_eq!(walker.step(b"ab"), Ok(BodyStep { used: 1, payload: 0..1 }));
        assert!(walker.ended());

        let mut walker = BodyWalker::new(Body::Chunked);
        assert_eq!(walker.step(b"10\r\nabc"), Ok(BodyStep { used: 7, payload: 4..7 }));
        assert_eq!(walker.ahead(), Some(13));
        walker.pass(13);
        assert_eq!(walker.ahead(), Some(0));
        assert_eq!(walker.step(b"\r\n0\r\n\r\n"), Ok(BodyStep { used: 7, payload: 7..7 }));
        assert!(walker.ended());
    }

    #[test]
    fn a_small_body_is_collected_up_to_its_limit() {
        for (body, bytes, used) in [
            (Body::Length(3), b"abcGET".as_slice(), 3),
            (Body::Chunked, b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\nGET", 18),
        ] {
            let (mut walker, mut into) = (BodyWalker::new(body), Vec::new());
            assert_eq!(walker.collect(bytes, &mut into, 3), Ok(used));
            assert_eq!((into.as_slice(), walker.ended()), (b"abc".as_slice(), true));
            assert_eq!(BodyWalker::new(body).collect(bytes, &mut Vec::new(), 2), Err(BadBody::TooLarge));
        }
        assert_eq!(
            BodyWalker::new(Body::UntilClose).collect(b"abc", &mut Vec::new(), 2),
            Err(BadBody::TooLarge)
        );
        assert_eq!(BodyWalker::new(Body::Length(3)).collect(b"", &mut Vec::new(), 2), Err(BadBody::TooLarge));
        assert_eq!(
            BodyWalker::new(Body::Chunked).collect(b"3\r\n", &mut Vec::new(), 2),
            Err(BadBody::TooLarge)
        );
    }
}
