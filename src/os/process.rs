//! Running a user's command: its signals are passed on, its exit code comes back.

use std::collections::BTreeMap;
use std::env;
use std::ffi::CString;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;

use nix::errno::Errno;
use nix::spawn::PosixSpawnAttr;
use nix::spawn::PosixSpawnFileActions;
use nix::spawn::PosixSpawnFlags;
use nix::spawn::posix_spawnp;
use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::command;
use crate::os::environment;
use crate::os::lock::locked;
use crate::os::terminal;
use crate::os::user;

/// Signals that are sent to us but meant for the command.
const FORWARDED_SIGNALS: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// What shells exit with for a command that does not exist, and for one that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Receives the signals of this process. Before the command runs, they stop us; while it runs, they are passed on
/// to it.
#[derive(Clone)]
pub struct Signals {
    /// The signals that the command starts with blocked: those we inherited, without the ones we block for ourselves.
    mask: SigSet,
    state: Arc<Mutex<ChildState>>,
}

#[derive(Default)]
struct ChildState {
    child: Option<Pid>,
    /// A signal came before the command was started.
    stopped: bool,
}

impl Signals {
    /// Must be called before any thread is started, since threads inherit what is blocked.
    pub fn take(stop: impl Fn() + Send + 'static) -> Result<Self> {
        let set: SigSet = FORWARDED_SIGNALS.into_iter().collect();
        let blocked = set.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let mut mask = blocked.or_say(|| "Cannot take this process's signals")?;
        FORWARDED_SIGNALS.into_iter().for_each(|signal| mask.remove(signal));
        let state = Arc::new(Mutex::new(ChildState::default()));
        let seen = Arc::clone(&state);
        let watch = move || {
            while let Ok(signal) = set.wait() {
                let mut state = locked(&seen);
                match state.child {
                    None => state.stopped = true,
                    Some(pid) if !came_from_terminal(signal) => {
                        let _ = kill(pid, signal);
                    }
                    Some(_) => {}
                }
                let stopped = state.stopped;
                drop(state);
                if stopped {
                    stop();
                }
            }
        };
        // This thread has no stop: it waits for signals until the process ends.
        thread::Builder::new().name("signals".into()).spawn(watch).or_say(|| "Cannot start a thread")?;
        Ok(Self { mask, state })
    }

    /// Runs the command to its end and returns its exit code. `started` receives its process ID.
    pub fn run(
        &self,
        command: &[OsString],
        environment: &[(String, String)],
        started: impl FnOnce(u32),
    ) -> Result<u8> {
        let pid = self.start(command, environment)?;
        started(pid.as_raw().unsigned_abs());
        let ended = wait(pid);
        locked(&self.state).child = None;
        ended.or_say(|| "Cannot wait for the command")
    }

    /// Holds the lock during the start, so a signal comes either before the command exists or when it can be passed
    /// on.
    fn start(&self, command: &[OsString], environment: &[(String, String)]) -> Result<Pid> {
        let program = command.first().ok_or_else(|| Error::usage("There is no command after --"))?;
        let mut state = locked(&self.state);
        if state.stopped {
            return Err(Error::stopped());
        }
        let pid = self.spawn(command, environment).map_err(|error| cannot_run(program, error))?;
        state.child = Some(pid);
        Ok(pid)
    }

    /// Not by the standard library: its children inherit the thread's blocked signals, and a command with these
    /// blocked could not be ended. Unblocking them here for a moment would let them hit us instead.
    fn spawn(&self, command: &[OsString], more: &[(String, String)]) -> nix::Result<Pid> {
        let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL);
        let arguments = command.iter().map(|word| text(word)).collect::<nix::Result<Vec<_>>>()?;
        let mut variables: BTreeMap<OsString, OsString> =
            env::vars_os().filter(|(name, _)| !environment::is_own(name)).collect();
        variables.extend(more.iter().map(|(name, value)| (name.into(), value.into())));
        let line = |(name, value): (&OsString, &OsString)| {
            text(&[name.as_os_str(), value.as_os_str()].join(OsStr::new("=")))
        };
        let variables = variables.iter().map(line).collect::<nix::Result<Vec<_>>>()?;
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_sigmask(&self.mask)?;
        // Rust's runtime ignores SIGPIPE; commands expect to end when their reader does.
        attributes.set_sigdefault(&Signal::SIGPIPE.into())?;
        attributes
            .set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF)?;
        posix_spawnp(&arguments[0], &PosixSpawnFileActions::init()?, &attributes, &arguments, &variables)
    }
}

fn cannot_run(program: &OsStr, error: Errno) -> Error {
    let code = if error == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
    Error::new(format!("Cannot run {}", program.to_string_lossy()))
        .because(error.desc())
        .hint("Check the command after --")
        .kind(ErrorKind::NotStarted(code))
}

/// For a command that will be run in the background, where nobody sees that it does not exist.
pub fn find_command(command: &[OsString]) -> Result<()> {
    let program = command.first().map(OsString::as_os_str).unwrap_or_default();
    if command::is_installed(&program.to_string_lossy()) {
        Ok(())
    } else {
        Err(cannot_run(program, Errno::ENOENT))
    }
}

/// Ctrl-C and Ctrl-\ on a terminal reach the command without us: it is in the same foreground group. Passing
/// them on again would end a psql that only cancels its query.
fn came_from_terminal(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT) && terminal::is_terminal_in()
}

/// The exit code as a shell reports it: 128 plus the signal for a command that was killed.
fn wait(pid: Pid) -> nix::Result<u8> {
    let code = loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    };
    Ok(u8::try_from(code).unwrap_or(1))
}

pub fn terminate(pid: u32) {
    send(pid, Signal::SIGTERM);
}

/// Sends SIGKILL, which the process cannot handle.
pub fn kill_now(pid: u32) {
    send(pid, Signal::SIGKILL);
}

/// Whether there is such a process, of whatever user.
pub fn exists(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// Whether the process belongs to the user of this one, where the system tells.
pub fn is_own(pid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == user::uid())
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// ` (postgres, PID 812)`, for a message about a port that is taken; empty if the system does not tell.
pub fn shown_holder(port: u16) -> String {
    listener_on(port).map_or_else(String::new, |(pid, name)| format!(" ({name}, PID {pid})"))
}

/// ID and name of the process that listens on this loopback port, where the system lets us see it.
#[cfg(target_os = "linux")]
pub fn listener_on(port: u16) -> Option<(u32, String)> {
    let socket =
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| listening_socket(table, port))?;
    let link = format!("socket:[{socket}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds =
            |file: fs::DirEntry| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == link.as_str());
        if files.flatten().any(holds) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim_end().to_owned()));
        }
    }
    None
}

#[cfg(not(target_os = "linux"))]
pub fn listener_on(_: u16) -> Option<(u32, String)> {
    None
}

/// The inode of the socket that listens (state 0A) on this port, at 127.0.0.1 or an address that begins with zeros, as those
/// do that cover the loopback. From one of the kernel's tables, which have addresses in hexadecimal.
#[cfg(target_os = "linux")]
fn listening_socket(table: &str, port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let covering = [format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1])), "0".repeat(8)];
    let table = fs::read_to_string(table).ok()?;
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let own = columns.get(1)?.strip_suffix(&wanted)?;
        let listens = columns.get(3) == Some(&"0A") && covering.iter().any(|start| own.starts_with(start));
        listens.then(|| columns.get(9).map(|socket| (*socket).to_owned()))?
    })
}
