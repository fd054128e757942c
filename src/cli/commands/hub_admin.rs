//! `connect hub key`, `approve`, `audit`, `status`: work beside a running hub or without one. The data
//! folder is the key: whoever can read it may.

use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use super::hub::data_folder;
use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::store_options::StoreOptions;
use crate::error::Error;
use crate::error::Result;
use crate::http::message::Request;
use crate::hub;
use crate::hub::Core;
use crate::hub::HubSettings;
use crate::hub::audit;
use crate::model::access::Role;
use crate::model::fingerprint::Pin;
use crate::model::hub_trust::HubTrust;
use crate::net::address::HubUrl;
use crate::net::http;
use crate::os::files;
use crate::wire::api::Health;
use crate::wire::api::KeyInfo;
use crate::wire::api::KeyMade;

/// What a running hub leaves in its data folder for this command.
#[derive(Deserialize)]
struct Running {
    address: String,
    pin: String,
    token: String,
}

/// How long the data folder may be held by somebody who lets go of it.
const PATIENCE: Duration = Duration::from_secs(5);

enum Admin {
    Running(Hub),
    Offline(Box<Core>),
}

impl Admin {
    fn find(call: &Call) -> Result<Self> {
        if let Some((hub, _)) = running(call)? {
            return Ok(Self::Running(hub));
        }
        let data = data_folder(call)?;
        let store = StoreOptions::of(call, &data)?.read()?;
        if store.is_none() && !data.join("certs").exists() {
            return Err(no_hub(&data));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let settings = HubSettings { data: data.clone(), store: store.clone(), ..HubSettings::default() };
            if let Some(core) = Core::open(settings, &call.stop)? {
                return Ok(Self::Offline(Box::new(core)));
            }
            // A hub that is just starting or ending, or another command like this one.
            if Instant::now() >= deadline {
                return Err(Error::new("The hub holds its data folder, but does not say how to reach it")
                    .hint("Restart the hub, then try again"));
            }
            call.stop.wait_for(PATIENCE / 100);
            call.fail_if_stopped()?;
            if let Some((hub, _)) = running(call)? {
                return Ok(Self::Running(hub));
            }
        }
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        match self {
            Self::Running(hub) => hub.any(method, path, body),
            Self::Offline(core) => {
                let reply = hub::answer_locally(core, &request(method, path, body));
                if !(200..300).contains(&reply.status) {
                    return Err(http::refusal(reply.status, &reply.body));
                }
                Ok(serde_json::from_slice(&reply.body).unwrap_or_default())
            }
        }
    }
}

fn no_hub(data: &std::path::Path) -> Error {
    Error::new("There is no hub on this machine")
        .because(data.display().to_string())
        .hint("Start one: connect hub. If its data lies elsewhere, add --data DIR")
}

/// The running hub, when there is one: its note is believed only if it answers with the pin in it.
fn running(call: &Call) -> Result<Option<(Hub, Pin)>> {
    let note = files::read(&data_folder(call)?.join("hub.json"))?;
    let Some(running) = note.and_then(|note| serde_json::from_slice::<Running>(&note).ok()) else {
        return Ok(None);
    };
    let (Some(pin), Ok(address)) =
        (Pin::parse(&running.pin), running.address.parse::<std::net::SocketAddr>())
    else {
        return Ok(None);
    };
    let address = match address.ip() {
        ip if ip.is_unspecified() && ip.is_ipv6() => format!("[::1]:{}", address.port()),
        ip if ip.is_unspecified() => format!("127.0.0.1:{}", address.port()),
        _ => address.to_string(),
    };
    let hub = Hub::new(vec![HubUrl::parse(&address)?], &HubTrust::Pin(pin), Some(running.token), &call.stop)?;
    Ok(hub.whoami().is_ok().then_some((hub, pin)))
}

pub fn request(method: &str, path: &str, body: Option<&Value>) -> Request {
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
        ..Request::default()
    }
}

pub fn key_create(call: &Call) -> CommandResult {
    let args = &call.args;
    let body = json!({
        "role": role(call)?.map(Role::as_str),
        "label": args.value("label"),
        "workspace": args.value("workspace"),
        "expiresInSeconds": args.duration("expires")?.map(|life| life.as_secs()),
    });
    let made = Admin::find(call)?.call("POST", "/v1/keys", Some(&body))?;
    call.say.value(&made);
    let Ok(made) = serde_json::from_value::<KeyMade>(made) else {
        return Err(Error::new("The hub's answer is no key"));
    };
    call.say.line(&format!(
        "[ok] Made the {} key {}; it is shown only this once:",
        made.info.role.as_str(),
        made.info.id
    ));
    call.say.line("");
    call.say.result(&format!("  {}", made.key));
    call.say.line(&format!("\n  Use it: connect up --hub URL --api-key {}", made.key));
    Ok(0)
}

fn role(call: &Call) -> Result<Option<Role>> {
    let Some(text) = call.args.value("role") else { return Ok(None) };
    Role::parse(text)
        .map(Some)
        .ok_or_else(|| Error::unknown("role", text).hint("Use --role admin, member or join"))
}

pub fn key_list(call: &Call) -> CommandResult {
    let list = Admin::find(call)?.call("GET", "/v1/keys", None)?;
    call.say.value(&list);
    let keys: Vec<KeyInfo> = serde_json::from_value(list).unwrap_or_default();
    let rows = keys.iter().map(|key| {
        let expires = key.expires_at.map_or("never".to_owned(), |at| at.to_string());
        [key.id.clone(), key.role.as_str().to_owned(), key.label.clone(), key.workspace.clone(), expires]
    });
    let table = crate::cli::say::columns(&["ID", "ROLE", "LABEL", "WORKSPACE", "EXPIRES"], rows);
    call.say.result(&table);
    Ok(0)
}

pub fn key_revoke(call: &Call) -> CommandResult {
    let id = call.args.positional(0).unwrap_or_default();
    Admin::find(call)?.call("DELETE", &format!("/v1/keys/{}", path_part(id)?), None)?;
    call.say.line(&format!("[ok] Revoked {id}; its sessions are cut"));
    call.say.value(&json!({ "revoked": id }));
    Ok(0)
}

pub fn approve(call: &Call) -> CommandResult {
    let code = call.args.positional(0).unwrap_or_default();
    let body = json!({ "role": role(call)?.map(Role::as_str), "workspace": call.args.value("workspace") });
    let approved =
        Admin::find(call)?.call("POST", &format!("/v1/device/{}/approve", path_part(code)?), Some(&body))?;
    let label = approved.get("label").and_then(Value::as_str).unwrap_or_default();
    call.say.line(&format!("[ok] Approved {label}"));
    call.say.value(&approved);
    Ok(0)
}

/// What may stand in a path as one part.
fn path_part(text: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text);
    }
    Err(Error::misread(text, "has characters that it cannot have").hint("Copy it again, whole"))
}

pub fn audit_verify(call: &Call) -> CommandResult {
    let data = data_folder(call)?;
    if !audit::log_file(&data).exists() {
        return Err(no_hub(&data));
    }
    let lines = audit::verify(&data)?;
    call.say.value(&json!({ "lines": lines, "whole": true }));
    call.say.result(&format!("[ok] {lines} line(s), unchanged from the first to the last"));
    Ok(0)
}

pub fn status(call: &Call) -> CommandResult {
    let data = data_folder(call)?;
    let Some((hub, pin)) = running(call)? else {
        call.say.value(&json!({ "running": false, "data": data }));
        call.say.result("○ Hub: not running");
        call.say.line(&format!("  Data:  {}", data.display()));
        call.say.line("  Start: connect hub");
        return Ok(1);
    };
    let Health { version, uptime_seconds, store, .. } = hub.health()?;
    let metrics = hub.metrics()?;
    let figure = |name: &str| {
        metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("?")
    };
    let number = |figure: &str| figure.parse::<u64>().ok();
    let up = Duration::from_secs(uptime_seconds);
    let (agents, services) = (figure("connect_agents"), figure("connect_services_online"));
    let (open, total) = (figure("connect_sessions_open"), figure("connect_sessions_total"));
    call.say.value(&json!({ "running": true, "url": hub.url.to_string(), "pin": pin.to_string(), "version": version, "uptimeSeconds": uptime_seconds,
        "agents": number(agents), "servicesOnline": number(services), "sessionsOpen": number(open), "sessionsTotal": number(total), "data": data,
        "hubs": store.as_ref().and_then(|_| number(figure("connect_hubs"))), "store": store }));
    call.say.result(&format!("● Hub: running on {}", hub.url));
    call.say.line(&format!("    Pin:      {pin}"));
    call.say.line(&format!("    Version:  {version}"));
    call.say.line(&format!("    Up:       {}", crate::model::time::in_words(up)));
    call.say.line(&format!("    Agents:   {agents}"));
    call.say.line(&format!("    Services: {services} online"));
    call.say.line(&format!("    Sessions: {open} open, {total} in all"));
    if let Some(store) = store {
        call.say.line(&format!(
            "    Fleet:    {} hub(s), etcd is {}",
            figure("connect_hubs"),
            if store == "ok" { "there" } else { "away" }
        ));
    }
    call.say.line(&format!("    Data:     {}", data.display()));
    Ok(0)
}
