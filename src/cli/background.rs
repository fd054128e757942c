//! `-d`: the same command in the background. It says its usual words, and returns once it is ready.

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::call::Call;
use super::say;
use crate::error::Error;
use crate::error::Result;
use crate::os::detach;
use crate::os::detach::BackgroundStart;
use crate::os::detach::OutputStream;
use crate::os::detach::StartOutcome;
use crate::os::process;
use crate::state::runs;

/// Everything of ours ends in under a second; the rest is patience with a busy machine.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// With `-d` in the foreground: starts the one in the background, and returns the exit code to end with.
pub fn detach(call: &Call, kind: &str, name: &str, environment: &[(&str, &str)]) -> Result<Option<u8>> {
    if !call.args.flag("detach") || call.is_background() {
        return Ok(None);
    }
    let log = log_file(call, kind, name);
    let begin = BackgroundStart { arguments: detach::own_arguments(), environment, log: &log };
    Ok(Some(say_begun(call, start(call, &begin, true)?, &log)))
}

/// Arguments for another of our commands, with the hub and the config file of this one.
pub fn arguments(call: &Call, words: &[&str]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
    for option in ["hub", "config"] {
        if let Some(value) = call.args.value(option) {
            arguments.extend([format!("--{option}").into(), value.into()]);
        }
    }
    arguments
}

/// Runs ourselves in the background, repeating aloud what is said there.
pub fn start(call: &Call, begin: &BackgroundStart<'_>, aloud: bool) -> Result<StartOutcome> {
    let mut cut = None;
    // Until it is ready, Ctrl-C means it, though it has left the terminal.
    let started = |pid| cut = call.stop.on_stop(move || process::terminate(pid));
    let repeat = |stream, line: &str| {
        if aloud {
            say::put(line, stream == OutputStream::Err);
        }
    };
    detach::start(begin, started, repeat)
}

/// Tells scripts about it; the exit code to end with.
pub fn say_begun(call: &Call, started: StartOutcome, log: &Path) -> u8 {
    if let StartOutcome::Ready { pid } = started {
        call.say.event(&json!({ "event": "background", "pid": pid, "log": log }));
    }
    started.code()
}

/// In the background: ready, so whoever started it may go on.
pub fn ready(call: &Call) -> Result<()> {
    match &call.background_log {
        Some(log) => {
            call.say.line(&format!("  Log: {}", log.display()));
            detach::ready(log)
        }
        None => {
            detach::notify("READY=1");
            Ok(())
        }
    }
}

/// How to end it, as the last line for the user.
pub fn how_to_end(call: &Call, name: &str, in_front: &str) {
    call.say.line("");
    match &call.background_log {
        Some(_) => call.say.line(&format!("  Runs in the background. Stop it: connect stop {name}")),
        None => call.say.line(&format!("  {in_front}")),
    }
}

fn log_file(call: &Call, kind: &str, name: &str) -> PathBuf {
    call.home.file(&format!("logs/{kind}-{name}.log"))
}

/// Asks it to end, waits until it has, and tidies up behind it. Its lock, not its number, says that it is ours.
pub fn end(call: &Call, what: &str, pid: u32) -> Result<()> {
    let deadline = Instant::now() + END_TIMEOUT;
    if runs::is_alive(&call.home, pid) {
        process::terminate(pid);
    }
    while runs::is_alive(&call.home, pid) {
        if Instant::now() >= deadline {
            return Err(Error::new(format!("{what} (PID {pid}) does not end"))
                .hint(format!("Look at it, then: kill -9 {pid}")));
        }
        call.stop.wait_for(Duration::from_millis(20));
        call.fail_if_stopped()?;
    }
    runs::forget(&call.home, pid);
    Ok(())
}
