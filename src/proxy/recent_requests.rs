//! The last requests: method, host, path, status and time. While somebody looks at the page, the fields of both heads as
//! well, without what may be secret; never a body.

use std::collections::VecDeque;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;

use crate::http::head::Fields;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::lock::wait_while;

/// What the page shows; older ones are forgotten.
const RECENT_LIMIT: usize = 200;
/// A longer path is shortened: the memory for all of them must stay small.
const SHOWN_PATH_LIMIT: usize = 300;
/// Fields of one head, and bytes of a value, that the page shows.
const SHOWN_FIELDS: usize = 50;
const SHOWN_VALUE_LIMIT: usize = 200;
/// A field whose name holds one of these may hold a secret.
const SECRET_NAMES: [&str; 13] = [
    "assertion",
    "auth",
    "cookie",
    "credential",
    "csrf",
    "jwt",
    "key",
    "pass",
    "secret",
    "session",
    "signature",
    "token",
    "xsrf",
];
/// And so may a value that holds one of these, in any field. The last one begins every JSON web token.
const SECRET_VALUES: [&str; 3] = ["basic ", "bearer", "eyj"];

#[derive(Clone, Debug, Serialize)]
pub struct RequestRecord {
    pub number: u64,
    pub at: Time,
    pub method: String,
    pub service: String,
    pub path: String,
    pub status: u16,
    /// Time until the response was complete, in microseconds.
    pub micros: u64,
    /// Of the response's body.
    pub bytes: u64,
    pub request_fields: ShownFields,
    pub response_fields: ShownFields,
}

/// Names and values; empty while nobody looks.
pub type ShownFields = Vec<(String, String)>;

#[derive(Default)]
pub struct RecentRequests {
    list: Mutex<VecDeque<RequestRecord>>,
    added: Condvar,
    readers: AtomicUsize,
}

/// Somebody who looks at the page.
pub struct PageReader<'r>(&'r AtomicUsize);

impl Drop for PageReader<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that has been answered.
pub struct FinishedRequest<'a> {
    pub method: &'a str,
    pub service: &'a str,
    pub target: &'a str,
    pub status: u16,
    pub began: Instant,
    /// Why a service gave no response; otherwise empty.
    pub reason: &'a str,
    pub bytes: u64,
    pub request_fields: &'a [(String, String)],
    pub response_fields: &'a [(String, String)],
}

impl RecentRequests {
    pub fn reader(&self) -> PageReader<'_> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        PageReader(&self.readers)
    }

    /// What the page will show of a head. Without a reader nothing is copied, so requests cost no more.
    pub fn shown_fields(&self, fields: &Fields<'_>) -> ShownFields {
        if self.readers.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        fields
            .iter()
            .take(SHOWN_FIELDS)
            .map(|(name, value)| (name.to_owned(), shown_value(name, value)))
            .collect()
    }

    pub fn add(&self, request: &FinishedRequest<'_>) {
        // Queries often hold secrets, and the page does not need them.
        let path = request.target.split('?').next().unwrap_or_default();
        let path = path.get(..SHOWN_PATH_LIMIT).unwrap_or(path);
        let mut record = RequestRecord {
            number: 0,
            at: clock::now(),
            method: request.method.to_owned(),
            service: request.service.to_owned(),
            path: path.to_owned(),
            status: request.status,
            micros: u64::try_from(request.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            bytes: request.bytes,
            request_fields: request.request_fields.to_owned(),
            response_fields: request.response_fields.to_owned(),
        };
        let mut list = locked(&self.list);
        record.number = list.back().map_or(1, |last| last.number + 1);
        if list.len() == RECENT_LIMIT {
            list.pop_front();
        }
        list.push_back(record);
        if self.readers.load(Ordering::Relaxed) > 0 {
            self.added.notify_all();
        }
    }

    /// The records after `number`. If there is none yet, waits up to `timeout` for one.
    pub fn after(&self, number: u64, timeout: Duration) -> Vec<RequestRecord> {
        let is_old = |last: &RequestRecord| last.number <= number;
        let nothing_new = |list: &mut VecDeque<RequestRecord>| list.back().is_none_or(is_old);
        let list = wait_while(&self.added, locked(&self.list), timeout, nothing_new);
        list.iter().filter(|record| !is_old(record)).cloned().collect()
    }
}

fn shown_value(name: &str, value: &[u8]) -> String {
    let value = String::from_utf8_lossy(value);
    let [name, text] = [name, &*value].map(str::to_ascii_lowercase);
    let holds = |text: &str, any: &[&str]| any.iter().any(|secret| text.contains(secret));
    if holds(&name, &SECRET_NAMES) || holds(&text, &SECRET_VALUES) {
        return "•••".to_owned();
    }
    // A link may carry a secret in its query or after a #, and links are in many fields. `?1` is none.
    let end = value.find(['?', '#']).filter(|at| *at > 0);
    value[..end.unwrap_or(value.len())].chars().take(SHOWN_VALUE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head::parse_request;

    #[test]
    fn fields_are_shown_while_somebody_looks_and_secrets_never_are() {
        let recent = RecentRequests::default();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nCookie: s=1\r\nX-Api-Key: 2\r\nAuthorization: 3\r\n\
            Referer: http://a/b?token=4\r\nX-Original-Url: /c#token=5\r\nSec-Websocket-Protocol: base64url.Bearer.6\r\n\
            X-Data: eyJhbGciOiJub25lIn0\r\nSec-Fetch-User: ?1\r\n\r\n";
        let request = parse_request(head).unwrap().unwrap();
        assert!(recent.shown_fields(&request.fields).is_empty());
        let reader = recent.reader();
        let shown = recent.shown_fields(&request.fields);
        let values: Vec<&str> = shown.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["a", "•••", "•••", "•••", "http://a/b", "/c", "•••", "•••", "?1"]);
        drop(reader);
        assert!(recent.shown_fields(&request.fields).is_empty());
    }

    #[test]
    fn the_last_ones_are_kept_without_their_queries() {
        let recent = RecentRequests::default();
        for status in 0..300 {
            let target = "/a?token=secret";
            recent.add(&FinishedRequest {
                method: "GET",
                service: "api",
                target,
                status,
                began: Instant::now(),
                reason: "",
                bytes: 0,
                request_fields: &[],
                response_fields: &[],
            });
        }
        let records = recent.after(0, Duration::ZERO);
        assert_eq!((records.len(), records[0].status, records[199].status), (RECENT_LIMIT, 100, 299));
        assert_eq!((records[0].path.as_str(), records[0].number), ("/a", 101));
        assert_eq!(recent.after(299, Duration::ZERO).len(), 1);
        assert!(recent.after(300, Duration::from_millis(1)).is_empty());
    }
}
