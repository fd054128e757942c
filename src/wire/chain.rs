//! A chained log as lines: one JSON object each, with its number (`seq`), the hash of the line before it (`prev`) and a
//! checksum of its own (`sum`), because no later line covers the last one.

use serde_json::Map;
use serde_json::Value;

use crate::model::hub_records::ChainHead;

/// Longer than any line of ours; a longer one was not written by us.
pub const CHAIN_LINE_LIMIT: u64 = 64 * 1024;
/// Hexadecimal digits of a line's own checksum.
const CHAIN_SUM_DIGITS: usize = 16;

pub type LineFields = Map<String, Value>;
/// SHA-256 in hexadecimal digits.
pub type HashFn = fn(&[u8]) -> String;

/// A line whose own checksum is right.
pub struct ChainLine {
    pub fields: LineFields,
    /// What the log's head is once it ends with this line.
    pub head: ChainHead,
}

/// The line as people watch it. They know its time, and whose log it is.
pub fn in_words(fields: &LineFields) -> String {
    let is_shown = |name: &str, value: &Value| !["v", "at", "event", "hub"].contains(&name) && value != "";
    let shown = fields.iter().filter(|(name, value)| is_shown(name, value));
    let shown = shown.map(|(name, value)| format!("{name} {}", value.to_string().trim_matches('"')));
    let event = fields.get("event").and_then(Value::as_str).unwrap_or_default();
    format!("{event}: {}", shown.collect::<Vec<_>>().join(", "))
}

/// Writes the line that follows `head`, and moves `head` to it.
pub fn seal(mut fields: LineFields, head: &mut ChainHead, hash: HashFn) -> String {
    head.count += 1;
    fields.insert("seq".into(), head.count.into());
    fields.insert("prev".into(), std::mem::take(&mut head.hash).into());
    let line = Value::Object(fields).to_string();
    let sum = hash(line.as_bytes());
    let line = format!("{},\"sum\":\"{}\"}}", &line[..line.len() - 1], &sum[..CHAIN_SUM_DIGITS]);
    head.hash = hash(line.as_bytes());
    line
}

pub fn parse(line: &[u8], hash: HashFn) -> Option<ChainLine> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\"}")?;
    let (front, sum) = text.rsplit_once(",\"sum\":\"")?;
    if hash(format!("{front}}}").as_bytes())[..CHAIN_SUM_DIGITS] != *sum {
        return None;
    }
    let fields: LineFields = serde_json::from_slice(line).ok()?;
    let count = fields.get("seq")?.as_u64()?;
    Some(ChainLine { fields, head: ChainHead { count, hash: hash(line) } })
}

impl ChainLine {
    /// A field's text; empty if there is none.
    pub fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name).and_then(Value::as_u64)
    }

    /// Whether this is the line after `head`.
    pub fn follows(&self, head: &ChainHead) -> bool {
        self.head.count == head.count.saturating_add(1) && self.text("prev") == head.hash
    }
}
