//! Other programs that we run for their effect or their output: bounded in time and without a terminal.

use std::env;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::environment;

/// A tool that runs longer than this waits for input: `certutil`, for one, asks for a database's password
/// again and again, though stdin is empty.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// How often we check whether a tool has exited; the standard library has no wait with a timeout.
const EXIT_POLL: Duration = Duration::from_millis(10);
/// Enough for the last line of a tool's complaint, or for a short answer.
const COMMAND_OUTPUT_LIMIT: u64 = 4096;

/// A command line as words: `line` is split at blanks, the words in `more` may contain some.
pub fn words(line: &str, more: &[&str]) -> Vec<String> {
    line.split(' ').chain(more.iter().copied()).map(str::to_owned).collect()
}

/// Whether a file of this name is on the path, or at this path.
pub fn is_installed(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    // The administrator's tools are not on every user's path.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

/// One word as a shell needs it.
pub fn quoted(word: &str) -> String {
    if word.contains([' ', '\'', '"', '$']) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word.to_owned()
    }
}

/// Runs a program and returns what it prints; `None` if it fails or does not exist.
pub fn output_of(line: &[&str]) -> Option<String> {
    Some(String::from_utf8_lossy(&run(line).ok()?).into_owned())
}

/// Runs a program to its end and returns the beginning of its output. A failure carries the last line that
/// the program wrote to stderr.
pub fn run(line: &[impl AsRef<str>]) -> Result<Vec<u8>> {
    let words: Vec<&str> = line.iter().map(AsRef::as_ref).collect();
    let failed = || format!("This failed: {}", words.join(" "));
    let Some((program, arguments)) = words.split_first() else { return Ok(Vec::new()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = environment::without_secrets(&mut command).spawn().or_say(failed)?;
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let status = loop {
        match child.try_wait().or_say(failed)? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::park_timeout(EXIT_POLL),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(
                    Error::new(failed()).because("it did not end in time; it may wait for a password")
                );
            }
        }
    };
    if status.success() {
        return Ok(beginning_of(child.stdout.take()));
    }
    let complaint = beginning_of(child.stderr.take());
    let complaint = String::from_utf8_lossy(&complaint);
    let last_line = complaint.lines().last().unwrap_or("it says no more");
    Err(Error::new(failed()).because(last_line.to_owned()))
}

fn beginning_of(stream: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let _ = stream.take(COMMAND_OUTPUT_LIMIT).read_to_end(&mut bytes);
    }
    bytes
}
