//! Logs of what runs in the background: shown, followed, and asked for their last words.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::path::Path;
use std::process;
use std::time::Duration;

use serde_json::json;

use super::CommandResult;
use super::call::Call;
use super::log_lines;
use super::say;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::detach;
use crate::os::files;
use crate::state::runs::DAEMON_LOG;

/// How often a log that is followed is looked at.
const FOLLOW_POLL: Duration = Duration::from_millis(200);
/// What is shown of a long log.
const TAIL_SIZE: u64 = 64 * 1024;
/// Read at once.
const PIECE_SIZE: u64 = 256 * 1024;

/// Prints the log's last part; with `--follow` also what is added, until Ctrl-C.
pub fn show(call: &Call, path: &Path, how_to_begin: &str) -> CommandResult {
    let Some(mut log) = LogReader::open(path)? else {
        return Err(Error::new("There is no log yet").hint(how_to_begin));
    };
    log.print(call)?;
    let mut put_aside = false;
    while call.args.flag("follow") && !call.stop.wait_for(FOLLOW_POLL) {
        log.print(call)?;
        // A moment passes from when the log gets its other name to when its writer turns to the next one, so what
        // is in the old one is complete a turn later.
        if put_aside && let Some(next) = LogReader::open(path)? {
            log = LogReader { at: 0, ..next };
            log.print(call)?;
        }
        put_aside = !files::is_same(&log.file, path);
    }
    Ok(0)
}

/// The last thing of note that stands in a log: hints and other indented lines belong to the one before.
pub fn last_words(path: &Path) -> Option<String> {
    let tail = LogReader::open(path).ok()??.piece().ok()?;
    let text = String::from_utf8_lossy(&tail).into_owned();
    let mut messages = text.lines().rev().map(log_lines::message_of);
    messages.find(|message| message.starts_with(|c: char| !c.is_whitespace()))
}

/// Puts into the daemon's log what happens to a service that this process exposes. The daemon itself prints it there.
pub fn note_exposure(call: &Call, level: &str, message: &str) {
    let log = call.home.file(DAEMON_LOG);
    if call.background_log.as_ref() == Some(&log) {
        return;
    }
    let command = call.args.command.map_or("?", |command| command.path);
    let message = format!("{message} (connect {command}, PID {})", process::id()).replace('\n', " ");
    let line = log_lines::of_files().line(level, &say::clean(&message));
    if let Err(error) = detach::add_line(&log, &line) {
        log::debug!("{error}");
    }
}

/// A log that is read as it grows, also when it has another name by then.
struct LogReader {
    file: File,
    at: u64,
}

impl LogReader {
    /// From its last part on; `None` if nothing was logged yet.
    fn open(path: &Path) -> Result<Option<Self>> {
        let length = path.metadata().map_or(0, |log| log.len());
        let reader = || Ok(Self { file: files::append(path)?, at: length.saturating_sub(TAIL_SIZE) });
        (length > 0).then(reader).transpose()
    }

    /// Prints what was added.
    fn print(&mut self, call: &Call) -> Result<()> {
        loop {
            let piece = self.piece()?;
            if piece.is_empty() {
                return Ok(());
            }
            for line in String::from_utf8_lossy(&piece).lines() {
                call.say.result(line);
                call.say.event(&json!({ "line": line }));
            }
        }
    }

    fn piece(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.file.metadata().and_then(|log| {
            // Somebody has emptied it.
            if self.at > log.len() {
                self.at = 0;
            }
            self.file.seek(SeekFrom::Start(self.at))?;
            (&self.file).take(PIECE_SIZE).read_to_end(&mut bytes)
        });
        read.or_say(|| "Cannot read the log")?;
        // A long one ends with a line.
        if bytes.len() as u64 == PIECE_SIZE
            && let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n')
        {
            bytes.truncate(end + 1);
        }
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}
