//! Runs `tests/scenarios/*.txt` through the real binary: what a user types, and what must appear.
//!
//! A scenario is a text file. Lines up to the first `$` are its title and settings:
//!
//! ```text
//! # One sentence that says what is shown
//! hub                     starts a hub: $HUB (its URL), $ADDRESS (host:port), $KEY (an admin key), $PIN, $CA (a file)
//! machine NAME [ROLE]     a machine of its own, logged in at that hub [member]; `machine NAME -` is not logged in
//! service NAME            an echo server; its port is $NAME
//! closed NAME             a port on which nothing listens; its number is $NAME
//! ```
//!
//! The steps follow. `$ connect …` runs on the machine that the last `on NAME` named (at first a fresh one
//! without a login), `on hub` is the hub's own. Below stands what must appear: lines as they are are stdout,
//! lines behind `2> ` are stderr, and `= N` is the exit code where it is not 0. All of both must be there, in
//! order. An empty line ends a step, so one that must appear is written `.`. In a line `*` stands for anything,
//! `…` alone for any number of lines. Under `--json`, `~ PATH VALUE`
//! looks into the value: `~ [0].name db`; `*` is any value that is there, `-` one that is not or is null.
//!
//! `& connect …` runs in the background until the scenario ends; the lines below it are waited for on stdout
//! or stderr, each `*`-pattern by itself. `stop NAME…` ends the background command in which those words stand
//! with Ctrl-C, `crash NAME…` with kill -9; `wait PATTERN` waits for a line of the last one, `wait-for WORD connect …`
//! until what that command prints has the word in it. `set NAME PATTERN` takes what `*` stands for in the first line (of the last command or of any
//! in the background) that fits. `kill hub` and `start hub` do what they say. `env NAME=VALUE` (or `NAME=` to
//! remove it) holds for what follows. `http METHOD PATH [BODY]` asks the hub by raw HTTPS with $KEY; then come
//! `= STATUS` and `~` lines or lines that its body must contain. `file NAME CONTENT` writes into the home.
//!
//! Words are split at blanks and 'quotes' hold them together. $NAME is filled in everywhere.

mod common;
#[path = "common/scenario.rs"]
mod scenario;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

#[test]
fn every_scenario_reads_as_it_is_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    // One alone: SCENARIO=help cargo test --test scenarios
    if let Ok(wanted) = std::env::var("SCENARIO") {
        files.retain(|path| path.to_string_lossy().contains(&wanted));
    }
    assert!(!files.is_empty());
    let (next, failed) = (Mutex::new(files.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(path) = { next.lock().unwrap().next() } {
                    if let Err(report) = scenario::run(&path) {
                        failed.lock().unwrap().push(report);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} scenario(s) differ\n\n{}", failed.len(), failed.join("\n\n"));
}

/// Strings of `src`, without its comments and unit tests: whatever the program may say. `error.rs` translates these words.
#[test]
fn no_message_of_the_program_has_a_librarys_words() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let said = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            for line in said.filter(|line| !path.ends_with("error.rs") && line.contains('"')) {
                let word = scenario::LIBRARY_WORDS.iter().find(|word| line.contains(*word));
                assert_eq!(word, None, "{}: {line}", path.display());
            }
        }
    }
}
