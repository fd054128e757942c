//! Steps by which the machine is changed: planned, shown as what a user would type, then carried out.

use std::env;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
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

/// No tool takes so long that it is not waiting for somebody.
const PATIENCE: Duration = Duration::from_secs(20);
const TURN: Duration = Duration::from_millis(10);
/// What is kept of a tool's complaint.
const SAID: u64 = 4096;

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Copy {
        from: PathBuf,
        to: PathBuf,
    },
    /// A file for all to read, in a folder that may have to be made.
    Write {
        path: PathBuf,
        text: String,
    },
    Remove(PathBuf),
    Folder(PathBuf),
    Run(Vec<String>),
    /// As `Run`, and its failure says that there was nothing to do.
    Try(Vec<String>),
}

/// `more` may hold blanks.
pub fn words(line: &str, more: &[&str]) -> Vec<String> {
    line.split(' ').chain(more.iter().copied()).map(str::to_owned).collect()
}

pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Tools of the administrator are not on every user's path.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.into_iter().any(|folder| folder.join(program).is_file())
}

impl Step {
    /// What a user types to do the same.
    pub fn command(&self) -> String {
        let shown = |path: &Path| quoted(&path.display().to_string());
        match self {
            Step::Copy { from, to } => format!("install -m 644 {} {}", shown(from), shown(to)),
            Step::Write { path, .. } => format!("write {}", shown(path)),
            Step::Remove(path) => format!("rm -f {}", shown(path)),
            Step::Folder(path) => format!("mkdir -p {}", shown(path)),
            Step::Run(line) | Step::Try(line) => {
                line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    pub fn carry_out(&self) -> Result<()> {
        let sorry = || format!("This failed: {}", self.command());
        match self {
            Step::Copy { from, to } => {
                let bytes = fs::read(from).or_say(sorry)?;
                fs::write(to, bytes).or_say(sorry)?;
                fs::set_permissions(to, fs::Permissions::from_mode(0o644)).or_say(sorry)
            }
            Step::Write { path, text } => {
                let folder = path.parent().unwrap_or(path);
                fs::create_dir_all(folder).and_then(|()| fs::write(path, text)).or_say(sorry)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o644)).or_say(sorry)
            }
            Step::Remove(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).or_say(sorry),
                _ => Ok(()),
            },
            Step::Folder(path) => fs::create_dir_all(path).or_say(sorry),
            Step::Run(line) => run(line),
            Step::Try(line) => {
                let _ = run(line);
                Ok(())
            }
        }
    }
}

/// As a shell takes it for one word.
pub fn quoted(word: &str) -> String {
    if word.contains([' ', '\'', '"', '$']) {
        format!("'{}'", word.replace('\'', r"'\''"))
    } else {
        word.to_owned()
    }
}

/// What a tool prints; `None` when it fails or there is no such tool.
pub fn ask(line: &[&str]) -> Option<String> {
    finished(&line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        .ok()
        .map(|said| String::from_utf8_lossy(&said).into_owned())
}

fn run(line: &[String]) -> Result<()> {
    finished(line).map(drop)
}

/// Bounded: `certutil` asks for a database's password again and again, though nobody can answer.
fn finished(line: &[String]) -> Result<Vec<u8>> {
    let sorry = || format!("This failed: {}", line.join(" "));
    let Some((program, arguments)) = line.split_first() else { return Ok(Vec::new()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().or_say(sorry)?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().or_say(sorry)? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::park_timeout(TURN),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::new(sorry()).because("it did not end; the store may have a password"));
            }
        }
    };
    if status.success() {
        return Ok(begun(child.stdout.take()));
    }
    let said = begun(child.stderr.take());
    let said = String::from_utf8_lossy(&said);
    Err(Error::new(sorry()).because(said.lines().last().unwrap_or("it says no more").to_owned()))
}

/// The first part of what it said.
fn begun(stream: Option<impl Read>) -> Vec<u8> {
    let mut said = Vec::new();
    let _ = stream.map(|stream| stream.take(SAID).read_to_end(&mut said));
    said
}
