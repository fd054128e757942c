//! `connect daemon install` and `uninstall`: plans, shows, then does.

use std::path::PathBuf;

use serde_json::json;

use super::daemon::DAEMON_LOG;
use super::daemon::end;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::call::variable;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::detach;
use crate::os::setup::step::SetupStep;
use crate::os::setup::unit;
use crate::os::setup::unit::ServiceManager;
use crate::os::setup::unit::UnitPlan;
use crate::os::setup::unit::UnitSpec;
use crate::os::user;

/// What this shell has set and a service manager would not know.
const UNIT_VARIABLES: [&str; 4] = ["CONNECT_HUB_URL", "PRIVATECONNECT_CA", "HTTPS_PROXY", "NO_PROXY"];

pub fn install(call: &Call) -> CommandResult {
    let (service, plan) = planned(call)?;
    call.say.line(&format!("{}:\n", plan.file.display()));
    plan.text.lines().for_each(|line| call.say.line(format!("    {line}").trim_end()));
    if !call.args.flag("dry-run") {
        must_be_possible(call, &service)?;
        // One that was started by hand would stand in its way.
        end(call)?;
    }
    carry_out(call, &plan, &plan.install)?;
    if !call.args.flag("dry-run") {
        call.say.line("[ok] Installed; the daemon runs, and comes back after every reboot");
        if service.system.is_none() && unit::manager() == Some(ServiceManager::Systemd) {
            call.say.line("  It runs while you are logged in. From boot on: loginctl enable-linger");
        }
        call.say.line("  Look at it: connect daemon status");
    }
    Ok(0)
}

pub fn uninstall(call: &Call) -> CommandResult {
    let (service, plan) = planned(call)?;
    if !call.args.flag("dry-run") {
        if !plan.file.exists() {
            return Err(Error::new(format!("There is no {}", plan.file.display()))
                .hint("Nothing is installed; with --system it is the whole machine's"));
        }
        must_be_possible(call, &service)?;
    }
    carry_out(call, &plan, &plan.uninstall)?;
    if !call.args.flag("dry-run") {
        call.say.line("[ok] Uninstalled");
    }
    Ok(0)
}

/// The file, when one is installed; the user's own first.
pub fn installed() -> Option<PathBuf> {
    let manager = unit::manager().unwrap_or(ServiceManager::Systemd);
    [false, true].map(|system| unit::file(manager, system)).into_iter().find(|file| file.exists())
}

/// Has the service manager start it, where it was installed for this user. False when it is ours to start.
pub fn start(call: &Call) -> Result<bool> {
    let Some(manager) = unit::manager().filter(|manager| unit::file(*manager, false).exists()) else {
        return Ok(false);
    };
    let plan = unit::plan(manager, &described(call, false)?);
    let started = plan.start.iter().try_for_each(SetupStep::carry_out);
    match started {
        Ok(()) => {
            call.say.line(&format!("[ok] Daemon started, as {} says", plan.file.display()));
            Ok(true)
        }
        Err(error) => {
            call.say.warn(&format!("{error}; starting it without the service manager"));
            Ok(false)
        }
    }
}

fn planned(call: &Call) -> Result<(UnitSpec, UnitPlan)> {
    let manager = match unit::manager() {
        Some(manager) => manager,
        // What would be written can be looked at all the same.
        None if call.args.flag("dry-run") => ServiceManager::Systemd,
        None => {
            let program = std::env::current_exe().unwrap_or_else(|_| "connect".into());
            return Err(Error::new("This machine has no systemd").hint(format!(
                "Start it now: connect daemon start. After every reboot, by a line in crontab -e:\n    @reboot {} daemon start",
                program.display()
            )));
        }
    };
    let service = described(call, call.args.flag("system"))?;
    let plan = unit::plan(manager, &service);
    Ok((service, plan))
}

fn described(call: &Call, system: bool) -> Result<UnitSpec> {
    let program = std::env::current_exe().or_say(|| "Cannot find this program's own file")?;
    let (name, home) = unit::owner().ok_or_else(|| Error::new("This user has no name on this machine"))?;
    // Under sudo the folder of the one who called it is meant.
    let moved = variable("PRIVATECONNECT_HOME").is_some() || !system;
    let state = if moved { call.home.file("") } else { home.join(".privateconnect") };
    let state = std::path::absolute(state)
        .or_say(|| "Cannot tell the state folder")?
        .components()
        .collect::<PathBuf>();
    let mut command = vec![program.display().to_string()];
    let absolute = |text: &str| {
        std::path::absolute(text).map_or_else(|_| text.to_owned(), |path| path.display().to_string())
    };
    command.extend(["daemon", "start"].map(str::to_owned));
    if let Some(hub) = call.args.value("hub") {
        command.extend(["--hub".to_owned(), hub.to_owned()]);
    }
    if let Some(config) = call.args.value("config") {
        command.extend(["--config".to_owned(), absolute(config)]);
    }
    let mut environment = vec![
        ("PRIVATECONNECT_HOME".to_owned(), state.display().to_string()),
        (detach::LOG_VARIABLE.to_owned(), state.join(DAEMON_LOG).display().to_string()),
    ];
    environment.extend(UNIT_VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), variable(name)?))));
    Ok(UnitSpec { command, environment, state, system: system.then_some(name) })
}

fn must_be_possible(call: &Call, service: &UnitSpec) -> Result<()> {
    if service.system.is_some() && !user::is_root() {
        return Err(Error::new("The whole machine's services belong to root")
            .hint("Run: sudo connect daemon install --system, or leave out --system"));
    }
    if call.args.value("config").is_none() && !service.state.join("config.json").exists() {
        return Err(Error::new(format!("No login found in {}", service.state.display()))
            .hint("Run connect up first to authenticate."));
    }
    Ok(())
}

fn carry_out(call: &Call, plan: &UnitPlan, steps: &[SetupStep]) -> Result<()> {
    let commands: Vec<String> = steps.iter().map(SetupStep::command).collect();
    call.say.line("");
    commands.iter().for_each(|command| call.say.line(&format!("  {command}")));
    call.say.line("");
    let dry = call.args.flag("dry-run");
    if !dry {
        steps.iter().try_for_each(SetupStep::carry_out)?;
    }
    call.say.value(&json!({ "file": plan.file, "text": plan.text, "commands": commands, "done": !dry }));
    Ok(())
}
