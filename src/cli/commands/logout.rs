//! `connect logout`: forgets the hub and the key. The machine stays the agent that it is, for those who have pinned it. Commands
//! that still use the key must end first.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::call::not_configured;
use crate::error::Error;
use crate::net::address::HubUrl;
use crate::state::config::Config;
use crate::state::runs;

pub fn run(call: &Call) -> CommandResult {
    if call.config()?.api_key.is_none() {
        return Err(not_configured());
    }
    // The proxy may go on: it serves local routes without a login as well.
    let all = runs::all(&call.home);
    if let Some(run) = all.iter().find(|run| run.is_alive() && run.kind != "proxy") {
        return Err(Error::new(format!("`connect {}` is still running (PID {})", run.kind, run.pid))
            .hint("End it first, then log out"));
    }
    // `--hub` names it, too, as for every command.
    let given = call.args.positional(0).or_else(|| call.args.value("hub"));
    if let Some(hub) = given {
        let hub = HubUrl::parse(hub)?.to_string();
        if Config::change(&call.home, call.config_file(), |config| config.forget(&hub))? {
            call.say.value(&json!({ "loggedOut": true, "hub": hub }));
            call.say.line(&format!("[ok] Logged out of {hub}. The key stays valid there"));
            return Ok(0);
        }
        if !call.config()?.is_login_at(&hub) {
            return Err(Error::new(format!("There is no login at {hub}"))
                .hint("Look at the logins: connect whoami --all"));
        }
    }
    Config::change(&call.home, call.config_file(), |config| {
        let (agent_id, label) = (config.agent_id.take(), config.label.take());
        *config = Config { agent_id, label, ..Config::default() };
    })?;
    call.say.value(&json!({ "loggedOut": true }));
    call.say.line("[ok] Logged out. The key stays valid at the hub: connect hub key revoke ID");
    Ok(0)
}
