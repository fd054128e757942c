//! Whole HTTP messages that own their data, for the hub's API and its clients. The proxy streams and does not use them.

use serde_json::Value;

use super::head;
use crate::model::text::one_line;

/// Bodies of the API are small; a larger one gets 413.
pub const BODY_LIMIT: usize = 64 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Percent-decoded, without the query.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub keep_alive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// `None` if the target is not a valid path.
    pub fn from_head(head: &head::RequestHead<'_>) -> Option<Self> {
        let (path, query) = head.target.split_once('?').unwrap_or((head.target, ""));
        let path = decoded(path).filter(|path| path.starts_with('/'))?;
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decoded(name)?, decoded(&value.replace('+', " "))?))
        });
        Some(Self {
            method: head.method.to_owned(),
            path,
            query: query.collect::<Option<_>>()?,
            fields: owned(&head.fields),
            body: Vec::new(),
            keep_alive: head.fields.keep_alive(head.version),
        })
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        find(&self.fields, name)
    }

    /// The API key; empty if there is none.
    pub fn key(&self) -> &str {
        self.field("x-api-key").unwrap_or_default()
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether the client asks to switch to `protocol`.
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        let named = |field: &str, token: &str| {
            self.field(field)
                .is_some_and(|list| list.split(',').any(|one| one.trim().eq_ignore_ascii_case(token)))
        };
        named("connection", "upgrade") && named("upgrade", protocol)
    }
}

impl Response {
    pub fn from_head(head: &head::ResponseHead<'_>) -> Self {
        Self { status: head.status, fields: owned(&head.fields), body: Vec::new() }
    }
}

fn owned(fields: &head::Fields<'_>) -> Vec<(String, String)> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    fields.iter().map(|(name, value)| (name.to_owned(), text(value))).collect()
}

fn find<'f>(fields: &'f [(String, String)], name: &str) -> Option<&'f str> {
    fields.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// Percent-decodes. `None` if an escape is broken, or if the result is not UTF-8 or contains a control character.
pub fn decoded(text: &str) -> Option<String> {
    let (bytes, is_whole) = percent_decoded(text);
    let text = String::from_utf8(bytes).ok().filter(|_| is_whole)?;
    Some(text).filter(|text| !text.chars().any(char::is_control))
}

/// Percent-decodes. The flag is false if some `%` did not begin an escape; it is kept as it is.
pub fn percent_decoded(text: &str) -> (Vec<u8>, bool) {
    let (mut bytes, mut is_whole) = (Vec::with_capacity(text.len()), true);
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| tail.get(at).and_then(|byte| (*byte as char).to_digit(16));
        let escaped = digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        rest = tail;
        match escaped.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                is_whole &= *first != b'%';
            }
        }
    }
    (bytes, is_whole)
}

/// An error in the JSON of the hub's API and of the proxy. Empty fields are left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    pub error: String,
    pub hint: String,
    /// For programs; the other fields are for people. Only hubs set it.
    pub code: String,
}

impl ErrorBody {
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::json!({ "error": self.error });
        for (name, text) in [("hint", &self.hint), ("code", &self.code)] {
            if !text.is_empty() {
                value[name] = text.as_str().into();
            }
        }
        value
    }

    /// Reads an error. Fields that the answer lacks are empty.
    pub fn read(body: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| one_line(value.get(name).and_then(Value::as_str).unwrap_or_default());
        Self { error: text("error"), hint: text("hint"), code: text("code") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str) -> Option<Request> {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: h\r\nX-A: 1\r\n\r\n");
        Request::from_head(&head::parse_request(bytes.as_bytes()).unwrap().unwrap())
    }

    #[test]
    fn path_and_query_are_decoded() {
        let request = request("/v1/services?name=a%2Db&x=1+2&flag").unwrap();
        assert_eq!(request.path, "/v1/services");
        assert_eq!(
            (request.parameter("name"), request.parameter("x"), request.parameter("flag")),
            (Some("a-b"), Some("1 2"), Some(""))
        );
        assert_eq!(request.field("x-a"), Some("1"));
    }

    #[test]
    fn what_does_not_decode_to_plain_text_is_refused() {
        for target in ["/%", "/%2", "/%zz", "/%00", "/%0a", "/%ff", "*", "http://h/x", "/ok?a=%1b"] {
            assert_eq!(request(target), None, "{target}");
        }
    }

    #[test]
    fn an_error_is_read_as_it_was_written_and_garbage_as_none() {
        let body = ErrorBody { error: "no".into(), hint: "try yes".into(), code: "never".into() };
        assert_eq!(ErrorBody::read(body.to_json().to_string().as_bytes()), body);
        assert_eq!(ErrorBody::read(b"<html>"), ErrorBody::default());
    }
}
