//! Reads and plays one scenario; `tests/scenarios.rs` says how they are written.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::common::Home;
use crate::common::Hub;
use crate::common::PATIENCE;
use crate::common::Running;
use crate::common::Said;
use crate::common::echo;
use crate::common::eventually;
use crate::common::service;

struct Stage {
    hub: Option<Hub>,
    machines: BTreeMap<String, Home>,
    variables: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    on: String,
    background: Vec<(String, Running)>,
    last: Said,
}

type Told = Result<(), String>;

/// What went wrong, with the file and the line.
pub fn run(path: &Path) -> Told {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut stage = Stage::new();
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].trim_end();
        let mut end = at + 1;
        if is_command(line) {
            while end < lines.len() && !is_command(lines[end]) && !lines[end].is_empty() {
                end += 1;
            }
        }
        let expected: Vec<String> = lines[at + 1..end].iter().map(|line| stage.fill(line)).collect();
        let (filled, stage) = (stage.fill(line), &mut stage);
        let played = panic::catch_unwind(AssertUnwindSafe(|| stage.play(&filled, &expected)));
        let played = played.unwrap_or_else(|_| Err("it panicked; see above".into()));
        played.map_err(|why| format!("{}:{}: {filled}\n{why}", path.display(), at + 1))?;
        at = end;
    }
    Ok(())
}

const VERBS: [&str; 15] = [
    "$ ",
    "& ",
    "on ",
    "stop ",
    "crash ",
    "wait ",
    "wait-for ",
    "set ",
    "kill hub",
    "start hub",
    "env ",
    "http ",
    "file ",
    "# ",
    "hub",
];
const SETTINGS: [&str; 3] = ["machine ", "service ", "closed "];

fn is_command(line: &str) -> bool {
    VERBS
        .iter()
        .chain(&SETTINGS)
        .any(|verb| line.starts_with(verb) && (*verb != "hub" || line.trim_end() == "hub"))
}

impl Stage {
    fn new() -> Self {
        let machines = [("fresh".to_owned(), Home::new())].into();
        let last = Said { code: None, out: String::new(), err: String::new() };
        let (variables, environment) = Default::default();
        Self { hub: None, machines, variables, environment, on: "fresh".into(), background: Vec::new(), last }
    }

    /// Longer names first, so that $KEY does not eat the front of $KEYID.
    fn fill(&self, text: &str) -> String {
        let fold = |text: String, (name, value): (&String, &String)| text.replace(&format!("${name}"), value);
        let mut names: Vec<_> = self.variables.iter().collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        names.into_iter().fold(text.to_owned(), fold)
    }

    fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("the scenario starts no hub")
    }

    fn home(&self) -> &Home {
        if self.on == "hub" {
            &self.hub().home
        } else {
            self.machines.get(&self.on).expect("no such machine")
        }
    }

    fn play(&mut self, line: &str, expected: &[String]) -> Told {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words = split(rest);
        match verb {
            "" | "#" => {}
            "hub" => self.start_hub(),
            "machine" => self.add_machine(&words[0], words.get(1).map_or("member", String::as_str)),
            "service" => self.let_be(&words[0], service(echo).to_string()),
            "closed" => {
                let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
                self.let_be(&words[0], port.to_string());
            }
            "on" => rest.clone_into(&mut self.on),
            "env" => {
                let (name, value) = rest.split_once('=').expect("env NAME=VALUE");
                self.environment.insert(name.into(), value.into());
            }
            "file" => {
                let (name, content) = rest.split_once(' ').expect("file NAME CONTENT");
                fs::write(self.home().file(name), content).unwrap();
            }
            "set" => return self.take(rest),
            "kill" => self.hub.as_mut().unwrap().running.kill(),
            "start" => self.hub.as_mut().unwrap().restart(),
            "stop" => return self.stop(rest),
            "crash" => self.take_from_background(rest)?.kill(),
            "wait" => return self.wait(rest),
            "wait-for" => {
                let (pattern, command) = rest.split_once(' ').expect("wait-for WORD connect …");
                let words = split(command);
                eventually(rest, PATIENCE, || Said::of(self.command(&words)).out.contains(pattern));
            }
            "$" => {
                self.last = Said::of(self.command(&words));
                return compare(&self.last, expected);
            }
            "&" => return self.start(rest, &words, expected),
            "http" => return self.http(rest, expected),
            _ => return Err(format!("what is `{verb}`?")),
        }
        Ok(())
    }

    fn let_be(&mut self, name: &str, value: String) {
        self.variables.insert(name.to_owned(), value);
    }

    fn start_hub(&mut self) {
        let hub = Hub::start();
        let pin = hub.admin_key.split('.').nth(1).unwrap().to_owned();
        for (name, value) in
            [("HUB", &hub.url), ("ADDRESS", &hub.address), ("KEY", &hub.admin_key), ("PIN", &pin)]
        {
            self.variables.insert(name.into(), value.clone());
        }
        self.variables.insert("CA".into(), hub.home.file("hub/certs/ca.crt").display().to_string());
        self.hub = Some(hub);
    }

    fn add_machine(&mut self, name: &str, role: &str) {
        let home = if role == "-" { Home::new() } else { self.hub().machine(role) };
        self.machines.insert(name.to_owned(), home);
    }

    fn command(&self, words: &[String]) -> std::process::Command {
        assert_eq!(words[0], "connect");
        let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let mut command = self.home().connect(&args);
        for (name, value) in &self.environment {
            if value.is_empty() {
                command.env_remove(name)
            } else {
                command.env(name, value)
            };
        }
        command
    }

    fn start(&mut self, line: &str, words: &[String], expected: &[String]) -> Told {
        let running = Running::start(self.command(words));
        for pattern in expected.iter().filter(|pattern| *pattern != ".") {
            said_by(&running, pattern.strip_prefix("2> ").unwrap_or(pattern))?;
        }
        self.background.push((line.to_owned(), running));
        Ok(())
    }

    fn stop(&mut self, words: &str) -> Told {
        let mut running = self.take_from_background(words)?;
        let (status, _) = running.interrupt();
        self.last = running.finish();
        if status.code() == Some(0) {
            Ok(())
        } else {
            Err(format!("it ended with {status:?}: {:#?}", self.last))
        }
    }

    fn take_from_background(&mut self, words: &str) -> Result<Running, String> {
        let at = self
            .background
            .iter()
            .position(|(line, _)| line.contains(words))
            .ok_or("nothing like it runs")?;
        Ok(self.background.remove(at).1)
    }

    fn wait(&self, pattern: &str) -> Told {
        let (_, running) = self.background.last().ok_or("nothing runs")?;
        said_by(running, pattern)
    }

    fn take(&mut self, rest: &str) -> Told {
        let (name, pattern) = rest.split_once(' ').expect("set NAME PATTERN");
        let (front, behind) = pattern.split_once('*').expect("a pattern has a *");
        let texts = self.background.iter().rev().flat_map(|(_, running)| [running.out(), running.err()]);
        let texts: Vec<String> =
            [self.last.out.clone(), self.last.err.clone()].into_iter().chain(texts).collect();
        let found = texts
            .iter()
            .flat_map(|text| text.lines())
            .find_map(|line| line.strip_prefix(front)?.strip_suffix(behind).map(str::to_owned));
        let found = found.ok_or_else(|| format!("no line fits in:\n{}", texts.join("\n")))?;
        self.let_be(name, found);
        Ok(())
    }

    fn http(&mut self, rest: &str, expected: &[String]) -> Told {
        let mut parts = rest.splitn(3, ' ');
        let call = format!("{} {}", parts.next().unwrap(), parts.next().unwrap());
        let answer = self.hub().ask(&call, &self.variables["KEY"], parts.next().unwrap_or_default());
        let mut status = 200;
        for line in expected {
            if let Some(wanted) = line.strip_prefix("= ") {
                status = wanted.parse().unwrap();
            } else if let Some(look) = line.strip_prefix("~ ") {
                look_into(&answer.json(), look)?;
            } else if !answer.body.contains(line.as_str()) {
                return Err(format!("`{line}` is not in {}", answer.body));
            }
        }
        if answer.status == status { Ok(()) } else { Err(format!("{answer:#?}")) }
    }
}

/// Waits until the program has said such a line, on stdout or stderr.
fn said_by(running: &Running, pattern: &str) -> Told {
    let began = Instant::now();
    let seen =
        || [running.out(), running.err()].iter().any(|said| said.lines().any(|line| fits(pattern, line)));
    while !seen() {
        if began.elapsed() > PATIENCE {
            return Err(format!("it never said `{pattern}`, but:\n{}\n{}", running.out(), running.err()));
        }
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    Ok(())
}

fn split(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            '\'' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// Words of libraries, which say nothing to a user.
pub const LIBRARY_WORDS: [&str; 5] =
    ["UnknownIssuer", "InvalidContentType", "os error", "Err(Kind(UnexpectedEof))", "Custom {"];

fn compare(said: &Said, expected: &[String]) -> Told {
    if let Some(word) = LIBRARY_WORDS.iter().find(|word| said.out.contains(*word) || said.err.contains(*word))
    {
        return Err(format!("a library's words, {word}: {said:#?}"));
    }
    let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), 0);
    for line in expected {
        if let Some(line) =
            line.strip_prefix("2> ").or(line.strip_suffix("2>").filter(|rest| rest.is_empty()))
        {
            err.push(line);
        } else if let Some(wanted) = line.strip_prefix("= ") {
            code = wanted.parse().map_err(|_| format!("`{line}` is no exit code"))?;
        } else if let Some(look) = line.strip_prefix("~ ") {
            let value: Value =
                serde_json::from_str(&said.out).map_err(|error| format!("{error}: {said:#?}"))?;
            look_into(&value, look)?;
            out.push("…");
        } else {
            out.push(if line == "." { "" } else { line });
        }
    }
    out.dedup_by(|a, b| *a == "…" && *b == "…");
    let given: Vec<&str> = said.out.lines().collect();
    let given_err: Vec<&str> = said.err.lines().collect();
    if said.code != Some(code) || !all_fit(&out, &given) || !all_fit(&err, &given_err) {
        let shown = |lines: &[&str]| lines.iter().flat_map(|line| ["  |", line, "\n"]).collect::<String>();
        return Err(format!(
            "expected {code}, got {:?}\nexpected stdout:\n{}got:\n{}expected stderr:\n{}got:\n{}",
            said.code,
            shown(&out),
            shown(&given),
            shown(&err),
            shown(&given_err)
        ));
    }
    Ok(())
}

fn all_fit(patterns: &[&str], lines: &[&str]) -> bool {
    match patterns {
        [] => lines.is_empty(),
        ["…", rest @ ..] => (0..=lines.len()).any(|skipped| all_fit(rest, &lines[skipped..])),
        [first, rest @ ..] => {
            lines.first().is_some_and(|line| fits(first, line)) && all_fit(rest, &lines[1..])
        }
    }
}

fn fits(pattern: &str, line: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == line,
        Some((front, rest)) => line.strip_prefix(front).is_some_and(|behind| {
            behind.char_indices().map(|(at, _)| at).chain([behind.len()]).any(|at| fits(rest, &behind[at..]))
        }),
    }
}

/// `[0].name db`: the value there, as JSON or plain.
fn look_into(value: &Value, look: &str) -> Told {
    let (path, wanted) = look.split_once(' ').unwrap_or((look, "*"));
    let mut found = Some(value);
    for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
        found = found.and_then(|value| match step.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(step),
        });
    }
    let found = found.filter(|value| !value.is_null());
    let text = found.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    match (wanted, text) {
        ("-", None) => Ok(()),
        (_, Some(text)) if wanted != "-" && fits(wanted, &text) => Ok(()),
        (_, text) => Err(format!("{path} is {text:?} and not {wanted}, in {value}")),
    }
}
