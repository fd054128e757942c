//! The audit log: one JSON line for each security event. Each line carries the SHA-256 of the line before it, so a
//! line that was changed, removed or inserted is detected. Each line also ends with a checksum of its own, because no later
//! line covers the last one.
//!
//! One thread writes the file; callers only queue events. The hub never shortens the log. While the disk is full, events
//! wait in memory; if too many wait, the log says later how many are missing.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::SyncSender;
use std::time::Duration;
use std::time::Instant;

use serde_json::Map;
use serde_json::Value;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::limiter::Limiter;
use crate::model::limiter::RateLimit;
use crate::net::threads::ThreadGroup;
use crate::os::clock;
use crate::os::files;
use crate::os::lock::locked;
use crate::os::secret;

/// The `prev` of the first line.
const FIRST_PREV: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Events that may wait for a slow disk. When the queue is full, callers wait as well.
const AUDIT_QUEUE: usize = 4096;
/// Longer than any line of ours; a longer one was not written by a hub.
const AUDIT_LINE_LIMIT: u64 = 64 * 1024;

/// How often a failed write is retried.
const AUDIT_RETRY: Duration = Duration::from_secs(1);
/// Hexadecimal digits of a line's own checksum.
const AUDIT_SUM_DIGITS: usize = 16;

/// How many refusals of one caller are logged: a client in a retry loop must not fill the disk.
const AUDITED_REFUSALS: RateLimit = RateLimit { name: "audited-refusals", allowed: 20, window: 60 };
/// The event that anybody with a link may cause as often as it is wanted. The first of a minute gets a line at once; those
/// that differ from it only in their time are counted, and get one line together when the minute ends.
const COUNTED_EVENT: &str = "share.joined";
const COUNTED_FOR: Duration = Duration::from_mins(1);

type AuditEvent = Map<String, Value>;

pub struct Audit {
    queue: Option<SyncSender<AuditEvent>>,
    refusals: Mutex<Limiter>,
    threads: ThreadGroup,
}

/// An event's fields: pairs of name and value.
pub type AuditDetails<'a> = &'a [(&'a str, &'a str)];

impl Audit {
    /// Opens the log, cuts off a last line that a crash left unfinished, and starts the writer.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = log_file(folder);
        let mut file = files::append(&path)?;
        let last = repair(&mut file).or_say(|| format!("Cannot read {}", path.display()))?;
        let (queue, events) = mpsc::sync_channel(AUDIT_QUEUE);
        let length = file.metadata().or_say(|| format!("Cannot read {}", path.display()))?.len();
        let (waiting, counts, counting_since) = (VecDeque::new(), HashMap::new(), Instant::now());
        let mut log =
            AuditFile { file, length, last, waiting, counts, counting_since, missing: 0, is_failing: false };
        let threads = ThreadGroup::default();
        threads.spawn("audit", move || log.write_all(&events))?;
        Ok(Self { queue: Some(queue), refusals: Mutex::default(), threads })
    }

    /// Queues an event with the current time. It cannot fail: a hub whose log cannot be written still serves.
    pub fn say(&self, event: &str, details: AuditDetails<'_>) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(new_event(event, details));
        }
    }

    /// Queues a refusal unless this caller has had too many lately. The first entry of `details` names the caller.
    pub fn say_refusal(&self, event: &str, details: AuditDetails<'_>) {
        let who = details.first().map_or("", |(_, who)| who);
        if locked(&self.refusals).allows(&AUDITED_REFUSALS, who, clock::now()) {
            self.say(event, details);
        }
    }
}

/// Closes the queue and waits until the writer has written what is in it.
impl Drop for Audit {
    fn drop(&mut self) {
        self.queue = None;
        self.threads.join(|| ());
    }
}

fn new_event(event: &str, details: AuditDetails<'_>) -> AuditEvent {
    let mut line = Map::new();
    line.insert("at".into(), Value::String(clock::now().to_string()));
    line.insert("event".into(), Value::String(event.to_owned()));
    for (name, value) in details {
        line.insert((*name).to_owned(), Value::String((*value).to_owned()));
    }
    line
}

/// The log file; the writer thread owns it.
struct AuditFile {
    file: File,
    /// Total length of the complete lines, in bytes.
    length: u64,
    /// The hash of the last line, which the next line carries.
    last: String,
    waiting: VecDeque<AuditEvent>,
    /// How many equal events there were in this minute. The events are without their time.
    counts: HashMap<AuditEvent, u64>,
    counting_since: Instant,
    /// How many events were dropped because too many were waiting.
    missing: u64,
    is_failing: bool,
}

impl AuditFile {
    /// Writes events until the queue is closed. While events wait after a failed write, or are counted, it also wakes up.
    fn write_all(&mut self, events: &Receiver<AuditEvent>) {
        loop {
            let next = if self.waiting.is_empty() && self.counts.is_empty() {
                events.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                events.recv_timeout(AUDIT_RETRY)
            };
            if self.counting_since.elapsed() >= COUNTED_FOR {
                self.end_counts();
            }
            match next {
                Ok(event) => self.accept(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.write_waiting();
        }
        self.end_counts();
        self.write_waiting();
        let _ = self.file.sync_all();
    }

    /// Counts an event that repeats one of this minute; any other waits to be written.
    fn accept(&mut self, event: AuditEvent) {
        if event["event"] == COUNTED_EVENT && self.counts.len() < AUDIT_QUEUE {
            let mut equal = event.clone();
            equal.remove("at");
            let count = self.counts.entry(equal).or_default();
            *count += 1;
            if *count > 1 {
                return;
            }
        }
        self.waiting.push_back(event);
    }

    /// Ends the minute: what was counted after an event becomes one line.
    fn end_counts(&mut self) {
        self.counting_since = Instant::now();
        for (mut event, count) in self.counts.drain().filter(|(_, count)| *count > 1) {
            event.insert("at".into(), Value::String(clock::now().to_string()));
            event.insert("count".into(), Value::String((count - 1).to_string()));
            self.waiting.push_back(event);
        }
    }

    /// Writes the waiting events in order, up to the first failure. An event is removed only once it is in the file.
    /// If events were dropped, the next line says how many.
    fn write_waiting(&mut self) {
        while let Some(event) = self.waiting.front() {
            let line = sealed(event.clone(), &self.last);
            if let Err(error) = self.write(&line) {
                if !std::mem::replace(&mut self.is_failing, true) {
                    log::error!("the audit log cannot be written, its events wait: {error}");
                }
                while self.waiting.len() > AUDIT_QUEUE {
                    self.waiting.pop_front();
                    self.missing += 1;
                }
                return;
            }
            self.is_failing = false;
            self.waiting.pop_front();
            if self.missing > 0 {
                let count = std::mem::take(&mut self.missing).to_string();
                self.waiting.push_front(new_event("audit.missing", &[("count", &count)]));
            }
        }
    }

    /// Writes one line. It first cuts off what an earlier failed write may have left, so lines are always whole.
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.length += line.len() as u64 + 1;
        self.last = secret::hash(line);
        Ok(())
    }
}

/// The event as a line: with the hash of the line before it, and at its end a checksum of the rest.
fn sealed(mut event: AuditEvent, prev: &str) -> String {
    event.insert("prev".into(), Value::String(prev.to_owned()));
    let line = Value::Object(event).to_string();
    let sum = secret::hash(&line);
    format!("{},\"sum\":\"{}\"}}", line.trim_end_matches('}'), &sum[..AUDIT_SUM_DIGITS])
}

/// Whether the line's own checksum is right.
fn is_sealed(line: &[u8]) -> bool {
    let Some(line) = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix("\"}")) else {
        return false;
    };
    let Some((line, sum)) = line.rsplit_once(",\"sum\":\"") else { return false };
    secret::hash(&format!("{line}}}"))[..AUDIT_SUM_DIGITS] == *sum
}

pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

/// Returns the hash that the next line must carry, and cuts off a last line that a crash left unfinished. Only the end of
/// the file is read, as much as holds the last complete line: the log may be large.
fn repair(file: &mut File) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(2 * AUDIT_LINE_LIMIT);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    (&*file).take(2 * AUDIT_LINE_LIMIT).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        log::warn!("the audit log's last line was torn by a crash and is cut off");
        file.set_len(from + whole as u64)?;
    }
    let last = tail[..whole].split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    Ok(last.map_or_else(|| FIRST_PREV.to_owned(), |line| secret::sha256(line).to_string()))
}

/// Checks the whole log. Returns the number of lines, or an error that names the first line that does not fit.
pub fn verify(folder: &Path) -> Result<u64> {
    let path = log_file(folder);
    let file = File::open(&path).or_say(|| format!("Cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let (mut expected, mut count) = (FIRST_PREV.to_owned(), 0);
    loop {
        let mut line = Vec::new();
        (&mut reader)
            .take(AUDIT_LINE_LIMIT)
            .read_until(b'\n', &mut line)
            .or_say(|| "Cannot read the audit log")?;
        let Some(line) = line.strip_suffix(b"\n") else {
            // The hub may be writing this line right now, so it has no end yet.
            if (line.len() as u64) < AUDIT_LINE_LIMIT && reader.fill_buf().is_ok_and(<[u8]>::is_empty) {
                return Ok(count);
            }
            return Err(changed(&path, count + 1));
        };
        count += 1;
        let value: Option<Value> = serde_json::from_slice(line).ok();
        let prev = value.as_ref().and_then(|value| value.get("prev")).and_then(Value::as_str);
        if prev != Some(&expected) || !is_sealed(line) {
            return Err(changed(&path, count));
        }
        expected = secret::sha256(line).to_string();
    }
}

fn changed(path: &Path, line: u64) -> Error {
    Error::new(format!("The audit log was changed at line {line}"))
        .hint(format!("Somebody changed {} there or just before; compare it with a copy", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_removed_or_swapped_line_is_found() {
        let folder = std::env::temp_dir().join(secret::id("connect-audit"));
        files::private_dir(&folder).unwrap();
        for round in 0..2 {
            let audit = Audit::open(&folder).unwrap();
            for n in 0..5 {
                audit.say("test", &[("n", &format!("{round}-{n}"))]);
            }
        }
        assert_eq!(verify(&folder).unwrap(), 10);
        let text = std::fs::read_to_string(log_file(&folder)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for at in 0..10 {
            let (mut changed, mut removed, mut swapped) = (lines.clone(), lines.clone(), lines.clone());
            let altered = changed[at].replace("test", "tost");
            changed[at] = &altered;
            if at == 9 {
                // Taking away the end leaves no trace in what is left; a copy of the last line does.
                std::fs::write(log_file(&folder), changed.join("\n") + "\n").unwrap();
                assert!(verify(&folder).is_err(), "the last line");
                continue;
            }
            removed.remove(at);
            swapped.swap(at, at + 1);
            for tampered in [changed, removed, swapped] {
                std::fs::write(log_file(&folder), tampered.join("\n") + "\n").unwrap();
                assert!(verify(&folder).is_err(), "line {at}");
            }
        }
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_chain_goes_on() {
        let folder = std::env::temp_dir().join(secret::id("connect-audit"));
        files::private_dir(&folder).unwrap();
        Audit::open(&folder).unwrap().say("one", &[]);
        let mut file = files::append(&log_file(&folder)).unwrap();
        file.write_all(b"{\"at\":\"torn").unwrap();
        Audit::open(&folder).unwrap().say("two", &[]);
        assert_eq!(verify(&folder).unwrap(), 2);
    }
}
