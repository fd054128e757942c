//! Running in the background: our own program again, with the same arguments, in a session of its own.
//!
//! The starting process prints the background process's output until that is ready or has ended, so the user sees the same
//! messages and failures as in the foreground. When the background process is ready, it sends a special line and then
//! writes its output to a log file.

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

/// Set for the background process: the path of its log.
pub const LOG_VARIABLE: &str = "CONNECT_BACKGROUND_LOG";
/// A log that grows beyond this is renamed to `.old` and replaces the previous `.old`.
const LOG_LIMIT: u64 = 1024 * 1024;
const LOG_SIZE_POLL: Duration = Duration::from_secs(5);
/// The background process's last line on the pipe, when it is ready. No other line of ours begins with a control
/// character.
const READY_LINE: &str = "\u{6}ready";

/// The path of this process's log, if it runs in the background.
pub fn own_log() -> Option<PathBuf> {
    env::var_os(LOG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The arguments of this command.
pub fn own_arguments() -> Vec<OsString> {
    env::args_os().skip(1).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    Ready {
        pid: u32,
    },
    /// It ended before it was ready, and has printed why.
    Ended {
        code: u8,
    },
}

/// The stream that a line came from.
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

/// Starts our own program in the background, and passes on its output until it is ready. `started` receives its process
/// ID at once.
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
    // Its streams have ended, so the process is about to exit.
    let status = child.wait().or_say(|| "Cannot look after the background process")?;
    Ok(StartOutcome::Ended { code: u8::try_from(status.code().unwrap_or(1)).unwrap_or(1) })
}

fn hand_on(stream: Option<impl Read>, say: impl Fn(&str)) {
    let lines = stream.into_iter().flat_map(|stream| BufReader::new(stream).lines());
    lines.map_while(std::result::Result::ok).for_each(|line| say(&line));
}

/// The first step in the background: leaves the terminal, so that its hang-up and Ctrl-C no longer reach this process.
pub fn leave_terminal() {
    if let Err(error) = nix::unistd::setsid() {
        log::debug!("it stays in its session: {error}");
    }
}

/// Reports that this process is ready. From now on it writes to its log, which a thread keeps small.
///
/// Ready is reported before the output is redirected: the starting process reads that line from the pipe. If systemd
/// started us, it is told instead.
pub fn ready(log: &Path) -> Result<()> {
    if !notify("READY=1") {
        let mut out = io::stdout().lock();
        // The starting process may have ended. Then nobody needs the line.
        let _ = writeln!(out, "{READY_LINE}").and_then(|()| out.flush());
    }
    turn_output_to(log)?;
    let path = log.to_owned();
    // The thread ends with the process. It leaves nothing unfinished.
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

/// Sends a state to the service manager, if one started this process: systemd passes the socket's path in a variable.
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
