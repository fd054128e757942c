//! The commands that stay, in the background: starting one with `-d`, telling that it is ready, and ending it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::args;
use super::call::Call;
use super::call::CommandResult;
use super::say;
use crate::error::Error;
use crate::error::Result;
use crate::os::detach;
use crate::os::detach::BackgroundStart;
use crate::os::detach::OutputStream;
use crate::os::detach::StartOutcome;
use crate::os::process;
use crate::state::runs;

/// Our commands end in under a second; a busy machine may need more.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// With `-d`: starts this same command in the background and returns the exit code to end with. `None` if the caller is
/// the one to do the work.
pub fn detach(call: &Call, kind: &str, name: &str, secret: Option<(&str, &str)>) -> Result<Option<u8>> {
    if !call.args.flag("detach") || call.is_background() {
        return Ok(None);
    }
    call.args.run.as_deref().map_or(Ok(()), process::find_command)?;
    let log = call.home.file(&format!("logs/{kind}-{name}.log"));
    let command = BackgroundStart { arguments: detach::own_arguments(), secret, log: &log };
    start(call, &command, ChildOutput::RepeatedWithPid).map(Some)
}

/// Arguments for another of our commands, with the hub and the config file of this one.
pub fn arguments(call: &Call, words: &[&str]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
    for option in ["hub", "config", "log-format"] {
        if let Some(value) = call.args.value(option) {
            // A service manager starts it in another folder.
            let file = std::path::absolute(value).ok().filter(|_| option == "config");
            arguments
                .extend([format!("--{option}").into(), file.map_or(value.into(), PathBuf::into_os_string)]);
        }
    }
    arguments
}

/// What becomes of the lines that a command in the background prints before it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildOutput {
    Dropped,
    Repeated,
    /// Repeated, and with `--json` one more object names the process and its log. The proxy's own object has both.
    RepeatedWithPid,
}

/// Runs one of our commands in the background and returns once it is ready or has ended.
pub fn start(call: &Call, command: &BackgroundStart<'_>, output: ChildOutput) -> CommandResult {
    let mut cut = None;
    // Until it is ready, Ctrl-C ends it as well. It has left the terminal, so it would not notice.
    let started = |pid| cut = call.stop.on_stop(move || process::terminate(pid));
    let as_json = call.say.json;
    let repeat = |stream, line: &str| {
        let is_err = stream == OutputStream::Err;
        let shown = if as_json { line.to_owned() } else { say::fitted(line, is_err) };
        if output != ChildOutput::Dropped {
            say::put(&shown, is_err);
        }
    };
    let words = args::parse(command.arguments.clone(), call.args.manual)?.words;
    let outcome = detach::start(command, &words, started, repeat)?;
    call.fail_if_stopped()?;
    match outcome {
        StartOutcome::Ready { pid } if output == ChildOutput::RepeatedWithPid => {
            call.say.event(&json!({ "event": "background", "pid": pid, "log": command.log }));
            Ok(0)
        }
        StartOutcome::Ready { .. } => Ok(0),
        StartOutcome::Ended { code } => Ok(code),
    }
}

/// This command is ready. In the background the process that started it returns now; under a service manager the
/// unit counts as started.
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

/// The last line for the user: how to end the command.
pub fn how_to_end(call: &Call, name: &str, in_front: &str) {
    call.say.line("");
    match &call.background_log {
        Some(_) => call.say.line(&format!("  Runs in the background. Stop it: connect stop {name}")),
        None => call.say.line(&format!("  {in_front}")),
    }
}

/// Asks a process of ours to end, waits until it has, and removes its entry. That it holds its lock proves that it is
/// ours; the number alone could be another process by now.
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
