//! Our own answers: a status, fields and a body, written with exactly one framing.

use serde_json::Value;
use std::io::Write;

use super::message::ErrorBody;

/// The answer to a CONNECT that is granted. It has no framing fields: what follows is the tunnel.
pub const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// Without `Content-Length` and `Connection`, which `write_into` sets.
    pub fields: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn empty(status: u16) -> Reply {
        Reply { status, fields: Vec::new(), body: Vec::new() }
    }

    #[allow(clippy::needless_pass_by_value)] // Callers build it in the call: `Reply::json(200, json!({…}))`.
    pub fn json(status: u16, value: Value) -> Reply {
        Reply::typed(status, "application/json", value.to_string())
    }

    /// A refusal of the API, as an `ErrorBody` without a code.
    pub fn error(status: u16, what: &str, hint: &str) -> Reply {
        let body = ErrorBody { error: what.to_owned(), hint: hint.to_owned(), code: String::new() };
        Reply::json(status, body.to_json())
    }

    pub fn text(status: u16, text: impl Into<String>) -> Reply {
        Reply::typed(status, "text/plain; charset=utf-8", text.into())
    }

    pub fn html(status: u16, page: impl Into<String>) -> Reply {
        Reply::typed(status, "text/html; charset=utf-8", page.into())
    }

    /// A 101: after it, the connection speaks `protocol`.
    pub fn switching(protocol: &str) -> Reply {
        Reply::empty(101).field("Upgrade", protocol)
    }

    pub fn typed(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Reply {
        Reply { body: body.into(), ..Reply::empty(status).field("Content-Type", kind) }
    }

    pub fn field(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.fields.push((name, value.into()));
        self
    }

    /// Appends the reply. `head_only` is for a HEAD: the body's length, but no body.
    pub fn write_into(&self, out: &mut Vec<u8>, keep_alive: bool, head_only: bool) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason_phrase(self.status));
        for (name, value) in &self.fields {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend(value.bytes().map(harmless));
            out.extend_from_slice(b"\r\n");
        }
        // RFC 9110 8.6: 1xx and 204 must not have a length, and in a 304 it would be that of another answer.
        let bare = matches!(self.status, 100..=199 | 204 | 304);
        if !bare {
            let _ = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        // Both cases are explicit, so that an HTTP/1.0 client understands as well.
        out.extend_from_slice(match (self.status, keep_alive) {
            (101, _) => b"Connection: Upgrade\r\n\r\n".as_slice(),
            (_, true) => b"Connection: keep-alive\r\n\r\n",
            (_, false) => b"Connection: close\r\n\r\n",
        });
        if !bare && !head_only {
            out.extend_from_slice(&self.body);
        }
    }
}

/// Escapes text for an HTML page, or for a quoted attribute in it.
pub fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

/// A control character in a value could end the line and begin a field that a peer has made up.
fn harmless(byte: u8) -> u8 {
    if byte.is_ascii_control() { b' ' } else { byte }
}

/// The reason phrase of our own answers. Nothing depends on it.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::Body;
    use super::super::body::response_body;
    use super::super::head::parse_response;
    use super::*;
    use serde_json::json;

    fn written(reply: &Reply, keep_alive: bool, head_only: bool) -> String {
        let mut out = b"before".to_vec();
        reply.write_into(&mut out, keep_alive, head_only);
        String::from_utf8(out).expect("text").strip_prefix("before").expect("appended").to_owned()
    }

    #[test]
    fn a_reply_is_written_with_its_length_and_its_connection() {
        let reply = Reply::json(404, json!({"error": "no such code"})).field("X-Hint", "none");
        assert_eq!(
            written(&reply, true, false),
            "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nX-Hint: none\r\n\
             Content-Length: 24\r\nConnection: keep-alive\r\n\r\n{\"error\":\"no such code\"}"
        );
        assert!(written(&reply, false, true).ends_with("Content-Length: 24\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn a_status_without_a_body_never_gets_one() {
        for status in [101, 204, 304] {
            let reply = Reply { status, ..Reply::text(200, "surprise") };
            let text = written(&reply, true, false);
            assert!(!text.contains("Content-Length") && text.ends_with("\r\n\r\n"), "{text}");
        }
        assert_eq!(
            written(&Reply::switching("connect-relay/1"), true, false),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: connect-relay/1\r\nConnection: Upgrade\r\n\r\n"
        );
    }

    #[test]
    fn a_value_cannot_end_its_line() {
        let reply = Reply::empty(302).field("Location", "/a\r\nSet-Cookie: b\r\n\r\n<script>\0\u{7f}");
        let text = written(&reply, true, false);
        assert!(text.contains("Location: /a  Set-Cookie: b    <script>  \r\n"), "{text}");
        assert_eq!(text.matches("\r\n").count(), 5, "{text}");
    }

    #[test]
    fn our_own_parser_takes_every_reply() {
        for status in 100..600 {
            let reply = Reply::html(status, "<p>").field("X-Name", "\u{e4}");
            let text = written(&reply, false, false);
            let head = parse_response(text.as_bytes()).expect("valid").expect("complete");
            assert_eq!((head.status, head.reason), (status, reason_phrase(status).as_bytes()));
            let body = response_body("GET", &head).expect("one framing");
            let bare = matches!(status, 100..=199 | 204 | 304);
            assert_eq!(body, if bare { Body::None } else { Body::Length(3) });
            assert_eq!(text.len() - head.length, if bare { 0 } else { 3 });
        }
        assert!(parse_response(CONNECTED).is_ok_and(|it| it.is_some_and(|it| it.length == CONNECTED.len())));
    }
}
