//! The audit log: one JSON line for each security event, each with the SHA-256 of the line before it, so
//! that no line can be changed, taken out or put in without the rest telling.
//!
//! A thread of its own writes; whoever audits only queues. The log is never shortened by the hub.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use serde_json::Map;
use serde_json::Value;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::net::crew;
use crate::os::clock;
use crate::os::files;
use crate::os::secret;

/// The `prev` of the first line.
const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Events that may wait for a slow disk; then whoever makes more waits too.
const QUEUE: usize = 4096;
/// No line of ours comes near this.
const LINE_LIMIT: u64 = 64 * 1024;

pub struct Audit {
    queue: Option<SyncSender<Map<String, Value>>>,
    thread: Option<JoinHandle<()>>,
}

/// `event!(audit, "key.made", "key" => id, …)` without the macro: pairs of names and values.
pub type Details<'a> = &'a [(&'a str, &'a str)];

impl Audit {
    pub fn open(folder: &Path) -> Result<Self> {
        let path = log_file(folder);
        let mut file = files::append(&path)?;
        let mut last = mend(&mut file).or_say(|| format!("Cannot read {}", path.display()))?;
        let (queue, events) = mpsc::sync_channel::<Map<String, Value>>(QUEUE);
        let thread = crew::spawn("audit", move || {
            for mut event in events {
                event.insert("prev".into(), Value::String(last.clone()));
                let line = Value::Object(event).to_string();
                last = secret::hash(&line);
                if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
                    log::error!("the audit log cannot be written: {error}");
                }
            }
            let _ = file.sync_all();
        });
        Ok(Self { queue: Some(queue), thread: Some(thread.or_say(|| "Cannot start a thread")?) })
    }

    pub fn say(&self, event: &str, details: Details<'_>) {
        let mut line = Map::new();
        line.insert("at".into(), Value::String(clock::now().to_string()));
        line.insert("event".into(), Value::String(event.to_owned()));
        for (name, value) in details {
            line.insert((*name).to_owned(), Value::String((*value).to_owned()));
        }
        if let Some(queue) = &self.queue {
            let _ = queue.send(line);
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

/// The hash that the next line must carry. A last line without its end is what a crash leaves; it is cut off.
fn mend(file: &mut File) -> std::io::Result<String> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(2 * LINE_LIMIT);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    (&*file).take(2 * LINE_LIMIT).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        log::warn!("the audit log's last line was torn by a crash and is cut off");
        file.set_len(from + whole as u64)?;
    }
    let last = tail[..whole].split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    Ok(last.map_or_else(|| START.to_owned(), |line| secret::sha256(line).to_string()))
}

/// Reads the whole log. Returns how many lines hold together, or says where they do not.
pub fn verify(folder: &Path) -> Result<u64> {
    let path = log_file(folder);
    let file = File::open(&path).or_say(|| format!("Cannot read {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let (mut expected, mut count) = (START.to_owned(), 0);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).or_say(|| "Cannot read the audit log")?;
        // A line that is being written at this moment has no end yet.
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(count) };
        count += 1;
        let value: Option<Value> = serde_json::from_slice(line).ok();
        let prev = value.as_ref().and_then(|value| value.get("prev")).and_then(Value::as_str);
        if prev != Some(&expected) {
            return Err(Error::new(format!("The audit log does not hold together at line {count}")).hint(
                format!("Somebody changed {} before that line; compare it with a copy", path.display()),
            ));
        }
        expected = secret::sha256(line).to_string();
    }
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
        for at in 0..9 {
            let (mut changed, mut removed, mut swapped) = (lines.clone(), lines.clone(), lines.clone());
            let altered = changed[at].replace("test", "tost");
            changed[at] = &altered;
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
