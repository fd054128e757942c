//! The lines of a log: each begins with a UTC time and a level, as text or as one JSON object.
//!
//! What a command in the background prints once it is ready is its log. In the foreground, only the records of the
//! libraries and the proxy's requests are written so, and only if a format was chosen.

use std::sync::OnceLock;

use serde_json::Value;
use serde_json::json;

use crate::error::Error;
use crate::error::Result;
use crate::os::clock;
use crate::os::detach;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Of `2026-03-02T10:30:00.000Z`.
const STAMP_LENGTH: usize = 24;

static CHOSEN: OnceLock<LogFormat> = OnceLock::new();

/// Sets the format that `--log-format` or `CONNECT_LOG_FORMAT` names.
pub fn choose(name: &str) -> Result<()> {
    let format = match name {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => return Err(Error::unknown("log format", name).hint("Use text or json")),
    };
    let _ = CHOSEN.set(format);
    Ok(())
}

/// The format of what is written into a log file.
pub fn of_files() -> LogFormat {
    CHOSEN.get().copied().unwrap_or(LogFormat::Text)
}

/// The format of log records. `None`: for people at a terminal.
pub fn of_records() -> Option<LogFormat> {
    CHOSEN.get().copied().or_else(of_output)
}

/// The format of all else that is printed.
pub fn of_output() -> Option<LogFormat> {
    detach::writes_log().then(of_files)
}

impl LogFormat {
    /// The log lines for a text that was meant for a terminal. Its marks tell the level.
    pub fn lines(self, text: &str, is_trouble: bool) -> String {
        let level = |line: &str| match line.trim_start() {
            line if line.starts_with("[x]") => "ERROR",
            line if is_trouble && line.starts_with('{') => "ERROR",
            line if line.starts_with("[!]") => "WARN",
            _ => "INFO",
        };
        if let (Self::Json, Ok(Value::Object(event))) = (self, serde_json::from_str(text)) {
            let mut all = json!({ "time": clock::stamp(), "level": level(text) });
            event.into_iter().for_each(|(name, value)| all[name] = value);
            return all.to_string();
        }
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| self.line(level(line), line)).collect::<Vec<_>>().join("\n")
    }

    pub fn line(self, level: &str, message: &str) -> String {
        let time = clock::stamp();
        match self {
            Self::Text => format!("{time} {level:5} {message}"),
            Self::Json => json!({ "time": time, "level": level, "message": message }).to_string(),
        }
    }
}

/// The message of a log line, without time and level.
pub fn message_of(line: &str) -> String {
    if let Ok(Value::Object(object)) = serde_json::from_str(line) {
        return object.get("message").and_then(Value::as_str).unwrap_or(line).to_owned();
    }
    let is_stamped = line.as_bytes().get(STAMP_LENGTH - 1) == Some(&b'Z');
    line.get(STAMP_LENGTH + " LEVEL ".len()..).filter(|_| is_stamped).unwrap_or(line).to_owned()
}
