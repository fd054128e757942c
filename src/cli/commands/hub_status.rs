//! `connect hub status`: whether the hub of this machine runs, and its figures. `connect hub ca`: its certificate.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub;
use crate::cli::local_hub::LocalHub;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::time::in_words;
use crate::wire::api::CaCertificate;
use crate::wire::api::Health;
use crate::wire::api::ReplacedCa;

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

/// With a running hub, or without one. The certificates alone go to stdout, which is often a file.
pub fn ca(call: &Call) -> CommandResult {
    let ca = certificates(call, "GET", "/v1/ca", None)?;
    call.say.result(ca.certificate.trim_end());
    if let Some(ReplacedCa { pin, until }) = ca.replaced {
        call.say.warn(&format!("Two roots are valid: {}, and until {until} the one before, {pin}", ca.pin));
    }
    Ok(0)
}

pub fn rotate_ca(call: &Call) -> CommandResult {
    let overlap = call.args.duration("overlap")?;
    let body = json!({ "overlapSeconds": overlap.map(|overlap| overlap.as_secs()) });
    let ca = certificates(call, "POST", "/v1/ca/rotate", Some(&body))?;
    call.say.result(&format!("[ok] The hub has a new root. New keys and links have its pin, {}", ca.pin));
    call.say.line(&match ca.replaced {
        Some(ReplacedCa { pin, until }) => format!(
            "  The one before, {pin}, is valid until {until}.\n  Machines that connect by then follow by themselves; for --ca: connect hub ca"
        ),
        None => "  The one before is not valid any more: every machine and link needs a new key".to_owned(),
    });
    Ok(0)
}

fn certificates(call: &Call, method: &str, path: &str, body: Option<&Value>) -> Result<CaCertificate> {
    let answer = LocalHub::find(call)?.call(method, path, body)?;
    call.say.value(&answer);
    serde_json::from_value(answer).or_say(|| "The hub's answer does not hold a certificate")
}
