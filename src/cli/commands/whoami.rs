//! `connect whoami`: the login, the role and the identity of this machine.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;

pub fn run(call: &Call) -> CommandResult {
    let config = call.config()?;
    let hub = call.hub()?;
    // The hub says what the key is; the config only what this machine called itself.
    let whoami = hub.whoami()?;
    let role = whoami.role_word();
    let label = config.label.as_deref().unwrap_or_default();
    let id = config.agent_id.as_deref().unwrap_or_default();
    let fingerprint = call.identity()?.fingerprint;
    call.say.value(
        &json!({ "hub": hub.url.to_string(), "label": label, "agentId": id, "fingerprint": fingerprint,
        "key": whoami.label, "role": role, "workspace": whoami.workspace }),
    );
    call.say.result(&format!("Hub:         {}", hub.url));
    call.say.result(&format!("Agent:       {label} ({id})"));
    let key = if whoami.label.is_empty() { "without a label" } else { &whoami.label };
    call.say.result(&format!("Key:         {key} ({role})"));
    call.say.result(&format!("Workspace:   {}", whoami.workspace));
    call.say.result(&format!("Fingerprint: {fingerprint}"));
    Ok(0)
}
