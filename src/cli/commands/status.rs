//! `connect status` and `connect stop`: what of ours runs on this machine.

use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::cli::Call;
use crate::cli::Outcome;
use crate::error::Error;
use crate::error::Result;
use crate::model::suggest;
use crate::model::time::in_words;
use crate::os::clock;
use crate::os::process;
use crate::state::runs;
use crate::state::runs::Run;

/// Everything of ours ends in under a second; the rest is patience with a busy machine.
const ENDING: Duration = Duration::from_secs(5);

#[allow(clippy::unnecessary_wraps)] // It is a command like the others.
pub fn status(call: &Call) -> Outcome {
    let (say, all) = (&call.say, runs::all(&call.home));
    say.value(&all);
    if all.is_empty() {
        say.line("Nothing is running. Start with: connect reach NAME, or connect expose NAME PORT");
        return Ok(0);
    }
    for run in &all {
        let since = in_words(clock::now().since(run.started_at));
        let place = if run.log.is_some() { "in the background" } else { "in a terminal" };
        say.result(&format!(
            "● {} {} (PID {}, since {since}, {place})",
            run.kind,
            run.names.first().map_or("", String::as_str),
            run.pid
        ));
        for open in &run.open {
            let mark = if open.up { "[ok]" } else { "[!]" };
            let bytes = in_bytes(open.bytes);
            say.result(&format!(
                "    {mark} {} → {}  {} session(s), {bytes}",
                open.name, open.at, open.sessions
            ));
        }
        if let Some(log) = &run.log {
            say.line(&format!("    Log: {}", log.display()));
        }
    }
    Ok(0)
}

fn in_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

pub fn stop(call: &Call) -> Outcome {
    let all = runs::all(&call.home);
    let everything = call.args.flag("all");
    let wanted: Vec<&Run> = match call.args.positional(0) {
        Some(_) if everything => {
            return Err(Error::usage("--all stops everything already")
                .hint("Write: connect stop NAME, or connect stop --all"));
        }
        None if !everything => {
            return Err(Error::usage("What is to be stopped?")
                .hint("Write: connect stop NAME|CODE, or connect stop --all"));
        }
        None => all.iter().collect(),
        Some(name) => {
            let folded = name.trim().to_ascii_lowercase();
            all.iter()
                .filter(|run| {
                    run.kind == folded || run.names.iter().any(|known| known.to_ascii_lowercase() == folded)
                })
                .collect()
        }
    };
    if wanted.is_empty() && !everything {
        return Err(not_running(call.args.positional(0).unwrap_or_default(), &all));
    }
    for run in &wanted {
        end(call, run)?;
        call.say.line(&format!("[ok] Stopped {} {}", run.kind, run.names.first().map_or("", String::as_str)));
    }
    let stopped: Vec<_> =
        wanted.iter().map(|run| json!({ "kind": run.kind, "names": run.names, "pid": run.pid })).collect();
    call.say.value(&stopped);
    if stopped.is_empty() {
        call.say.line("Nothing was running");
    }
    Ok(0)
}

fn not_running(name: &str, all: &[Run]) -> Error {
    let error = Error::new(format!("Nothing called {} is running", name.escape_debug()));
    match suggest::nearest(name, all.iter().flat_map(|run| run.names.iter().map(String::as_str))) {
        Some(near) => error.hint(format!("Did you mean: connect stop {near}")),
        None => error.hint("See what runs: connect status"),
    }
}

/// Asks it to end, and waits until it has. Its lock, not its number, says that it is ours.
fn end(call: &Call, run: &Run) -> Result<()> {
    if !runs::is_alive(&call.home, run.pid) {
        return Ok(());
    }
    process::terminate(run.pid);
    let deadline = Instant::now() + ENDING;
    while runs::is_alive(&call.home, run.pid) {
        if Instant::now() >= deadline {
            return Err(Error::new(format!("{} (PID {}) does not end", run.kind, run.pid))
                .hint(format!("Look at it, then: kill -9 {}", run.pid)));
        }
        if call.stop.wait_for(Duration::from_millis(20)) {
            return call.go_on();
        }
    }
    Ok(())
}
