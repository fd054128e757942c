//! `connect hub status`: whether the hub of this machine runs, and its figures. `connect hub ca`: its certificate.

use std::time::Duration;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub;
use crate::cli::local_hub::LocalHub;
use crate::model::time::in_words;
use crate::wire::api::Health;

pub fn run(call: &Call) -> CommandResult {
    let data = local_hub::data_folder(call)?;
    // Not running is an answer and no error, but scripts see it by the exit code.
    let Some((hub, pin)) = local_hub::running(call)? else {
        call.say.value(&json!({ "running": false, "data": data }));
        call.say.result("○ Hub: not running");
        call.say.line(&format!("  Data:  {}", data.display()));
        call.say.line("  Start: connect hub");
        return Ok(1);
    };
    let Health { version, uptime_seconds, store, .. } = hub.health()?;
    // The figures are those of /metrics, so that there is one source for both.
    let metrics = hub.metrics()?;
    let figure = |name: &str| figure(&metrics, name);
    let number = |figure: &str| figure.parse::<u64>().ok();
    let up = Duration::from_secs(uptime_seconds);
    let (agents, services) = (figure("connect_agents"), figure("connect_services_online"));
    let (open, total) = (figure("connect_sessions_open"), figure("connect_sessions_total"));
    call.say.value(&json!({ "running": true, "url": hub.url.to_string(), "pin": pin.to_string(), "version": version, "uptimeSeconds": uptime_seconds,
        "agents": number(agents), "servicesOnline": number(services), "sessionsOpen": number(open), "sessionsTotal": number(total), "data": data,
        "ready": figure("connect_ready") == "1",
        "hubs": store.as_ref().and_then(|_| number(figure("connect_hubs"))), "store": store }));
    call.say.result(&format!("● Hub: running on {}", hub.url));
    call.say.line(&format!("    Pin:      {pin}"));
    call.say.line(&format!("    Version:  {version}"));
    call.say.line(&format!("    Up:       {}", in_words(up)));
    if figure("connect_ready") == "0" {
        call.say.line("    Ready:    no; GET /ready says why");
    }
    call.say.line(&format!("    Agents:   {agents}"));
    call.say.line(&format!("    Services: {services} online"));
    call.say.line(&format!("    Sessions: {open} open, {total} in all"));
    if let Some(store) = store {
        call.say.line(&format!(
            "    Fleet:    hubs: {}, etcd is {}",
            figure("connect_hubs"),
            if store == "ok" { "there" } else { "away" }
        ));
    }
    call.say.line(&format!("    Data:     {}", data.display()));
    Ok(0)
}

/// One of the hub's metrics, as it is written there.
pub fn figure<'m>(metrics: &'m str, name: &str) -> &'m str {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("?")
}

/// Beside a running hub, or without one.
pub fn ca(call: &Call) -> CommandResult {
    let answer = LocalHub::find(call)?.call("GET", "/v1/ca", None)?;
    call.say.value(&answer);
    call.say.result(answer["certificate"].as_str().unwrap_or_default().trim_end());
    Ok(0)
}
