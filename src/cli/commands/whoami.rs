//! `connect whoami`: the login, the role and the identity of this machine.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

pub fn run(call: &Call) -> CommandResult {
    let config = call.config()?;
    if call.args.flag("all") {
        let logins = [&*config].into_iter().chain(&config.logins);
        let hubs: Vec<&str> = logins.filter_map(|login| login.hub_url.as_deref()).collect();
        call.say.value(&hubs);
        call.say.result(&hubs.join("\n"));
        return Ok(0);
    }
    let hub = call.hub()?;
    if call.args.flag("ca") {
        let certificate = hub.ca_certificate()?;
        call.say.value(&json!({ "certificate": certificate }));
        call.say.result(certificate.trim_end());
        return Ok(0);
    }
    // The hub says what the key is; the config only what this machine called itself.
    let whoami = hub.whoami()?;
    let role = whoami.role_word();
    let label = config.label.as_deref().unwrap_or_default();
    let id = config.agent_id.as_deref().unwrap_or_default();
    let fingerprint = call.identity()?.fingerprint;
    // A key that may only join sees no services, and its machine exposes none.
    let mut exposed = hub.services().unwrap_or_default();
    exposed.retain(|service| service.agent_id == id);
    let online = exposed.iter().filter(|service| service.status == Status::Online);
    let online: Vec<String> = online.map(ServiceInfo::shown_name).collect();
    call.say.value(
        &json!({ "hub": hub.url.to_string(), "label": label, "agentId": id, "fingerprint": fingerprint,
        "key": whoami.label, "keyId": whoami.id, "role": role, "expiresAt": whoami.expires_at, "limits": whoami.limits, "enrolledBy": whoami.enrolled_by, "workspace": whoami.workspace, "online": !online.is_empty(), "exposes": online }),
    );
    call.say.result(&format!("Hub:         {}", hub.url));
    let (state, exposes) = match &online[..] {
        [] => ("offline", "nothing now".to_owned()),
        names => ("online", names.join(", ")),
    };
    call.say.result(&format!("Agent:       {label} ({id}), {state}"));
    call.say.result(&format!("Exposes:     {exposes}"));
    let key = if whoami.label.is_empty() { "without a label" } else { &whoami.label };
    call.say.result(&format!("Key:         {key} ({role})"));
    call.say.result(&format!("Workspace:   {}", whoami.workspace));
    let limits = whoami.limits.in_words();
    if !limits.is_empty() {
        call.say.result(&format!("Limits:      {limits}"));
    }
    call.say.result(&format!("Fingerprint: {fingerprint}"));
    Ok(0)
}
