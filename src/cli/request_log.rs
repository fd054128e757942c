//! The proxy's requests, a line each. A request's thread only adds its line to a buffer; another thread writes what has
//! come together, so that a busy proxy makes few system calls for its log.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use super::log_lines;
use super::log_lines::LogFormat;
use super::say;
use super::say::Say;
use crate::error::Result;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::clock;
use crate::os::lock::FOREVER;
use crate::os::lock::locked;
use crate::os::lock::wait_while;
use crate::proxy::recent_requests::FinishedRequest;

/// A line is written this long after its request at the latest.
const WRITE_INTERVAL: Duration = Duration::from_millis(100);
/// Some 20,000 lines. What does not fit is counted and left out: a slow disk must not slow the requests down.
const BUFFER_LIMIT: usize = 2 * 1024 * 1024;

pub struct RequestLog {
    say: Say,
    lines: Mutex<LineBuffer>,
    added: Condvar,
}

#[derive(Default)]
struct LineBuffer {
    text: String,
    left_out: usize,
    ended: bool,
    /// The second of the last line and how it is written, which costs more than the rest of a line.
    second: u64,
    stamp: String,
}

/// The log and its thread. Dropping it writes what is left.
pub struct RequestLogWriter {
    pub log: Arc<RequestLog>,
    stop: Stop,
    thread: ThreadGroup,
}

impl RequestLogWriter {
    pub fn start(say: &Say) -> Result<Self> {
        let log = Arc::new(RequestLog { say: say.clone(), lines: Mutex::default(), added: Condvar::new() });
        let (own, stop, thread) = (Arc::clone(&log), Stop::new(), ThreadGroup::default());
        let stopped = stop.clone();
        thread.spawn("request-log", move || while own.write(&stopped) {})?;
        Ok(Self { log, stop, thread })
    }
}

impl Drop for RequestLogWriter {
    fn drop(&mut self) {
        self.stop.stop();
        locked(&self.log.lines).ended = true;
        self.log.added.notify_all();
        self.thread.join(|| ());
    }
}

impl RequestLog {
    pub fn add(&self, request: &FinishedRequest<'_>) {
        let format = log_lines::of_records();
        if format.is_none() && self.say.quiet {
            return;
        }
        let took = request.began.elapsed();
        let since = clock::since_1970();
        let mut lines = locked(&self.lines);
        if lines.text.len() > BUFFER_LIMIT {
            lines.left_out += 1;
            return;
        }
        if lines.second != since.as_secs() {
            lines.second = since.as_secs();
            clock::now().to_string().trim_end_matches('Z').clone_into(&mut lines.stamp);
        }
        let is_first = lines.text.is_empty();
        let LineBuffer { text, stamp, .. } = &mut *lines;
        let millis = since.subsec_millis();
        let level = if request.reason.is_empty() { "INFO" } else { "WARN" };
        // Writing to a String cannot fail.
        let _ = match format {
            Some(LogFormat::Json) => {
                let mut line = in_json(request, took);
                line["time"] = format!("{stamp}.{millis:03}Z").into();
                line["level"] = level.into();
                writeln!(text, "{line}")
            }
            None if self.say.json => {
                let mut line = in_json(request, took);
                line["event"] = "request".into();
                writeln!(text, "{line}")
            }
            Some(LogFormat::Text) => {
                write!(text, "{stamp}.{millis:03}Z {level:5} ").map(|()| in_words(text, request, took))
            }
            None => write!(text, "  ").map(|()| in_words(text, request, took)),
        };
        drop(lines);
        if is_first {
            self.added.notify_one();
        }
    }

    /// Waits for lines and writes them. False after the last ones.
    fn write(&self, stop: &Stop) -> bool {
        drop(wait_while(&self.added, locked(&self.lines), FOREVER, |lines| {
            lines.text.is_empty() && !lines.ended
        }));
        stop.wait_for(WRITE_INTERVAL);
        let mut lines = locked(&self.lines);
        let text = std::mem::take(&mut lines.text);
        let left_out = std::mem::take(&mut lines.left_out);
        let ended = lines.ended;
        drop(lines);
        if !text.is_empty() {
            say::put_unchanged(text.trim_end(), false);
        }
        if left_out > 0 {
            log::warn!("{left_out} requests are not in the log: it could not be written fast enough");
        }
        !ended
    }
}

/// `200 GET api /path 3.1 ms`. A query may hold secrets, so it is left out.
fn in_words(line: &mut String, request: &FinishedRequest<'_>, took: Duration) {
    let FinishedRequest { method, status, .. } = request;
    let service = if request.service.is_empty() { "-" } else { request.service };
    let path = request.target.split('?').next().unwrap_or_default();
    let _ = write!(line, "{status} {method} {service} {path} {:.1} ms", took.as_secs_f64() * 1000.0);
    if !request.reason.is_empty() {
        let _ = write!(line, ": {}", say::clean(request.reason));
    }
    line.push('\n');
}

fn in_json(request: &FinishedRequest<'_>, took: Duration) -> serde_json::Value {
    let path = request.target.split('?').next().unwrap_or_default();
    json!({ "status": request.status, "method": request.method, "service": request.service, "path": path,
        "micros": took.as_micros(), "reason": request.reason })
}
