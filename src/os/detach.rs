//! Running in the background: our own program again, with the same arguments, in a session of its own.
//!
//! The one who starts it repeats what it says until it is ready or has ended, so the user sees the same
//! words and the same failures as in the foreground. When it is ready it says so by a line of its own and
//! turns its output to a log file.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
#[cfg(target_os = "linux")]
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::error::OrSay;
use crate::error::Result;
use crate::os::files;

/// Set in the one that runs in the background: where its log is.
pub const LOG_VARIABLE: &str = "CONNECT_BACKGROUND_LOG";
/// A log that has grown beyond this becomes `.old`, and the `.old` of before is gone.
const LOG_LIMIT: u64 = 1024 * 1024;
const LOG_SIZE_POLL: Duration = Duration::from_secs(5);
/// Its last line on the pipe, when it is ready. No line of ours begins with a control character.
const READY_LINE: &str = "\u{6}ready";

/// Where the log of this process is, when it runs in the background.
pub fn own_log() -> Option<PathBuf> {
    env::var_os(LOG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The arguments of this very command.
pub fn own_arguments() -> Vec<OsString> {
    env::args_os().skip(1).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    Ready {
        pid: u32,
    },
    /// It ended before it was ready; it has said why.
    Ended {
        code: u8,
    },
}

/// Which of its two streams a line came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Out,
    Err,
}

/// What is to run in the background.
pub struct BackgroundStart<'b> {
    pub arguments: Vec<OsString>,
    pub environment: &'b [(&'b str, &'b str)],
    pub log: &'b Path,
}

/// Starts ourselves in the background, and hands on what is said there until it is ready. `started` is told
/// its number at once.
pub fn start(
    begin: &BackgroundStart<'_>,
    started: impl FnOnce(u32),
    say: impl Fn(OutputStream, &str) + Sync,
) -> Result<StartOutcome> {
    let program = env::current_exe().or_say(|| "Cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(&begin.arguments).envs(begin.environment.iter().copied()).env(LOG_VARIABLE, begin.log);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.or_say(|| "Cannot start in the background")?;
    started(child.id());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ready = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            hand_on(out, |line| match line {
                READY_LINE => ready.store(true, Ordering::Relaxed),
                line => say(OutputStream::Out, line),
            });
        });
        scope.spawn(|| hand_on(err, |line| say(OutputStream::Err, line)));
    });
    if ready.into_inner() {
        return Ok(StartOutcome::Ready { pid: child.id() });
    }
    // Its streams have ended, so it is just going.
    let status = child.wait().or_say(|| "Cannot look after the background process")?;
    Ok(StartOutcome::Ended { code: u8::try_from(status.code().unwrap_or(1)).unwrap_or(1) })
}

fn hand_on(stream: Option<impl Read>, say: impl Fn(&str)) {
    let lines = stream.into_iter().flat_map(|stream| BufReader::new(stream).lines());
    lines.map_while(std::result::Result::ok).for_each(|line| say(&line));
}

/// First thing in the background: no terminal's hang-up or Ctrl-C reaches it any more.
pub fn leave_terminal() {
    if let Err(error) = nix::unistd::setsid() {
        log::debug!("it stays in its session: {error}");
    }
}

/// Ready: from here on this process writes to its log, which is kept small for as long as it lives.
pub fn ready(log: &Path) -> Result<()> {
    if !notify("READY=1") {
        let mut out = io::stdout().lock();
        // Whoever started it may be gone, and need not know.
        let _ = writeln!(out, "{READY_LINE}").and_then(|()| out.flush());
    }
    turn_output_to(log)?;
    let path = log.to_owned();
    // It ends with the process; there is nothing it could leave behind.
    let kept = thread::Builder::new().name("log".into()).spawn(move || {
        loop {
            thread::sleep(LOG_SIZE_POLL);
            if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_LIMIT) {
                let _ = fs::rename(&path, path.with_extension("log.old")).map(|()| turn_output_to(&path));
            }
        }
    });
    kept.map(drop).or_say(|| "Cannot start a thread")
}

/// Tells the service manager that started this process, when one did: systemd names a socket for it.
pub fn notify(state: &str) -> bool {
    let Some(place) = env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else { return false };
    let told = UnixDatagram::unbound().and_then(|socket| {
        #[cfg(target_os = "linux")]
        if let [b'@', name @ ..] = place.as_bytes() {
            return socket.send_to_addr(state.as_bytes(), &SocketAddr::from_abstract_name(name)?);
        }
        socket.send_to(state.as_bytes(), &place)
    });
    told.inspect_err(|error| log::warn!("the service manager does not listen: {error}")).is_ok()
}

fn turn_output_to(log: &Path) -> Result<()> {
    if let Some(folder) = log.parent() {
        files::private_dir(folder)?;
    }
    let file: File = files::append(log)?;
    let turned = nix::unistd::dup2_stdout(&file).and_then(|()| nix::unistd::dup2_stderr(&file));
    turned.or_say(|| format!("Cannot write to {}", log.display()))
}
