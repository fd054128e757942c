//! `connect daemon start`, `stop`, `restart`, `status` and `logs`.

use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::daemon_service;
use super::status::show;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::call::not_configured;
use crate::cli::daemon_exposures::DaemonExposures;
use crate::cli::logs;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::os::detach;
use crate::os::detach::BackgroundStart;
use crate::os::files;
use crate::state::config::Config;
use crate::state::config::SavedExposure;
use crate::state::runs;
use crate::state::runs::DAEMON_KIND;
use crate::state::runs::Run;
use crate::tunnel::agent::Exposure;

pub const DAEMON_LOG: &str = "agent.log";
/// How long the daemon has to expose what was just saved.
const EXPOSE_TIMEOUT: Duration = Duration::from_secs(10);

pub fn start(call: &Call) -> CommandResult {
    if call.args.flag("foreground") || call.is_background() {
        return serve(call);
    }
    if let Some(run) = runs::running(&call.home, DAEMON_KIND) {
        call.say.line(&format!("[ok] The daemon already runs (PID {})", run.pid));
        call.say.event(&json!({ "event": "running", "pid": run.pid }));
        return Ok(0);
    }
    if daemon_service::start(call)? {
        return Ok(0);
    }
    begin(call, detach::own_arguments(), true)
}

fn begin(call: &Call, arguments: Vec<std::ffi::OsString>, aloud: bool) -> CommandResult {
    let log = call.home.file(DAEMON_LOG);
    let started =
        background::start(call, &BackgroundStart { arguments, environment: &[], log: &log }, aloud)?;
    call.fail_if_stopped()?;
    Ok(background::say_begun(call, started, &log))
}

fn serve(call: &Call) -> CommandResult {
    let config = call.config()?;
    call.api_key()?.ok_or_else(not_configured)?;
    files::private_dir(&call.home.file("run"))?;
    let _alone = files::try_lock(&call.home.file("run/daemon.lock"))?.ok_or_else(|| {
        Error::new("The daemon already runs")
            .hint("Look at it: connect daemon status, or: connect daemon restart")
    })?;
    let mut run = runs::register(&call.home, DAEMON_KIND, &[DAEMON_KIND.to_owned()])?;
    let mut keeper = DaemonExposures::new(call)?;
    call.say.line(&format!("[ok] Daemon started; it keeps {} exposure(s) up", config.exposures.len()));
    keeper.settle(&mut run);
    call.fail_if_stopped()?;
    if config.exposures.is_empty() {
        call.say.line("  Nothing is saved yet: connect expose NAME PORT --keep");
    }
    let foreground = !call.is_background();
    call.say.line(if foreground { "  Press Ctrl+C to stop" } else { "  Stop: connect daemon stop" });
    background::ready(call)?;
    keeper.keep_up(&mut run);
    run.ends_well();
    detach::notify("STOPPING=1");
    drop(keeper);
    call.say.event(&json!({ "event": "stopped" }));
    Ok(0)
}

pub fn stop(call: &Call) -> CommandResult {
    let run = end(call)?;
    call.say.line(if run.is_some() { "[ok] Daemon stopped." } else { "[ok] No daemon is running." });
    call.say.value(&json!({ "stopped": run.is_some(), "pid": run.map(|run| run.pid) }));
    Ok(0)
}

/// The one that ran, and does no more.
pub fn end(call: &Call) -> Result<Option<Run>> {
    let run = runs::running(&call.home, DAEMON_KIND);
    run.iter().try_for_each(|run| background::end(call, "The daemon", run.pid))?;
    Ok(run)
}

pub fn restart(call: &Call) -> CommandResult {
    end(call)?;
    if daemon_service::start(call)? {
        return Ok(0);
    }
    let words: &[&str] = if call.say.json { &["daemon", "start", "--json"] } else { &["daemon", "start"] };
    begin(call, background::arguments(call, words), true)
}

pub fn status(call: &Call) -> CommandResult {
    let kept = call.config()?.exposures.clone();
    let run = runs::all(&call.home).into_iter().rev().find(|run| run.kind == DAEMON_KIND);
    let is_running = run.as_ref().is_some_and(Run::is_alive);
    let installed = daemon_service::installed();
    call.say.value(&json!({ "running": is_running, "daemon": run, "kept": kept, "installed": installed }));
    match &run {
        Some(run) => show(call, run),
        None => call.say.result("○ Daemon: not running"),
    }
    if !is_running {
        for (name, kept) in &kept {
            call.say.result(&format!("    ○ {name} → {} is saved, not exposed", kept.target));
        }
        call.say.line("    Start it: connect daemon start");
    }
    if kept.is_empty() {
        call.say.line("    Nothing is saved yet: connect expose NAME PORT --keep");
    }
    match installed {
        Some(file) => call.say.line(&format!("    Installed: {}", file.display())),
        None => call.say.line("    A reboot ends it. To have it start by itself: connect daemon install"),
    }
    Ok(0)
}

pub fn logs(call: &Call) -> CommandResult {
    logs::show(call, &call.home.file(DAEMON_LOG), "Start the daemon: connect daemon start")
}

/// `connect expose --keep`: saves it, sees that a daemon runs, and waits for the daemon's word.
pub fn keep(call: &Call, exposure: &Exposure) -> CommandResult {
    if call.args.flag("detach") {
        return Err(Error::usage("--keep is in the background already").hint("Leave out -d"));
    }
    call.api_key()?.ok_or_else(not_configured)?;
    let (name, target) = (&exposure.name, &exposure.target);
    let kept = SavedExposure { target: target.clone(), protocol: exposure.protocol };
    Config::change(&call.home, call.config_file(), |config| config.exposures.insert(name.clone(), kept))?;
    if runs::running(&call.home, DAEMON_KIND).is_none()
        && !daemon_service::start(call)?
        && begin(call, background::arguments(call, &["daemon", "start", "--quiet"]), false)? != 0
    {
        return Err(Error::new(format!("{name} is saved, but the daemon does not start"))
            .hint("See why: connect daemon start"));
    }
    let trouble = wait_for(call, name, &target.to_string())?;
    call.say.event(&json!({ "event": "kept", "name": name, "target": target, "up": trouble.is_none(), "reason": trouble }));
    match trouble {
        None => call.say.result(&format!("[ok] {name} → {target} is exposed, and the daemon keeps it so")),
        Some(why) => call.say.warn(&format!("{name} is saved, and exposed as soon as that can be: {why}")),
    }
    call.say.line(&format!("  Undo it: connect stop {name}"));
    if daemon_service::installed().is_none() {
        call.say.line("  After a reboot too: connect daemon install");
    }
    Ok(0)
}

/// Until the daemon has exposed it; otherwise what stands in the way.
fn wait_for(call: &Call, name: &Name, at: &str) -> Result<Option<String>> {
    let deadline = Instant::now() + EXPOSE_TIMEOUT;
    let mut trouble = "the daemon has not taken it up yet".to_owned();
    while Instant::now() < deadline {
        let open = runs::running(&call.home, DAEMON_KIND).map(|run| run.open).unwrap_or_default();
        if let Some(one) = open.iter().find(|one| one.name == name.as_str() && one.at == at) {
            match &one.trouble {
                None if one.up => return Ok(None),
                None => {}
                Some(why) => return Ok(Some(why.clone())),
            }
            "the hub has not answered yet".clone_into(&mut trouble);
        }
        call.stop.wait_for(Duration::from_millis(50));
        call.fail_if_stopped()?;
    }
    Ok(Some(trouble))
}
