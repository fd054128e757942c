//! A team around a hub: an owner who shares, a user who joins, and ports that nobody else takes.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::thread;

use serde_json::Value;

use super::Home;
use super::Hub;
use super::PATIENCE;
use super::Running;
use super::Said;
use super::echo;

pub struct Team {
    pub hub: Hub,
    pub owner: Home,
    pub user: Home,
}

impl Team {
    pub fn new() -> Self {
        Self::around(Hub::start())
    }

    pub fn around(hub: Hub) -> Self {
        let (owner, user) = (hub.machine("member"), hub.machine("member"));
        Self { hub, owner, user }
    }

    /// Exposes `NAME=HOST:PORT` under a name of the workspace.
    pub fn expose(&self, target: &str) -> Running {
        let (name, at) = target.split_once('=').unwrap();
        let running = self.owner.start(&["expose", "--json", at, "--name", name, "--protocol", "tcp"]);
        running.wait_event("exposed");
        running
    }

    /// Starts `connect share` with these arguments, and waits until it has a code.
    pub fn share(&self, args: &[&str]) -> Shared {
        let running = self.owner.start(&[&["share", "--json"], args].concat());
        let said = running.wait_event("shared");
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        Shared {
            code: text("code"),
            verified: text("verified"),
            link: text("link"),
            id: text("id"),
            running,
            exposed: Vec::new(),
        }
    }

    /// Shares these targets as abc123, and exposes them under the workspace's names as well.
    pub fn share_and_expose(&self, targets: &[String]) -> Shared {
        let words: Vec<&str> = targets.iter().map(String::as_str).chain(["--code", "abc123"]).collect();
        let shared = self.share(&words);
        Shared { exposed: targets.iter().map(|target| self.expose(target)).collect(), ..shared }
    }

    /// Starts `connect join`, and waits for its ports, by name.
    pub fn join(&self, args: &[&str]) -> (Running, Value) {
        joined(self.user.start(&[&["join", "--json"], args].concat()))
    }
}

/// What is said of the services, as `{name: {localPort, ok, error …}}`.
pub fn joined(running: Running) -> (Running, Value) {
    let said = running.wait_event("joined");
    let list = said["services"].as_array().unwrap();
    let named = list.iter().map(|service| (service["name"].as_str().unwrap().to_owned(), service.clone()));
    let by_name = Value::Object(named.collect());
    (running, by_name)
}

pub fn port_of(services: &Value, name: &str) -> u16 {
    let port = services[name]["localPort"].as_u64();
    u16::try_from(port.unwrap_or_else(|| panic!("{name} has no port: {services}"))).unwrap()
}

pub struct Shared {
    pub running: Running,
    pub code: String,
    pub verified: String,
    pub link: String,
    pub id: String,
    /// The same targets under names of the workspace.
    pub exposed: Vec<Running>,
}

/// A hundred neighbouring ports below those that the system hands out, held against every other test by a
/// listener on an address of its own. The services stand on 127.0.0.2, so that on this one machine the
/// joiner can have the very port of the service, as it can on two.
pub struct Ports {
    base: u16,
}

const SERVICES: &str = "127.0.0.2";

impl Ports {
    pub fn claim() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = u16::try_from(std::process::id() % 200).unwrap();
        for _ in 0..200 {
            let number = (start + NEXT.fetch_add(7, Ordering::Relaxed)) % 200;
            let base = 12_000 + number * 100;
            let Ok(held) = TcpListener::bind(("127.0.0.3", base)) else { continue };
            let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
            if (base..base + 100).all(is_free) {
                // For as long as this process lives, as long as the services behind these ports.
                std::mem::forget(held);
                return Self { base };
            }
        }
        panic!("no hundred ports are free");
    }

    pub fn at(&self, offset: u16) -> u16 {
        self.base + offset
    }

    /// What `connect share` takes for the service at this port: `name=127.0.0.2:PORT`.
    pub fn target(&self, name: &str, offset: u16) -> String {
        format!("{name}={SERVICES}:{}", self.at(offset))
    }

    /// An echo behind that target, for as long as the test runs.
    pub fn echo(&self, offset: u16) {
        let listener = TcpListener::bind((SERVICES, self.at(offset))).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
    }

    /// Somebody else's listener where the joiner would like to be.
    pub fn hold(&self, offset: u16) -> TcpListener {
        TcpListener::bind(("127.0.0.1", self.at(offset))).unwrap()
    }
}

/// Whether an echo comes back through `host:port`.
pub fn echoes_at(host: &str, port: u16, bytes: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut back = Vec::new();
    sent.is_ok() && stream.read_to_end(&mut back).is_ok() && back == bytes
}

/// The same command on a terminal of its own.
pub fn on_terminal(command: &Command) -> Command {
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
    let line = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let mut wrapped = Command::new("script");
    // A shell that stays in between would die of the Ctrl-C that the command bears.
    let line = format!("exec {}", line.collect::<Vec<_>>().join(" "));
    wrapped.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh");
    copy_environment(command, &mut wrapped);
    wrapped.env("TERM", "xterm");
    wrapped
}

pub fn copy_environment(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

/// What a terminal got, without its colours and carriage returns.
pub fn uncoloured(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    plain.replace('\r', "")
}

/// Runs to the end with this on its stdin.
pub fn with_input(mut command: Command, input: &[u8]) -> Said {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = piped.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
    Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

/// The names in `active-routes.json`, as it stands.
pub fn routes(home: &Home) -> Vec<String> {
    let text = fs::read_to_string(home.file("active-routes.json")).unwrap_or_else(|_| "[]".into());
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    list.iter().map(|route| route["serviceName"].as_str().unwrap().to_owned()).collect()
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// As a user whom nobody knows, when we are root; with our own rights otherwise.
pub fn as_nobody_known(command: &Command) -> Command {
    if !is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        copy_environment(command, &mut same);
        return same;
    }
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "--"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    copy_environment(command, &mut wrapped);
    wrapped
}

/// Every file below a folder, with what it holds.
pub fn files_below(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
        }
    }
    found
}
