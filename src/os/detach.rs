//! Running in the background: our own program again, with the same arguments, in a session of its own.
//!
//! Arguments and secrets are handed over by stdin, since other users can read a process's arguments. An argument may be a
//! share code or a link.
//!
//! The starting process prints the background process's output until that is ready or has ended, so the user sees the same
//! messages and failures as in the foreground. When the background process is ready, it sends a special line and then
//! writes its output to a log file.

use std::collections::BTreeMap;
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

use serde::Deserialize;
use serde::Serialize;

use crate::error::OrSay;
use crate::error::Result;
use crate::os::environment;
use crate::os::files;
use crate::os::terminal;

/// Set for the background process: the path of its log.
pub const LOG_VARIABLE: &str = "CONNECT_BACKGROUND_LOG";
/// A log that grows beyond this is renamed to `.old` and replaces the previous `.old`.
const LOG_LIMIT: u64 = 1024 * 1024;
const LOG_SIZE_POLL: Duration = Duration::from_secs(1);
/// The background process's last line on the pipe, when it is ready. No other line of ours begins with a control
/// character.
const READY_LINE: &str = "\u{6}ready";
/// Begins a line on the pipe that is for stderr.
pub const STDERR_MARK: char = '\u{5}';

/// The path of this process's log, if it runs in the background.
pub fn own_log() -> Option<PathBuf> {
    env::var_os(LOG_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

static WRITES_LOG: AtomicBool = AtomicBool::new(false);

static HANDED_OVER: AtomicBool = AtomicBool::new(false);

/// Whether the process that started this one prints our lines. Those for stderr go to stdout as well, with a mark, since
/// two pipes would lose the order.
pub fn is_starting() -> bool {
    HANDED_OVER.load(Ordering::Relaxed) && !writes_log()
}

/// Whether all that this process prints goes to its log.
pub fn writes_log() -> bool {
    WRITES_LOG.load(Ordering::Relaxed)
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
    /// In addition to those in our own environment.
    pub secret: Option<(&'b str, &'b str)>,
    pub log: &'b Path,
}

/// What the background process reads from its stdin.
#[derive(Serialize, Deserialize)]
struct Handover {
    arguments: Vec<OsString>,
    secrets: BTreeMap<String, String>,
}

/// Starts our own program in the background, and passes on its output until it is ready. `started` receives its process
/// ID at once. The process list shows `words`.
pub fn start(
    begin: &BackgroundStart<'_>,
    words: &[String],
    started: impl FnOnce(u32),
    say: impl Fn(OutputStream, &str) + Sync,
) -> Result<StartOutcome> {
    // A log that cannot be written is reported before anything is said to run.
    drop(open_log(begin.log)?);
    // Without /proc the system does not tell. Then the name that we were called by leads here again.
    let called = |error| env::args_os().next().map(PathBuf::from).ok_or(error);
    let program = env::current_exe().or_else(called).or_say(|| "Cannot find this program's own file")?;
    let mut command = Command::new(program);
    environment::without_secrets(&mut command).args(words).env(LOG_VARIABLE, begin.log);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.or_say(|| "Cannot start in the background")?;
    started(child.id());
    let mut secrets = environment::secrets();
    secrets.extend(begin.secret.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let handover = Handover { arguments: begin.arguments.clone(), secrets };
    // If the process has ended, its output says why.
    let _ = child.stdin.take().map(|stdin| serde_json::to_writer(stdin, &handover));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let ready = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            hand_on(out, |line| match line {
                READY_LINE => ready.store(true, Ordering::Relaxed),
                line => match line.strip_prefix(STDERR_MARK) {
                    Some(line) => say(OutputStream::Err, line),
                    None => say(OutputStream::Out, line),
                },
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

/// What the process that started this one in the background has handed over: the secrets are kept, the arguments
/// returned. `None` if a service manager started this process, with arguments. Then stdin is empty, or the socket of
/// `passed_socket`, which cannot be read.
pub fn take_handover() -> Option<Vec<OsString>> {
    own_log().filter(|_| !terminal::is_terminal_in())?;
    let Handover { arguments, secrets } = serde_json::from_reader(io::stdin().lock()).ok()?;
    HANDED_OVER.store(true, Ordering::Relaxed);
    environment::set_handed_over(secrets);
    Some(arguments)
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
    let file = open_log(log)?;
    if !notify("READY=1") {
        let mut out = io::stdout().lock();
        // The starting process may have ended. Then nobody needs the line.
        let _ = writeln!(out, "{READY_LINE}").and_then(|()| out.flush());
    }
    turn_output_to(&file, log)?;
    WRITES_LOG.store(true, Ordering::Relaxed);
    let path = log.to_owned();
    // The thread ends with the process. It leaves nothing unfinished.
    let kept = thread::Builder::new().name("log".into()).spawn(move || {
        loop {
            thread::sleep(LOG_SIZE_POLL);
            if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_LIMIT) {
                let _ = fs::rename(&path, path.with_extension("log.old"))
                    .map(|()| open_log(&path).and_then(|file| turn_output_to(&file, &path)));
            }
        }
    });
    kept.map(drop).or_say(|| "Cannot start a thread")
}

/// Adds a line to the log of another process, or of none.
pub fn add_line(log: &Path, line: &str) -> Result<()> {
    // The process whose log it is renames it sooner. If that does not run, nobody else does.
    if fs::metadata(log).is_ok_and(|log| log.len() > 2 * LOG_LIMIT) {
        let _ = fs::rename(log, log.with_extension("log.old"));
    }
    let written = files::append(log)?.write_all(format!("{line}\n").as_bytes());
    written.or_say(|| format!("Cannot write to {}", log.display()))
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

fn open_log(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        files::private_dir(folder)?;
    }
    files::append(log)
}

fn turn_output_to(file: &File, log: &Path) -> Result<()> {
    let turned = nix::unistd::dup2_stdout(file).and_then(|()| nix::unistd::dup2_stderr(file));
    turned.or_say(|| format!("Cannot write to {}", log.display()))
}
