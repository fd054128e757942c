//! `connect demo`: the main job on this one machine. A hub, an agent and a joiner run as three machines would, each with
//! a state folder of its own in a temporary folder. Each command is shown as it runs; nothing stays.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::serve::BoundPort;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::serve::shut;
use crate::net::stop::Registration;
use crate::os::command::quoted;
use crate::os::environment;
use crate::os::files;
use crate::os::process;
use crate::os::secret;
use crate::os::terminal;

const PAGE: &str =
    "<h1>It works</h1><p>This page came from machine A to machine B, end-to-end encrypted.</p>\n";
/// The browser's, curl's and a neighbour's; nobody else asks for this page.
const PAGE_READERS: usize = 16;

pub fn run(call: &Call) -> CommandResult {
    let demo = Demo::new(call)?;
    let say = |text: &str| call.say.line(text);
    say("connect demo: three machines on this one, each with a state folder of its own");

    say("\n1. Machine H: the hub, where the others meet. It relays what it cannot read.\n");
    let hub = ["hub", "--listen", "127.0.0.1:0", "--tunnel-ports", "off", "--first-key-file", "key"];
    let (_hub, lines) = demo.start("H", &hub, "Ctrl+C")?;
    let url = format!("https://{}", word_with(&lines, "127.0.0.1:")?);

    say("\n2. Machines A and B log in.\n");
    for machine in ["A", "B"] {
        let label = format!("machine-{machine}");
        demo.run(machine, &["up", "--hub", &url, "--api-key-file", "key", "--label", &label])?;
    }

    say("\n3. Machine A has a web page on a local port, and exposes it.\n");
    let (_page, page_port) = serve_page(call)?;
    let target = page_port.to_string();
    let (_exposed, _) = demo.start("A", &["expose", "demo-web", &target, "--protocol", "http"], "Ctrl+C")?;

    say("\n4. Machine B brings it to a port of its own.\n");
    demo.run("B", &["services"])?;
    let (_reached, lines) = demo.start("B", &["reach", "demo-web"], "Ctrl+C")?;
    let address = word_with(&lines, "localhost:")?;
    demo.fetch(&address)?;

    say("\n5. A CI job uses it by a link: without an account, a key or a login.\n");
    let share = ["share", "--service", "demo-web", "--name", "demo", "--expires", "1h", "--link"];
    let shared = demo.run("A", &share)?;
    let link = word_with(&shared, "https://")?;
    demo.run("job", &["join", &link, "--", "sh", "-c", "echo the page is at $DEMO_WEB_ADDR"])?;

    if terminal::is_terminal_in() {
        say(&format!("\nThe page stays at http://{address}/ until you press Ctrl+C."));
        call.stop.wait();
    }
    say("\nThat is all. The programs are stopped and their folder is removed.");
    Ok(0)
}

/// A temporary folder, which goes with it.
struct Demo<'c> {
    call: &'c Call,
    program: PathBuf,
    folder: PathBuf,
}

/// A command that keeps running. It is stopped when this goes, and when the demo is interrupted.
struct RunningCommand {
    child: Child,
    /// Kept open: a command that prints into a closed pipe would fail.
    output: BufReader<ChildStdout>,
    _cut: Registration,
}

impl<'c> Demo<'c> {
    fn new(call: &'c Call) -> Result<Self> {
        let folder = std::env::temp_dir().join(secret::id("connect-demo"));
        files::private_dir(&folder)?;
        let program = std::env::current_exe().or_say(|| "Cannot find this program's own file")?;
        Ok(Self { call, program, folder })
    }

    /// Shows the command, and makes it one of this machine's.
    fn command(&self, machine: &str, words: &[&str]) -> Command {
        let shown: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        self.call.say.line(&format!("  {machine} $ connect {}", shown.join(" ")));
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(&self.folder).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| environment::is_own(name)) {
            command.env_remove(name);
        }
        command.env("PRIVATECONNECT_HOME", self.folder.join(machine)).env("CONNECT_NO_PROXY", "1");
        command
    }

    /// Runs a command to its end and returns what it printed.
    fn run(&self, machine: &str, words: &[&str]) -> Result<String> {
        let ended = self.command(machine, words).output();
        let Output { status, stdout, stderr } = ended.or_say(|| "Cannot run this program a second time")?;
        self.call.fail_if_stopped()?;
        let text = String::from_utf8_lossy(&stdout).into_owned();
        text.lines().for_each(|line| self.show(line));
        if status.success() {
            return Ok(text);
        }
        let stderr = String::from_utf8_lossy(&stderr);
        Err(Error::new(format!("`connect {}` failed: {}", words[0], stderr.trim())))
    }

    /// Starts a command and returns once it has printed `ready`, with all that it printed until then.
    fn start(&self, machine: &str, words: &[&str], ready: &str) -> Result<(RunningCommand, String)> {
        let spawned = self.command(machine, words).stdout(Stdio::piped()).spawn();
        let mut child = spawned.or_say(|| "Cannot run this program a second time")?;
        let output = child.stdout.take().expect("its output is piped");
        let pid = child.id();
        let cut = self.call.stop.on_stop(move || process::terminate(pid)).ok_or_else(Error::stopped)?;
        let mut running = RunningCommand { child, output: BufReader::new(output), _cut: cut };
        let mut text = String::new();
        loop {
            let from = text.len();
            let read = running.output.read_line(&mut text).or_say(|| "Cannot read what it prints")?;
            self.call.fail_if_stopped()?;
            if read == 0 {
                return Err(Error::new(format!("`connect {}` ended at once", words[0])));
            }
            self.show(text[from..].trim_end());
            if text[from..].contains(ready) {
                return Ok((running, text));
            }
        }
    }

    fn fetch(&self, address: &str) -> Result<()> {
        self.call.say.line(&format!("  B $ curl http://{address}/"));
        let failed = || "The page did not come through the tunnel";
        let mut stream = TcpStream::connect(address).or_say(failed)?;
        stream.set_read_timeout(Some(NETWORK_TIMEOUT)).or_say(failed)?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").or_say(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).or_say(failed)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        if body != PAGE {
            return Err(Error::new(failed()));
        }
        self.show(body.trim_end());
        Ok(())
    }

    fn show(&self, line: &str) {
        self.call.say.line(&format!("      {line}"));
    }
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            log::warn!("{} stays: {error}", self.folder.display());
        }
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        process::terminate(self.child.id());
        let _ = self.child.wait();
    }
}

/// The page of machine A, until the server is dropped.
fn serve_page(call: &Call) -> Result<(Server, u16)> {
    let bound = BoundPort::bind(0).or_say(|| "No port is free on this machine")?;
    let port = bound.port;
    let options = ServeOptions {
        name: "page",
        limit: PAGE_READERS,
        new_worker: each(|stream| answer_page(&stream)),
        idle: Some(Duration::from_secs(10)),
        cut: shut,
        make_room: None,
        turn_away: Box::new(|_| ()),
    };
    let listener = bound.listeners.into_iter().next().expect("127.0.0.1 is bound first");
    Ok((Server::start(listener, options, &call.stop)?, port))
}

fn answer_page(mut stream: &TcpStream) {
    // The head of any request fits; a client that sends less gets the page, too.
    let _ = stream.read(&mut [0; 4096]);
    let length = PAGE.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(format!("{head}{PAGE}").as_bytes());
}

/// The first word of an output that has `part` in it, from there on. A link is printed in quotes.
fn word_with(text: &str, part: &str) -> Result<String> {
    let word = text.split_whitespace().find_map(|word| word.find(part).map(|at| &word[at..]));
    let word = word.map(|word| word.trim_end_matches('\'').to_owned());
    word.ok_or_else(|| Error::new(format!("There is no {part} in what it printed")))
}
