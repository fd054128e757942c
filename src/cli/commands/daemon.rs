//! `connect daemon start`, `stop`, `restart`, `status` and `logs`.

use std::ffi::OsString;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::status::show;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::background::ChildOutput;
use crate::cli::call::not_configured;
use crate::cli::daemon_process;
use crate::cli::health_page::HealthPage;
use crate::cli::logs;
use crate::cli::supervisor::Stay;
use crate::cli::supervisor::Supervisor;
use crate::cli::supervisor::exposures::ExposureSet;
use crate::cli::supervisor::exposures::direct_address;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::text::counted;
use crate::os::detach;
use crate::os::detach::BackgroundStart;
use crate::os::files;
use crate::os::files::FileStamp;
use crate::state::config;
use crate::state::config::Config;
use crate::state::config::SavedExposure;
use crate::state::runs;
use crate::state::runs::DAEMON_KIND;
use crate::state::runs::DAEMON_LOG;
use crate::state::runs::Run;
use crate::tunnel::agent::Exposure;

/// `expose --keep` reports this late at most; the daemon goes on trying.
const EXPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The user who starts the daemon hears within this time what came up and what did not.
const FIRST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

pub fn start(call: &Call) -> CommandResult {
    if call.args.flag("foreground") || call.is_background() {
        return serve(call);
    }
    if let Some(run) = runs::running(&call.home, DAEMON_KIND) {
        call.say.line(&format!("[ok] The daemon already runs (PID {})", run.pid));
        call.say.event(&json!({ "event": "running", "pid": run.pid }));
        return Ok(0);
    }
    if direct_address(call)?.is_some() && daemon_process::unit_file().is_some() {
        return Err(Error::usage("The daemon is installed, so a service manager starts it")
            .hint("Save the address: connect expose NAME PORT --keep --direct"));
    }
    if daemon_process::start_unit(call) {
        return Ok(0);
    }
    begin(call, detach::own_arguments(), ChildOutput::RepeatedWithPid)
}

fn begin(call: &Call, arguments: Vec<OsString>, output: ChildOutput) -> CommandResult {
    let log = call.home.file(DAEMON_LOG);
    background::start(call, &BackgroundStart { arguments, secret: None, log: &log }, output)
}

/// The daemon itself: keeps the exposures of the config up and follows changes of the config. It never gives up over an
/// unreachable hub, a name that is taken, or a key that was rejected.
fn serve(call: &Call) -> CommandResult {
    let config = call.config()?;
    call.api_key()?.ok_or_else(not_configured)?;
    files::private_dir(&call.home.file("run"))?;
    let _alone = files::try_lock(&call.home.file("run/daemon.lock"))?.ok_or_else(|| {
        Error::new("The daemon already runs")
            .hint("Look at it: connect daemon status, or: connect daemon restart")
    })?;
    let mut config_file = ConfigFile { stamp: stamp(call), config: Rc::clone(&config) };
    let mut supervisor = Supervisor::new(call, DAEMON_KIND, &[DAEMON_KIND.to_owned()]);
    supervisor.health = HealthPage::start(call)?;
    supervisor.exposures.retries = true;
    supervisor.exposures.set_desired(exposures(&config));
    let kept = counted(config.exposures.len(), "service");
    call.say.line(&format!("[ok] Daemon started; it keeps {kept} exposed"));
    let deadline = Instant::now() + FIRST_ANSWERS_TIMEOUT;
    supervisor.wait_for_exposures(Some(deadline), ExposureSet::is_settled)?;
    call.fail_if_stopped()?;
    if config.exposures.is_empty() {
        call.say.line("  Nothing is saved yet: connect expose NAME PORT --keep");
    }
    let foreground = !call.is_background();
    call.say.line(if foreground { "  Press Ctrl+C to stop" } else { "  Stop: connect daemon stop" });
    let code = supervisor.stay(|supervisor| {
        config_file.follow(call, &mut supervisor.exposures);
        Ok(Stay::On)
    })?;
    detach::notify("STOPPING=1");
    drop(supervisor);
    call.say.event(&json!({ "event": "stopped" }));
    Ok(code)
}

/// The config that the daemon follows, as it was last read.
struct ConfigFile {
    stamp: FileStamp,
    config: Rc<Config>,
}

impl ConfigFile {
    fn follow(&mut self, call: &Call, kept: &mut ExposureSet<'_>) {
        let stamp = stamp(call);
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match call.reload_config() {
            Ok(config) => {
                // Another login is another agent. If only the exposures have changed, the agent keeps its channel.
                if !config.is_same_login(&self.config) {
                    kept.stop_agent();
                }
                kept.set_desired(exposures(&config));
                self.config = config;
            }
            Err(error) => call.say.warn(&format!("{error}; the exposures stay as they are")),
        }
    }
}

fn stamp(call: &Call) -> FileStamp {
    config::stamp(&call.home, call.config_file())
}

fn exposures(config: &Config) -> impl Iterator<Item = Exposure> {
    config.exposures.iter().map(|(name, saved)| Exposure {
        name: name.clone(),
        target: saved.target.clone(),
        protocol: saved.protocol,
    })
}

pub fn stop(call: &Call) -> CommandResult {
    let run = daemon_process::end(call)?;
    call.say.line(if run.is_some() { "[ok] Daemon stopped." } else { "[ok] No daemon is running." });
    call.say.value(&json!({ "stopped": run.is_some(), "pid": run.map(|run| run.pid) }));
    Ok(0)
}

pub fn restart(call: &Call) -> CommandResult {
    daemon_process::end(call)?;
    if daemon_process::start_unit(call) {
        return Ok(0);
    }
    let words: &[&str] = if call.say.json { &["daemon", "start", "--json"] } else { &["daemon", "start"] };
    begin(call, background::arguments(call, words), ChildOutput::RepeatedWithPid)
}

pub fn status(call: &Call) -> CommandResult {
    let kept = call.config()?.exposures.clone();
    let run = runs::all(&call.home).into_iter().rev().find(|run| run.kind == DAEMON_KIND);
    let is_running = run.as_ref().is_some_and(Run::is_alive);
    let installed = daemon_process::unit_file();
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
    let how_to_begin =
        "Expose something: connect expose NAME PORT, or start the daemon: connect daemon start";
    logs::show(call, &call.home.file(DAEMON_LOG), how_to_begin)
}

/// `connect expose --keep`: saves it, sees that a daemon runs, and waits for the daemon's word.
pub fn keep(call: &Call, exposure: &Exposure) -> CommandResult {
    if call.args.flag("detach") {
        return Err(Error::usage("--keep and -d do not go together")
            .hint("Leave out -d: the daemon runs in the background"));
    }
    call.api_key()?.ok_or_else(not_configured)?;
    let (name, target) = (&exposure.name, &exposure.target);
    let kept = SavedExposure { target: target.clone(), protocol: exposure.protocol };
    let direct = direct_address(call)?;
    Config::change(&call.home, call.config_file(), |config| {
        config.direct = direct.or(config.direct);
        config.exposures.insert(name.clone(), kept)
    })?;
    if runs::running(&call.home, DAEMON_KIND).is_none()
        && !daemon_process::start_unit(call)
        && begin(call, background::arguments(call, &["daemon", "start"]), ChildOutput::Dropped)? != 0
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
    if daemon_process::unit_file().is_none() {
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
