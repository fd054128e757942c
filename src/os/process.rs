//! Running a user's command: its signals are passed on, its exit code comes back.

use std::ffi::OsString;
#[cfg(target_os = "linux")]
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;

use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::error::Error;
use crate::error::Kind;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::daemon;
use crate::os::terminal;

/// Signals that somebody sends us and means for the command.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Takes the signals of this process. Before the command runs they stop us; while it runs they are its own.
#[derive(Clone)]
pub struct Signals {
    set: SigSet,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    child: Option<Pid>,
    /// A signal came before there was a command.
    stopped: bool,
}

impl Signals {
    /// Must be called before any thread is started, since threads inherit what is blocked.
    pub fn take(stop: impl Fn() + Send + Sync + 'static) -> Result<Self> {
        let set: SigSet = PASSED_ON.into_iter().collect();
        set.thread_block().or_say(|| "Cannot take this process's signals")?;
        let state = Arc::new(Mutex::new(State::default()));
        let seen = Arc::clone(&state);
        let got = Arc::new(move |signal| {
            let mut state: MutexGuard<'_, State> = seen.lock().unwrap_or_else(PoisonError::into_inner);
            match state.child {
                None => state.stopped = true,
                Some(pid) if !came_from_terminal(signal) => drop(kill(pid, signal)),
                Some(_) => {}
            }
            let stopped = state.stopped;
            drop(state);
            if stopped {
                stop();
            }
        });
        // For the moment in which they are not blocked, because the command is being started.
        let meanwhile = Arc::clone(&got);
        ctrlc::set_handler(move || meanwhile(Signal::SIGTERM))
            .or_say(|| "Cannot take this process's signals")?;
        let watch = move || {
            while let Ok(signal) = set.wait() {
                got(signal);
            }
        };
        // It waits for signals until the process ends, and has no other end.
        thread::Builder::new().name("signals".into()).spawn(watch).or_say(|| "Cannot start a thread")?;
        Ok(Self { set, state })
    }

    /// Runs the command to its end. `until_cut` is called with a way to end it early.
    pub fn run(
        &self,
        command: &[OsString],
        environment: &[(String, String)],
        started: impl FnOnce(u32),
    ) -> Result<u8> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| Error::usage("There is no command behind --"))?;
        let mut command = Command::new(program);
        // What runs in the background is we, not a connect that the command starts.
        command.args(arguments).envs(environment.iter().cloned()).env_remove(daemon::MARK);
        let mut child = self.spawn(&mut command)?;
        started(child.id());
        let status = child.wait();
        self.lock().child = None;
        Ok(code_of(status.or_say(|| "Cannot wait for the command")?))
    }

    /// The lock is held over the start, so that each signal finds the command not begun or to be told.
    fn spawn(&self, command: &mut Command) -> Result<Child> {
        let mut state = self.lock();
        if state.stopped {
            return Err(Error::new("Interrupted").kind(Kind::Interrupted));
        }
        // The command inherits what this thread blocks; with these blocked, nothing could end it.
        let unblocked = self.set.thread_unblock();
        let spawned = command.spawn();
        let blocked = self.set.thread_block();
        unblocked.and(blocked).or_say(|| "Cannot take this process's signals back")?;
        let child = spawned.map_err(|error| {
            Error::new(format!("Cannot run {}", command.get_program().to_string_lossy()))
                .because(error)
                .hint("Check the command behind --")
        })?;
        let pid = i32::try_from(child.id()).or_say(|| "The command's process number is odd")?;
        state.child = Some(Pid::from_raw(pid));
        Ok(child)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ctrl-C and Ctrl-\ on a terminal reach the command without us: it is in the same foreground group. Passing
/// them on again would end a psql that only cancels its query.
fn came_from_terminal(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGQUIT) && terminal::is_terminal_in()
}

/// As a shell reports it: 128 and the signal for a command that was killed.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

pub fn terminate(pid: u32) {
    send(pid, Signal::SIGTERM);
}

/// Without asking.
pub fn kill_now(pid: u32) {
    send(pid, Signal::SIGKILL);
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The process that listens on this port of the loopback, with its name, where the system lets us see.
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

/// The number of the socket that listens (state 0A) on this port, from a table of the kernel's.
#[cfg(target_os = "linux")]
fn listening_socket(table: &str, port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let table = fs::read_to_string(table).ok()?;
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let listens = columns.get(3) == Some(&"0A") && columns.get(1)?.ends_with(&wanted);
        listens.then(|| columns.get(9).map(|socket| (*socket).to_owned()))?
    })
}
