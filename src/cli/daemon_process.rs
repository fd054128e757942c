//! The daemon as a process: its log, its service unit, and how it is started and ended.

use std::path::PathBuf;

use super::Call;
use super::background;
use super::call::variable;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::detach;
use crate::os::setup::unit;
use crate::os::setup::unit::ServiceManager;
use crate::os::setup::unit::UnitSpec;
use crate::state::runs;
use crate::state::runs::DAEMON_KIND;
use crate::state::runs::DAEMON_LOG;
use crate::state::runs::Run;

/// Variables of this shell that the service manager does not know. The daemon gets them from a file of its own.
const UNIT_VARIABLES: [&str; 4] = ["CONNECT_HUB_URL", "PRIVATECONNECT_CA", "HTTPS_PROXY", "NO_PROXY"];

/// The unit file, if one is installed; the user's own comes before the system's.
pub fn unit_file() -> Option<PathBuf> {
    let manager = unit::manager().unwrap_or(ServiceManager::Systemd);
    [false, true].map(|system| unit::file(manager, system)).into_iter().find(|file| file.exists())
}

/// Lets the service manager start the daemon if it is installed for this user. False: the caller must start it.
pub fn start_unit(call: &Call) -> Result<bool> {
    let Some(manager) = unit::manager().filter(|manager| unit::file(*manager, false).exists()) else {
        return Ok(false);
    };
    let plan = unit::plan(manager, &unit_spec(call, false)?);
    let started = plan.start.carry_out();
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

/// Ends the running daemon and returns what it was.
pub fn end(call: &Call) -> Result<Option<Run>> {
    let run = runs::running(&call.home, DAEMON_KIND);
    if let Some(run) = &run {
        background::end(call, "The daemon", run.pid)?;
    }
    Ok(run)
}

/// What the unit says: the command, its environment and its user.
pub fn unit_spec(call: &Call, system: bool) -> Result<UnitSpec> {
    let program = std::env::current_exe().or_say(|| "Cannot find this program's own file")?;
    let (name, home) = unit::owner().ok_or_else(|| Error::new("This user has no name on this machine"))?;
    // Under sudo, the state folder is that of the user who called sudo.
    let moved = variable("PRIVATECONNECT_HOME").is_some() || !system;
    let state = if moved { call.home.file("") } else { home.join(".privateconnect") };
    let state = std::path::absolute(state)
        .or_say(|| "Cannot tell the state folder")?
        .components()
        .collect::<PathBuf>();
    let mut command = vec![program.display().to_string()];
    let arguments = background::arguments(call, &["daemon", "start"]);
    command.extend(arguments.iter().map(|argument| argument.to_string_lossy().into_owned()));
    let environment = vec![
        ("PRIVATECONNECT_HOME".to_owned(), state.display().to_string()),
        (detach::LOG_VARIABLE.to_owned(), state.join(DAEMON_LOG).display().to_string()),
    ];
    let private_environment =
        UNIT_VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), variable(name)?)));
    let private_environment = private_environment.collect();
    Ok(UnitSpec { command, environment, private_environment, state, system: system.then_some(name) })
}
