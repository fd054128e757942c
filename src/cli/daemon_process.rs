//! The daemon as a process: its log, its service unit, and how it is started and ended.

use std::path::PathBuf;

use super::Call;
use super::background;
use crate::error::Result;
use crate::os::setup::unit;
use crate::os::setup::unit::ServiceManager;
use crate::os::setup::unit::UnitSpec;
use crate::state::runs;
use crate::state::runs::DAEMON_KIND;
use crate::state::runs::Run;

/// The unit file, if one is installed; the user's own comes before the system's.
pub fn unit_file() -> Option<PathBuf> {
    let manager = unit::manager().unwrap_or(ServiceManager::Systemd);
    [false, true]
        .map(|system| unit::file(manager, DAEMON_KIND, system))
        .into_iter()
        .find(|file| file.exists())
}

/// Lets the service manager start the daemon if it is installed for this user. False: the caller must start it.
pub fn start_unit(call: &Call) -> bool {
    let Some(manager) = unit::manager().filter(|manager| unit::file(*manager, DAEMON_KIND, false).exists())
    else {
        return false;
    };
    let plan = unit::plan(manager, &UnitSpec { name: DAEMON_KIND, ..UnitSpec::default() });
    let started = plan.start.carry_out();
    match started {
        Ok(()) => {
            call.say.line(&format!("[ok] Daemon started, as {} says", plan.file.display()));
            true
        }
        Err(error) => {
            call.say.warn(&format!("{error}; starting it without the service manager"));
            false
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
