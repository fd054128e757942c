//! `connect whoami` and `connect logout`.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::call::not_configured;
use crate::error::Error;
use crate::os::files;
use crate::state::runs;

pub fn run(call: &Call) -> CommandResult {
    let config = call.config()?;
    let hub = call.hub()?;
    let whoami = hub.whoami()?;
    let role = whoami.role_word();
    let (label, id) = (config.label.clone().unwrap_or_default(), config.agent_id.clone().unwrap_or_default());
    let fingerprint = call.identity()?.fingerprint;
    call.say.value(
        &json!({ "hub": hub.url.to_string(), "label": label, "agentId": id, "fingerprint": fingerprint,
        "key": whoami.label, "role": role, "workspace": whoami.workspace }),
    );
    call.say.result(&format!("Hub:         {}", hub.url));
    call.say.result(&format!("Agent:       {label} ({id})"));
    call.say.result(&format!(
        "Key:         {} ({role})",
        if whoami.label.is_empty() { "without a label" } else { &whoami.label }
    ));
    call.say.result(&format!("Workspace:   {}", whoami.workspace));
    call.say.result(&format!("Fingerprint: {fingerprint}"));
    Ok(0)
}

/// Forgets who this machine was. What is still running was begun with that, so it must end first.
pub fn logout(call: &Call) -> CommandResult {
    if call.config()?.api_key.is_none() {
        return Err(not_configured());
    }
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
