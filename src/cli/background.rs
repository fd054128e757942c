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
    let code = begun(call, &begin, true)?;
    if code == 0 {
        call.say.event(&json!({ "event": "background", "log": log }));
    }
    Ok(Some(code))
}

/// Runs ourselves in the background, repeating aloud what is said there. The exit code is 0 once it is ready.
pub fn begun(call: &Call, begin: &Begin<'_>, aloud: bool) -> Result<u8> {
    let mut cut = None;
    let started = |begun| {
        // Until it is ready, Ctrl-C means it, though it has left the terminal.
        cut = call.stop.on_stop(move || process::terminate(begun));
    };
    let repeat = |stream, line: &str| {
        if aloud {
            say::repeat(line, stream == Stream::Err);
        }
    };
    match daemon::start(begin, started, repeat)? {
        Started::Ended { code } => Ok(code),
        Started::Ready => Ok(0),
    }
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
