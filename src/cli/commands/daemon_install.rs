//! `connect daemon install` and `uninstall`: both show the plan before they carry it out.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::daemon_process;
use crate::error::Error;
use crate::error::Result;
use crate::os::setup::step::SetupStep;
use crate::os::setup::unit;
use crate::os::setup::unit::ServiceManager;
use crate::os::setup::unit::UnitPlan;
use crate::os::setup::unit::UnitSpec;
use crate::os::user;

pub fn install(call: &Call) -> CommandResult {
    let (service, plan) = planned(call)?;
    call.say.line(&format!("{}:\n", plan.file.display()));
    plan.text.lines().for_each(|line| call.say.line(format!("    {line}").trim_end()));
    if !call.args.flag("dry-run") {
        must_be_possible(call, &service)?;
        // A daemon that was started by hand holds the lock that the unit's daemon needs.
        daemon_process::end(call)?;
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

fn planned(call: &Call) -> Result<(UnitSpec, UnitPlan)> {
    let manager = match unit::manager() {
        Some(manager) => manager,
        // A dry run can show the unit on any machine.
        None if call.args.flag("dry-run") => ServiceManager::Systemd,
        None => {
            let program = std::env::current_exe().unwrap_or_else(|_| "connect".into());
            return Err(Error::new("This machine has no systemd").hint(format!(
                "Start it now: connect daemon start. After every reboot, by a line in crontab -e:\n    @reboot {} daemon start",
                program.display()
            )));
        }
    };
    let service = daemon_process::unit_spec(call, call.args.flag("system"))?;
    let plan = unit::plan(manager, &service);
    Ok((service, plan))
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
