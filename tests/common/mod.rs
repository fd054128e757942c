//! What whole-program tests share: the real binary with a home of its own, port 0, and waits for what it says.
#![allow(dead_code)] // Each test file uses its part.

use std::cell::RefCell;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

/// No wait in a test is longer; a slow machine is given room, a hang is not.
pub const PATIENCE: Duration = Duration::from_secs(30);

thread_local! {
    /// Another build of the program, which the homes of this thread use.
    static OTHER_BUILD: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Runs `make` with another build of the program in every home that it makes: so a benchmark compares two builds.
pub fn with_build<T>(build: &Path, make: impl FnOnce() -> T) -> T {
    OTHER_BUILD.set(Some(build.to_owned()));
    let made = make();
    OTHER_BUILD.set(None);
    made
}

fn program() -> PathBuf {
    OTHER_BUILD.with_borrow(Clone::clone).unwrap_or_else(|| env!("CARGO_BIN_EXE_connect").into())
}

/// A folder that is gone when the test is.
pub struct Home {
    path: PathBuf,
    program: PathBuf,
}

impl Home {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("connect-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self { path, program: program() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The binary, with this home and nothing of the tester's environment that would change what it does.
    pub fn connect(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("PRIVATECONNECT_HOME", &self.path)
            .env("HOME", &self.path)
            .env("CONNECT_NO_PROXY", "1")
            .env("LANG", "C.UTF-8");
        for name in [
            "CONNECT_HUB_URL",
            "PRIVATECONNECT_TOKEN",
            "PRIVATECONNECT_CA",
            "CONNECT_JOIN",
            "HTTPS_PROXY",
            "https_proxy",
            "NO_PROXY",
            "no_proxy",
            "RUST_LOG",
            "NO_COLOR",
            "LC_ALL",
            "LC_CTYPE",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Runs to the end and returns what it said.
    pub fn run(&self, args: &[&str]) -> Said {
        Said::of(self.connect(args))
    }

    /// Starts it and leaves it running.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.connect(args))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// What a finished program said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(mut command: Command) -> Self {
        let running = Running::start_piped(command.stdin(Stdio::null()));
        running.finish()
    }

    /// Panics with everything it said when it did not end well.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

#[derive(Default)]
struct Heard {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

/// A program that runs. It is killed when dropped.
pub struct Running {
    child: Child,
    out: Arc<Heard>,
    err: Arc<Heard>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        Self::start_piped(command.stdin(Stdio::null()))
    }

    /// As systemd starts a program whose socket it holds.
    pub fn start_with_socket(mut command: Command, socket: impl Into<OwnedFd>) -> Self {
        Self::start_piped(command.stdin(socket.into()))
    }

    fn start_piped(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = listen(child.stdout.take().unwrap());
        let err = listen(child.stderr.take().unwrap());
        Self { child, out, err }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line of stdout that fits; panics with all it said when none comes.
    pub fn wait_out(&self, fits: impl Fn(&str) -> bool) -> String {
        wait_in(&self.out, fits, PATIENCE).unwrap_or_else(|| panic!("never said on stdout: {}", self.all()))
    }

    pub fn wait_err(&self, fits: impl Fn(&str) -> bool) -> String {
        wait_in(&self.err, fits, PATIENCE).unwrap_or_else(|| panic!("never said on stderr: {}", self.all()))
    }

    /// The first JSON line of stdout with this `event`.
    pub fn wait_event(&self, event: &str) -> Value {
        let is = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|value| value["event"] == event);
        serde_json::from_str(&self.wait_out(is)).unwrap()
    }

    pub fn out(&self) -> String {
        self.out.lines.lock().unwrap().0.join("\n")
    }

    pub fn err(&self) -> String {
        self.err.lines.lock().unwrap().0.join("\n")
    }

    fn all(&self) -> String {
        format!("stdout:\n{}\nstderr:\n{}", self.out(), self.err())
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, bounded.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end. {}", self.all());
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Waits for its end and for all it has said.
    pub fn finish(mut self) -> Said {
        let code = self.wait().code();
        for heard in [&self.out, &self.err] {
            let lines = heard.lines.lock().unwrap();
            drop(heard.changed.wait_timeout_while(lines, Duration::from_secs(2), |lines| !lines.1).unwrap());
        }
        Said { code, out: self.out(), err: self.err() }
    }

    /// Ctrl-C, and how long it took to end.
    pub fn interrupt(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal(Signal::SIGINT);
        (self.wait(), began.elapsed())
    }
}

fn wait_in(heard: &Heard, fits: impl Fn(&str) -> bool, patience: Duration) -> Option<String> {
    let deadline = Instant::now() + patience;
    let mut lines = heard.lines.lock().unwrap();
    let mut seen = 0;
    loop {
        if let Some(line) = lines.0[seen..].iter().find(|line| fits(line)) {
            return Some(line.clone());
        }
        seen = lines.0.len();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || lines.1 {
            return None;
        }
        lines = heard.changed.wait_timeout(lines, left).unwrap().0;
    }
}

impl Drop for Running {
    /// With its children: the workers of an nginx do not notice that its master was killed.
    fn drop(&mut self) {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        self.kill();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
    }
}

fn listen(stream: impl Read + Send + 'static) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    let own = Arc::clone(&heard);
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            own.lines.lock().unwrap().0.push(String::from_utf8_lossy(&line).into_owned());
            own.changed.notify_all();
        }
        own.lines.lock().unwrap().1 = true;
        own.changed.notify_all();
    });
    heard
}

/// A hub with a data folder of its own.
pub struct Hub {
    pub home: Home,
    pub running: Running,
    pub url: String,
    /// `127.0.0.1:PORT`.
    pub address: String,
    pub admin_key: String,
    options: Vec<String>,
}

impl Hub {
    pub fn start() -> Self {
        Self::start_with(&["--tunnel-ports", "off"])
    }

    pub fn start_with(options: &[&str]) -> Self {
        let home = Home::new();
        let mut args = vec!["hub", "--json"];
        if !options.contains(&"--listen") {
            args.extend(["--listen", "127.0.0.1:0"]);
        }
        args.extend_from_slice(options);
        let command = home.hub(&args);
        Self::start_by(home, command, options)
    }

    /// Starts again on the same port with the same data, after a `kill`.
    pub fn restart(&mut self) {
        let mut args = vec!["hub", "--json", "--listen", &self.address];
        args.extend(self.options.iter().map(String::as_str));
        self.running.kill();
        self.running = self.home.start(&args);
        self.running.wait_event("listening");
    }

    /// A key with this role, made on the hub's machine.
    pub fn key(&self, role: &str) -> String {
        let made = self.home.run(&["hub", "key", "create", "--json", "--role", role, "--label", role]).ok();
        made.json()["key"].as_str().unwrap().to_owned()
    }

    /// A new machine that is logged in with a key of this role.
    pub fn machine(&self, role: &str) -> Home {
        let home = Home::new();
        home.run(&["up", "--hub", &self.url, "--api-key", &self.key(role), "--label", role]).ok();
        home
    }

    pub fn audit(&self) -> String {
        fs::read_to_string(self.home.file("hub/audit.log")).unwrap_or_default()
    }
}

/// Exposes `port` as `name` from `home`, and waits until the hub knows.
pub fn expose(home: &Home, name: &str, port: u16) -> Running {
    let running = home.start(&["expose", "--json", name, &port.to_string(), "--protocol", "http"]);
    running.wait_event("exposed");
    running
}

/// Reaches `name` from `home`; returns the local port too.
pub fn reach(home: &Home, name: &str) -> (Running, u16) {
    let running = home.start(&["reach", "--json", name]);
    let port = running.wait_event("up")["localPort"].as_u64().unwrap();
    (running, u16::try_from(port).unwrap())
}

/// A service that serves every connection with `serve`, in a thread each.
pub fn service(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Sends back what it gets, and half-closes when its client does.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

pub fn dial(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Whether an echo comes back whole through `port`; false on any error.
pub fn echoes(port: u16, bytes: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    if stream.write_all(bytes).is_err() || stream.shutdown(std::net::Shutdown::Write).is_err() {
        return false;
    }
    let mut back = Vec::new();
    stream.read_to_end(&mut back).is_ok() && back == bytes
}

/// Tries until it is true; returns how long that took.
pub fn eventually(what: &str, patience: Duration, mut is_true: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_true() {
        assert!(began.elapsed() < patience, "never happened: {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
    began.elapsed()
}

/// Bytes that look random and are the same each time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

// Tunnels: what bytes, sessions, hostile_relay, comes_back, tunnel_ports and endings share.

pub mod ends;
pub mod etcd;
pub mod fault;
pub mod raw;

/// A service, its agent and its joiner, all through one hub.
pub struct Tunnelled {
    pub reached: Running,
    pub exposed: Running,
    /// Where `reach` listens.
    pub port: u16,
    pub owner: Home,
    pub user: Home,
    pub hub: Hub,
}

impl Tunnelled {
    pub fn to(port: u16) -> Self {
        Self::to_target(&port.to_string())
    }

    /// `target` as `connect expose` takes it.
    pub fn to_target(target: &str) -> Self {
        let hub = Hub::start();
        let (owner, user) = (hub.machine("member"), hub.machine("member"));
        let exposed = owner.start(&["expose", "--json", "service", target, "--protocol", "tcp"]);
        exposed.wait_event("exposed");
        let (reached, port) = reach(&user, "service");
        Self { reached, exposed, port, owner, user, hub }
    }
}

impl Hub {
    /// A new machine that comes to the hub by this URL.
    pub fn machine_by(&self, url: &str, role: &str) -> Home {
        let home = Home::new();
        home.run(&["up", "--hub", url, "--api-key", &self.key(role), "--label", role]).ok();
        home
    }

    /// How many sessions were relayed since the hub started.
    pub fn sessions(&self) -> u64 {
        let status = self.home.run(&["hub", "status", "--json"]).ok().json();
        status["sessionsTotal"].as_u64().unwrap()
    }
}

impl Running {
    /// The JSON lines of stdout with this `event`, so far.
    pub fn events(&self, event: &str) -> usize {
        let is = |line: &&str| serde_json::from_str::<Value>(line).is_ok_and(|value| value["event"] == event);
        self.out().lines().filter(is).count()
    }

    /// Threads and open descriptors.
    pub fn resources(&self) -> (usize, usize) {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", self.pid())).unwrap().count();
        (count("task"), count("fd"))
    }
}

impl Running {
    /// From now on it may have so many open; how many it might before.
    pub fn limit_descriptors(&self, count: usize) -> usize {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let before = line.split_whitespace().nth(3).unwrap().parse().unwrap();
        let set = Command::new("prlimit")
            .args(["--pid", &self.pid().to_string(), &format!("--nofile={count}:")])
            .status();
        assert!(set.unwrap().success());
        before
    }
}

// The hub's own tests: raw clients and a hub in the test's hand.

pub mod fake_hub;
pub mod https;

/// Runs the command under a shell that does `first` before it: limits, umask.
pub fn under(first: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("sh");
    wrapped
        .arg("-c")
        .arg(format!("{first}; exec \"$0\" \"$@\""))
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// Whether a program that a test wants is here; says loudly when not.
pub fn is_here(program: &str, package: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|folder| folder.join(program).is_file())
    });
    if !found {
        eprintln!("\n*** SKIPPED: there is no {program}; get it with: apt-get install {package} ***\n");
    }
    found
}

impl Hub {
    /// A hub started by a command that the caller changed.
    pub fn start_by(home: Home, command: Command, options: &[&str]) -> Self {
        let running = Running::start(command);
        let said = running.wait_event("listening");
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let (url, address) = (text("url"), text("address"));
        // A build of before has no such file, and says the key.
        let key = fs::read_to_string(home.first_key_file());
        let admin_key = key.map_or_else(|_| text("firstKey"), |key| key.trim().to_owned());
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Self { home, running, url, address, admin_key, options }
    }
}

impl Home {
    /// The command of a hub, which writes its first key into a file.
    pub fn hub(&self, args: &[&str]) -> Command {
        let mut command = self.connect(args);
        if self.program.as_os_str() == env!("CARGO_BIN_EXE_connect") {
            command.arg("--first-key-file").arg(self.first_key_file());
        }
        command
    }

    fn first_key_file(&self) -> PathBuf {
        self.file("first.key")
    }

    /// A folder that somebody else made and removes.
    pub fn at(path: PathBuf) -> Self {
        Self { path, program: program() }
    }
}

// Disks: what store and chaos share.

/// A small disk of its own; `None`, loudly, where that needs more rights than the tester has.
pub struct Disk(PathBuf);

impl Disk {
    pub fn mount(path: &Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k,mode=700", "connect-test"]).arg(path);
        if mount.output().is_ok_and(|done| done.status.success()) {
            return Some(Self(path.to_owned()));
        }
        eprintln!("\n*** SKIPPED: the full disk; mounting a tmpfs needs root: sudo make test ***\n");
        None
    }
}

impl Disk {
    /// Writes until nothing goes any more.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    pub fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// Shares, join and dev.

pub mod servers;
pub mod team;

// What the benches measure.

pub mod measure;
