//! `-d`: the same command in the background. It says its usual words, and returns once it is ready.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::context::Call;
use super::say;
use crate::error::Error;
use crate::error::Result;
use crate::os::daemon;
use crate::os::daemon::Begin;
use crate::os::daemon::Started;
use crate::os::daemon::Stream;
use crate::os::process;
use crate::state::runs;

/// Everything of ours ends in under a second; the rest is patience with a busy machine.
const ENDING: Duration = Duration::from_secs(10);

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
        None => {
            daemon::notify("READY=1");
            Ok(())
        }
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

/// Asks it to end, waits until it has, and tidies up behind it. Its lock, not its number, says that it is ours.
pub fn end(call: &Call, what: &str, pid: u32) -> Result<()> {
    let deadline = Instant::now() + ENDING;
    if runs::is_alive(&call.home, pid) {
        process::terminate(pid);
    }
    while runs::is_alive(&call.home, pid) {
        if Instant::now() >= deadline {
            return Err(Error::new(format!("{what} (PID {pid}) does not end"))
                .hint(format!("Look at it, then: kill -9 {pid}")));
        }
        call.stop.wait_for(Duration::from_millis(20));
        call.go_on()?;
    }
    runs::forget(&call.home, pid);
    Ok(())
}
