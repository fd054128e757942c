//! `connect logout`: forgets the hub, the key and the identity. Commands that still use them must end first.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::call::not_configured;
use crate::error::Error;
use crate::os::files;
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
    for name in ["config.json", "identity.pem"] {
        files::remove(&call.home.file(name))?;
    }
    call.say.value(&json!({ "loggedOut": true }));
    call.say.line("[ok] Logged out. The key stays valid at the hub: connect hub key revoke ID");
    Ok(0)
}
