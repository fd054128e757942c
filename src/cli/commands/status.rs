//! `connect status` and `connect stop`: what of ours runs on this machine, and what fell.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::did_you_mean;
use crate::cli::background;
use crate::cli::logs;
use crate::error::Error;
use crate::error::Result;
use crate::model::text::counted;
use crate::model::time::in_words;
use crate::os::clock;
use crate::os::command::quoted;
use crate::os::files;
use crate::os::paths;
use crate::state::config::Config;
use crate::state::proxy;
use crate::state::runs;
use crate::state::runs::HUB_KIND;
use crate::state::runs::Run;
use crate::state::runs::RunState;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

/// How long `stop` waits for the hub to say whether it knows a service that does not run on this machine.
const HUB_TIMEOUT: Duration = Duration::from_secs(2);

#[allow(clippy::unnecessary_wraps)] // It is a command like the others.
pub fn status(call: &Call) -> CommandResult {
    let all = runs::all(&call.home);
    call.say.value(&all.iter().map(with_last_words).collect::<Vec<_>>());
    match login(call) {
        Ok(login) => call.say.line(&format!("{login}\n")),
        Err(error) => call.say.warn(&error.to_string()),
    }
    if all.is_empty() {
        call.say.line("Nothing is running. Start with: connect reach NAME, or connect expose NAME PORT");
    }
    all.iter().for_each(|run| show(call, run));
    Ok(0)
}

fn login(call: &Call) -> Result<String> {
    let config = call.config()?;
    if call.api_key()?.is_none() {
        return Ok("Not logged in. Log in: connect up".to_owned());
    }
    let label = config.label.as_ref().map(|label| format!(", as {label}")).unwrap_or_default();
    let role = config.role.map(|role| format!(", role {}", role.as_str())).unwrap_or_default();
    Ok(format!("Logged in at {}{label}{role}", call.hub_urls()?[0]))
}

fn last_words(run: &Run) -> Option<String> {
    let log = run.log.as_deref().filter(|_| !run.is_alive())?;
    // What an earlier process by this name wrote is not its word.
    logs::last_words(log).filter(|_| files::changed_at(log).is_some_and(|at| at >= run.started_at))
}

fn with_last_words(run: &Run) -> Value {
    let mut value = serde_json::to_value(run).unwrap_or_default();
    if let Some(words) = last_words(run) {
        value["lastWords"] = words.into();
    }
    value
}

pub fn show(call: &Call, run: &Run) {
    let say = &call.say;
    let since = in_words(clock::now().since(run.started_at));
    if !run.is_alive() {
        let how = if run.state == RunState::Crashed { "crashed" } else { "failed" };
        say.result(&format!("[x] {} {how} (PID {}, started {since} ago)", run.title(), run.pid));
        say.result(&format!(
            "    {}",
            last_words(run).unwrap_or_else(|| "It logged nothing before it ended".to_owned())
        ));
        if let Some(log) = &run.log {
            say.line(&format!("    See more: tail -n 50 {}", quoted(&paths::shown(log))));
        }
        let name = run.names.first().unwrap_or(&run.kind);
        say.line(&format!("    Clear it: connect stop {}", quoted(name)));
        return;
    }
    let place = if run.log.is_some() { "in the background" } else { "in a terminal" };
    say.result(&format!("● {} (PID {}, since {since}, {place})", run.title(), run.pid));
    for open in &run.open {
        let mark = if open.up { "[ok]" } else { "[!]" };
        let carried = match run.kind.as_str() {
            proxy::PROXY_KIND => String::new(),
            _ => format!("  {}, {}", counted(open.sessions, "session"), in_bytes(open.bytes)),
        };
        // In a project's list, services brought here and services of this machine look alike otherwise.
        let kind = if open.exposed && run.kind == "dev" { " (exposed)" } else { "" };
        say.result(&format!("    {mark} {} → {}{kind}{carried}", open.name, open.at));
        if let Some(path) = open.path.as_ref().filter(|_| open.up) {
            say.line(&format!("         by {path}"));
        }
        open.trouble.iter().for_each(|why| say.result(&format!("         {why}")));
    }
    if let Some(address) = run.direct {
        say.result(&format!("    Listens on {address} for direct sessions"));
    }
    if let Some(log) = &run.log {
        say.line(&format!("    Log: {}", log.display()));
    }
}

fn in_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

pub fn stop(call: &Call) -> CommandResult {
    let all = runs::all(&call.home);
    let wanted: Vec<&Run> = match (call.args.positional(0), call.args.flag("all")) {
        (Some(_), true) => {
            return Err(Error::usage("--all stops everything already")
                .hint("Write: connect stop NAME, or connect stop --all"));
        }
        (None, false) => {
            return Err(
                Error::usage("Say what to stop").hint("Write: connect stop NAME|CODE, or connect stop --all")
            );
        }
        // Others depend on a hub, so it has to be named.
        (None, true) => all.iter().filter(|run| run.kind != HUB_KIND).collect(),
        (Some(name), false) => {
            let folded = name.trim().to_ascii_lowercase();
            let is_named = |run: &&Run| {
                run.kind == folded || run.names.iter().any(|known| known.to_ascii_lowercase() == folded)
            };
            let named: Vec<&Run> = all.iter().filter(is_named).collect();
            if !no_longer_kept(call, &folded)? && named.is_empty() {
                return Err(not_running(call, name, &all));
            }
            named
        }
    };
    for run in &wanted {
        background::end(call, &run.title(), run.pid)?;
        let did = if run.is_alive() { "Stopped" } else { "Cleared" };
        call.say.line(&format!("[ok] {did} {}", run.title()));
        let left = run.names.first().filter(|_| !run.is_alive() && run.kind == "expose");
        if let Some(command) = left.and_then(|name| removal(call, name)) {
            call.say.line(&format!("  The hub still lists it; if it is gone for good: {command}"));
        }
    }
    let stopped: Vec<_> =
        wanted.iter().map(|run| json!({ "kind": run.kind, "names": run.names, "pid": run.pid })).collect();
    call.say.value(&stopped);
    if stopped.is_empty() && call.args.flag("all") {
        call.say.line("Nothing was running");
    }
    Ok(0)
}

/// What is stopped by name is not to come back with the next reboot.
fn no_longer_kept(call: &Call, name: &str) -> Result<bool> {
    if !call.config()?.exposures.keys().any(|kept| kept.as_str() == name) {
        return Ok(false);
    }
    Config::change(&call.home, call.config_file(), |config| {
        config.exposures.retain(|kept, _| kept.as_str() != name);
    })?;
    call.say.line(&format!("[ok] {name} is no longer kept exposed by the daemon"));
    Ok(true)
}

/// The command that removes what a crash has left: a service that the hub lists as offline.
pub fn removal(call: &Call, name: &str) -> Option<String> {
    let agent = call.config().ok()?.agent_id.clone();
    let is_left = |service: &ServiceInfo| {
        let is_own = service.share.is_none() || Some(&service.agent_id) == agent.as_ref();
        service.name.as_str() == name && service.status == Status::Offline && is_own
    };
    let listed = call.hub().and_then(|hub| hub.with_timeout(HUB_TIMEOUT).services()).ok()?;
    Some(match listed.into_iter().find(is_left)?.share {
        Some(share) => format!("connect share revoke {}", share.id),
        None => format!("connect services remove {name}"),
    })
}

fn not_running(call: &Call, name: &str, all: &[Run]) -> Error {
    if let Some(command) = removal(call, name) {
        return Error::new(format!("Nothing called {name} is running, but the hub lists it as offline"))
            .hint(format!("If it is gone for good: {command}"));
    }
    let known = all.iter().flat_map(|run| run.names.iter().map(String::as_str));
    let hint = did_you_mean(name, known, "connect stop ", "See what runs: connect status");
    Error::new(format!("Nothing called {} is running", name.escape_debug())).hint(hint)
}
