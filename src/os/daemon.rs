//! Commands in the background: our own executable again, with the same arguments, in a session of its own.
//!
//! Until it says that it is ready, what it prints comes out at its caller, and so does its failure. After
//! that it prints into a bounded log file.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread;

use nix::unistd::dup2_stderr;
use nix::unistd::dup2_stdout;
use nix::unistd::getppid;
use nix::unistd::setsid;

use super::files;
use crate::error::OrSay;
use crate::error::Result;

/// Holds the number of the process that started us in the background. Our own children inherit it and see
/// that it is not their parent's.
const STARTED_BY: &str = "CONNECT_STARTED_BY";
/// The line by which a background process says that it is ready. Nothing else prints this character.
const READY: &str = "\u{6}";
/// A log larger than this becomes the one before, of which there is one.
const LOG_LIMIT: u64 = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Began {
    /// It runs, with this process number.
    Ready(u32),
    /// It ended before it was ready, with this exit code.
    Ended(u8),
}

/// Runs ourselves in the background and waits until it is ready or has ended. `started` gets its number,
/// `out` and `err` what it prints until then.
pub fn start(
    arguments: &[OsString],
    started: impl FnOnce(u32),
    mut out: impl FnMut(&[u8]),
    err: impl FnMut(&[u8]) + Send,
) -> Result<Began> {
    let sorry = || "Cannot start a process in the background";
    let mut command = Command::new(env::current_exe().or_say(sorry)?);
    command.args(arguments).env(STARTED_BY, std::process::id().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().or_say(sorry)?;
    started(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ready = thread::scope(|scope| {
        scope.spawn(|| pass_on(stderr, err));
        let mut ready = false;
        // It closes its end of both when it is ready, or when it ends.
        pass_on(stdout, |line| match line.strip_suffix(b"\n") {
            Some(line) if line == READY.as_bytes() => ready = true,
            _ => out(line),
        });
        ready
    });
    if ready { Ok(Began::Ready(child.id())) } else { ended(child).or_say(sorry) }
}

fn pass_on(pipe: Option<impl Read>, mut to: impl FnMut(&[u8])) {
    let Some(pipe) = pipe else { return };
    let (mut lines, mut line) = (BufReader::new(pipe), Vec::new());
    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
        to(&line);
        line.clear();
    }
}

fn ended(mut child: Child) -> io::Result<Began> {
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(Began::Ended(code.unwrap_or(1)))
}

/// Whether this process was started in the background. The first call leaves the caller's session, so
/// that neither its terminal's Ctrl-C nor its end reaches us.
pub fn is_background() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| {
        let by = env::var(STARTED_BY).ok().and_then(|text| text.parse().ok());
        let is = by.is_some_and(|by: i32| by == getppid().as_raw());
        if is {
            let _ = setsid();
        }
        is
    })
}

/// Tells the caller that we are ready, and prints into `log` from here on.
pub fn ready(log: &Path) -> Result<()> {
    let sorry = || "Cannot go to the background";
    let mut stdout = io::stdout().lock();
    // A caller that is gone has no use for it.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    rotate(log)?;
    print_into(log)?;
    // Otherwise the folder that we were started in could not be unmounted.
    env::set_current_dir("/").or_say(sorry)
}

/// To be called now and then: a log that has grown too large becomes the one before.
pub fn tend(log: &Path) {
    let grown = fs::metadata(log).map_or(true, |found| found.len() > LOG_LIMIT);
    if grown && let Err(error) = rotate(log).and_then(|()| print_into(log)) {
        log::warn!("{error}");
    }
}

fn rotate(log: &Path) -> Result<()> {
    if fs::metadata(log).is_ok_and(|found| found.len() > LOG_LIMIT) {
        fs::rename(log, log.with_extension("log.1")).or_say(|| "Cannot put the old log aside")?;
    }
    Ok(())
}

fn print_into(log: &Path) -> Result<()> {
    let sorry = || format!("Cannot print into {}", log.display());
    let file = files::append(log)?;
    dup2_stdout(&file).or_say(sorry)?;
    dup2_stderr(&file).or_say(sorry)
}
