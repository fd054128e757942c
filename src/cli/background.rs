//! `-d`: the same command in the background. It says its usual words, and returns once it is ready.

use std::path::PathBuf;

use serde_json::json;

use super::context::Call;
use super::say;
use crate::error::Result;
use crate::os::daemon;
use crate::os::daemon::Begin;
use crate::os::daemon::Started;
use crate::os::daemon::Stream;
use crate::os::process;

/// With `-d` in the foreground: starts the one in the background, and returns the exit code to end with.
pub fn detach(call: &Call, kind: &str, name: &str, environment: &[(&str, &str)]) -> Result<Option<u8>> {
    if !call.args.flag("detach") || daemon::own_log().is_some() {
        return Ok(None);
    }
    let log = log_file(call, kind, name);
    let begin = Begin { arguments: daemon::own_arguments(), environment, log: &log };
    match begun(call, &begin, true)? {
        Begun::Ready { pid } => {
            call.say.event(&json!({ "event": "background", "pid": pid, "log": log }));
            Ok(Some(0))
        }
        Begun::Ended { code } => Ok(Some(code)),
    }
}

/// How it went with the one in the background.
pub enum Begun {
    Ready {
        pid: u32,
    },
    /// It ended before it was ready, and has said why.
    Ended {
        code: u8,
    },
}

/// Runs ourselves in the background, repeating aloud what is said there.
pub fn begun(call: &Call, begin: &Begin<'_>, aloud: bool) -> Result<Begun> {
    let (mut cut, mut pid) = (None, 0);
    let started = |begun| {
        pid = begun;
        // Until it is ready, Ctrl-C means it, though it has left the terminal.
        cut = call.stop.on_stop(move || process::terminate(begun));
    };
    let repeat = |stream, line: &str| {
        if aloud {
            say::repeat(line, stream == Stream::Err);
        }
    };
    Ok(match daemon::start(begin, started, repeat)? {
        Started::Ended { code } => Begun::Ended { code },
        Started::Ready => Begun::Ready { pid },
    })
}

/// In the background: ready, so whoever started it may go on.
pub fn ready(call: &Call) -> Result<()> {
    match daemon::own_log() {
        Some(log) => {
            call.say.line(&format!("  Log: {}", log.display()));
            daemon::ready(&log)
        }
        None => Ok(()),
    }
}

/// How to end it, as the last line for the user.
pub fn how_to_end(call: &Call, name: &str, in_front: &str) {
    call.say.line("");
    match daemon::own_log() {
        Some(_) => call.say.line(&format!("  Runs in the background. Stop it: connect stop {name}")),
        None => call.say.line(&format!("  {in_front}")),
    }
}

fn log_file(call: &Call, kind: &str, name: &str) -> PathBuf {
    call.home.file(&format!("logs/{kind}-{name}.log"))
}
