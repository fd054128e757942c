//! `connect services`, once or live.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::name_of;
use crate::cli::commands::status::removal;
use crate::cli::say::columns;
use crate::model::access::Role;
use crate::model::host_port::is_loopback;
use crate::os::terminal;
use crate::state::service_cache;
use crate::wire::api::ServiceInfo;

const NONE: &str = "No services yet. Offer one: connect expose NAME PORT";
/// How often a live table asks the hub, and how long it waits for an answer.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

pub fn run(call: &Call) -> CommandResult {
    if call.args.flag("watch") {
        return watch(call);
    }
    let hub = call.hub()?;
    let services = hub.services()?;
    service_cache::remember(&call.home, &services);
    call.say.value(&services);
    if services.is_empty() {
        call.say.line(NONE);
    } else {
        call.say.result(&table(&hub, &services));
    }
    let config = call.config()?;
    if config.role == Some(Role::Expose) && config.api_key == call.api_key()? {
        call.say.line("\nThis key lists only what it exposes itself: its role is expose");
    }
    Ok(0)
}

pub fn remove(call: &Call) -> CommandResult {
    let name = name_of(call.args.positional(0).unwrap_or_default())?;
    call.hub()?.remove_service(name.as_str(), false).map_err(|error| match removal(call, name.as_str()) {
        Some(command) if error.code() == "no-such-service" => error.hint(command),
        _ => error,
    })?;
    call.say.value(&json!({ "removed": name }));
    call.say.line(&format!("[ok] Removed {name}; its name is free"));
    Ok(0)
}

const COLUMNS: [&str; 7] = ["NAME", "PORT", "TUNNEL", "STATUS", "PROTOCOL", "AGENT", "SHARE"];

/// Tunnel ports are open on the hub's machine only, so others do not see them.
fn table(hub: &Hub, services: &[ServiceInfo]) -> String {
    let is_shown = |column: &&str| match *column {
        "TUNNEL" => is_loopback(&hub.url.host),
        "SHARE" => services.iter().any(|service| service.share.is_some()),
        _ => true,
    };
    let row = |service| COLUMNS.into_iter().zip(cells(service)).filter(|(column, _)| is_shown(column));
    let rows = services.iter().map(|service| row(service).map(|(_, cell)| cell).collect::<Vec<_>>());
    columns(&COLUMNS.into_iter().filter(is_shown).collect::<Vec<_>>(), rows)
}

/// In the order of `COLUMNS`.
fn cells(service: &ServiceInfo) -> [String; 7] {
    [
        service.name.to_string(),
        service.target_port.to_string(),
        service.tunnel_port.map_or("-".to_owned(), |port| port.to_string()),
        service.status.as_str().to_owned(),
        service.protocol.as_str().to_owned(),
        service.agent_label.clone(),
        service.share.as_ref().map(|share| share.name.clone()).unwrap_or_default(),
    ]
}

/// Until Ctrl-C, also while the hub is away: on a terminal a table that is drawn again, else a line a change.
fn watch(call: &Call) -> CommandResult {
    let hub = call.hub()?.with_timeout(WATCH_ANSWER_TIMEOUT);
    let is_screen = terminal::is_terminal_out() && !call.say.json;
    let (mut known, mut away): (Option<Vec<_>>, Option<String>) = (None, None);
    loop {
        match hub.services() {
            _ if call.stop.is_stopped() => return Ok(0),
            Ok(services) => {
                if away.take().is_some() && !is_screen {
                    call.say.back();
                }
                if !is_screen {
                    tell_changes(call, known.as_deref().unwrap_or_default(), &services);
                }
                known = Some(services);
            }
            Err(error) if !error.may_pass() => return Err(error),
            Err(error) => {
                if away.is_none() && !is_screen {
                    call.say.lost(&error);
                }
                away = Some(error.to_string());
            }
        }
        if is_screen {
            let list = known
                .as_ref()
                .map(|known| if known.is_empty() { NONE.to_owned() } else { table(&hub, known) });
            let state = away.as_ref().map(|why| format!("\n\n[!] {why}; trying again until it is back"));
            call.say.screen(&format!(
                "Services at {}. Ctrl+C ends.{}\n\n{}",
                hub.url,
                state.unwrap_or_default(),
                list.unwrap_or_default()
            ));
        }
        if call.stop.wait_for(WATCH_INTERVAL) {
            return Ok(0);
        }
    }
}

fn tell_changes(call: &Call, before: &[ServiceInfo], now: &[ServiceInfo]) {
    let by_id = |services: &[ServiceInfo]| -> BTreeMap<String, ServiceInfo> {
        services.iter().map(|service| (service.id.clone(), service.clone())).collect()
    };
    let (before, now) = (by_id(before), by_id(now));
    let tell = |event: &str, service: &ServiceInfo| {
        call.say.event(&json!({ "event": event, "service": service }));
        let cells = cells(service).join("  ");
        call.say.result(&format!("{event:8} {}", cells.trim_end()));
    };
    for (id, service) in &before {
        if !now.contains_key(id) {
            tell("removed", service);
        }
    }
    for (id, service) in &now {
        match before.get(id) {
            None => tell("added", service),
            Some(old) if old != service => tell("changed", service),
            Some(_) => {}
        }
    }
}
