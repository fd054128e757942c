//! `connect hub agent list` and `remove`, `connect hub service remove`: what the hub has recorded, in all workspaces.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::commands::hub_key::meant_id;
use crate::cli::commands::hub_key::path_part;
use crate::cli::local_hub::LocalHub;
use crate::cli::say;
use crate::wire::api::AgentInfo;

pub fn agents(call: &Call) -> CommandResult {
    let agents: Vec<AgentInfo> = LocalHub::find(call)?.list("/v1/agents")?;
    call.say.value(&agents);
    let rows = agents.iter().map(|agent| {
        let (id, key) = (agent.id.clone(), agent.key.clone());
        let seen = if agent.connected_at.is_some() { "now".to_owned() } else { say::time(agent.seen_at) };
        [id, agent.label.clone(), agent.workspace.clone(), agent.services.to_string(), seen, key]
    });
    call.say.result(&say::columns(&["ID", "LABEL", "WORKSPACE", "SERVICES", "SEEN", "KEY"], rows));
    Ok(0)
}

pub fn remove_agent(call: &Call) -> CommandResult {
    let wanted = call.args.positional(0).unwrap_or_default();
    let hub = LocalHub::find(call)?;
    let agents: Vec<AgentInfo> = hub.list("/v1/agents")?;
    let known = agents.iter().map(|agent| (agent.id.as_str(), agent.label.as_str()));
    let id = meant_id("agent", known, wanted)?;
    hub.call("DELETE", &format!("/v1/agents/{id}"), None)?;
    call.say.line(&format!("[ok] Removed {wanted} and its services"));
    call.say.value(&json!({ "removed": id }));
    Ok(0)
}

pub fn remove_service(call: &Call) -> CommandResult {
    let name = call.args.positional(0).unwrap_or_default();
    LocalHub::find(call)?.call("DELETE", &format!("/v1/services/{}", path_part(name)?), None)?;
    call.say.line(&format!("[ok] Removed {name}; its name is free"));
    call.say.value(&json!({ "removed": name }));
    Ok(0)
}
