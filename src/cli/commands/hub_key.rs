//! `connect hub key create`, `list` and `revoke`, and `connect hub approve`: who may use the hub.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub;
use crate::cli::local_hub::LocalHub;
use crate::cli::say;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::access::Role;
use crate::model::address_block::AddressBlock;
use crate::model::hub_records::KeyInfo;
use crate::model::name::NamePattern;
use crate::model::time::Time;
use crate::model::time::in_words;
use crate::os::clock;
use crate::os::terminal;
use crate::wire::api::KeyState;
use crate::wire::api::NewKey;
use crate::wire::api::RotationState;
use crate::wire::api::WaitingLogin;

/// The key is printed alone on its line, so that `-q` gives it to a script.
pub fn create(call: &Call) -> CommandResult {
    let args = &call.args;
    // As it stands in the lines that we print. Such a line that is pasted as it is should make no key.
    if args.value("label") == Some("NAME") {
        return Err(Error::usage("NAME stands for whose key it is").hint("Write it like --label ann"));
    }
    let body = json!({
        "role": role(call)?.map(Role::as_str),
        "label": args.value("label"),
        "workspace": args.value("workspace"),
        "expiresInSeconds": args.duration("expires")?.map(|life| life.as_secs()),
        "only": args.list::<NamePattern>("only")?,
        "from": args.list::<AddressBlock>("from")?,
        "uses": args.count("uses")?,
    });
    show(call, LocalHub::find_or_begin(call)?.call("POST", "/v1/keys", Some(&body))?, "Made")
}

/// A new secret for a key that stays the same.
pub fn rotate(call: &Call) -> CommandResult {
    let hub = LocalHub::find(call)?;
    let id = live_key(call, &hub)?;
    let overlap = call.args.duration("overlap")?;
    let body = json!({ "overlapSeconds": overlap.map(|overlap| overlap.as_secs()) });
    let code = show(call, hub.call("POST", &format!("/v1/keys/{id}/rotate"), Some(&body))?, "Rotated")?;
    call.say.line("\n  Agents that are or come online take it over by themselves, other machines with: connect up --rotate");
    let keys: Vec<KeyState> = hub.list("/v1/keys")?;
    if let Some(rotation) = keys.into_iter().find(|key| key.info.id == id).and_then(|key| key.rotation) {
        call.say.line(&format!("  The old secret is valid until {} at the latest", rotation.ends_at));
    }
    call.say.line("  Who still uses the old secret: connect hub key list");
    Ok(code)
}

fn show(call: &Call, made: Value, what: &str) -> CommandResult {
    call.say.value(&made);
    let Ok(made) = serde_json::from_value::<NewKey>(made) else {
        return Err(Error::new("The hub's answer does not hold a key"));
    };
    let role = made.info.role.as_str();
    call.say.line(&format!("[ok] {what} the {role} key {}; it is shown only this once:\n", made.info.id));
    call.say.result(&format!("  {}", made.key));
    let limits = made.info.limits.in_words();
    if !limits.is_empty() {
        call.say.line(&format!("\n  Its limits: {limits}"));
    }
    if let Some(at) = made.info.expires_at {
        call.say.line(&format!("\n  It expires in {}, at {at}", in_words(at.since(clock::now()))));
    }
    let url = local_hub::url(call)?;
    call.say.line(&match made.info.role {
        Role::Metrics => format!("\n  Use it: curl -H 'x-api-key: {}' {url}/metrics", made.key),
        _ => format!("\n  Use it: connect up --hub {url} --api-key {}", made.key),
    });
    Ok(0)
}

fn role(call: &Call) -> Result<Option<Role>> {
    let Some(text) = call.args.value("role") else { return Ok(None) };
    Role::parse(text)
        .map(Some)
        .ok_or_else(|| Error::unknown("role", text).hint("Use --role admin, member, expose, join or metrics"))
}

pub fn list(call: &Call) -> CommandResult {
    let keys: Vec<KeyState> = LocalHub::find(call)?.list("/v1/keys")?;
    call.say.value(&keys);
    let day = |at: Option<Time>| at.map_or("-".to_owned(), say::time);
    let rows = keys.into_iter().map(|key| {
        let KeyState { info: key, rotation } = key;
        let old_secret = rotation.as_ref().map_or("-".to_owned(), in_use);
        let KeyInfo { id, role, label, workspace, limits, .. } = key;
        let [created, used] = [Some(key.created_at), key.last_used_at].map(day);
        let [expires, revoked] = [key.expires_at, key.revoked_at].map(day);
        [
            id,
            role.as_str().to_owned(),
            label,
            workspace,
            created,
            used,
            expires,
            revoked,
            old_secret,
            limits.in_words(),
        ]
    });
    let headings = [
        "ID",
        "ROLE",
        "LABEL",
        "WORKSPACE",
        "CREATED",
        "LAST USED",
        "EXPIRES",
        "REVOKED",
        "OLD SECRET",
        "LIMITS",
    ];
    call.say.result(&say::columns(&headings, rows));
    Ok(0)
}

/// Until when the old secret is valid, and who still uses it.
fn in_use(rotation: &RotationState) -> String {
    let now = clock::now();
    let ago = |at: Time| format!(", used {} ago", in_words(now.since(at)));
    let used = rotation.old_used_at.map_or_else(String::new, ago);
    let by = rotation.waits_for.join(", ");
    let by = if by.is_empty() { by } else { format!(" by {by}") };
    format!("for {}{used}{by}", in_words(rotation.ends_at.since(now)))
}

/// The ID of the key that is named on the command line.
fn live_key(call: &Call, hub: &LocalHub) -> Result<String> {
    let keys: Vec<KeyInfo> = hub.list("/v1/keys")?;
    let live = keys.iter().filter(|key| key.revoked_at.is_none());
    let known = live.map(|key| (key.id.as_str(), key.label.as_str()));
    meant_id("key", known, call.args.positional(0).unwrap_or_default()).map(str::to_owned)
}

pub fn revoke(call: &Call) -> CommandResult {
    let hub = LocalHub::find(call)?;
    let id = live_key(call, &hub)?;
    let order = json!({ "withAllItMade": call.args.flag("with-all-it-made") });
    hub.call("DELETE", &format!("/v1/keys/{id}"), Some(&order))?;
    let more = if call.args.flag("with-all-it-made") { ", and all that it made is removed" } else { "" };
    call.say.line(&format!("[ok] Revoked {id}; its sessions are cut{more}"));
    call.say.value(&json!({ "revoked": id }));
    Ok(0)
}

pub fn approve(call: &Call) -> CommandResult {
    let order = json!({
        "code": call.args.positional(0),
        "role": role(call)?.map(Role::as_str),
        "workspace": call.args.value("workspace"),
    });
    let hub = LocalHub::find(call)?;
    let waiting = hub.call("POST", "/v1/device/preview", Some(&order))?;
    let login: WaitingLogin = serde_json::from_value(waiting).or_say(|| "The hub did not say who waits")?;
    if !call.args.flag("yes") {
        confirm(call, &login)?;
    }
    let approved = hub.call("POST", "/v1/device/approve", Some(&order))?;
    call.say.line(&format!("[ok] Approved {}", login.label));
    call.say.value(&approved);
    Ok(0)
}

/// A code may come from somebody who talks the admin into approving a machine of theirs. They chose its label, but not its
/// address.
fn confirm(call: &Call, login: &WaitingLogin) -> Result<()> {
    let (label, age) = (&login.label, in_words(Duration::from_secs(login.age_seconds)));
    let what = format!("A machine that calls itself {label} asked from {}, {age} ago", login.address);
    if call.say.json || !terminal::is_terminal_in() {
        return Err(Error::new(what).hint("If it is the one you mean, add --yes"));
    }
    if call.is_confirmed(&format!("{what}. Approve it?")) {
        return Ok(());
    }
    Err(Error::new("Not approved").hint("Nothing was changed; the code expires by itself"))
}

/// The id that is meant: it has this label, or is the only one that begins so, with or without what all ids begin with.
pub fn meant_id<'k>(
    what: &str,
    known: impl Iterator<Item = (&'k str, &'k str)>,
    given: &str,
) -> Result<&'k str> {
    let begins =
        |id: &str| id.starts_with(given) || id.split_once('_').is_some_and(|(_, id)| id.starts_with(given));
    let is_meant = |(id, label): &(&str, &str)| !given.is_empty() && (*label == given || begins(id));
    let ids: Vec<&str> = known.filter(is_meant).map(|(id, _)| id).collect();
    let shown = given.escape_debug();
    match ids[..] {
        [id] => Ok(id),
        [] => Err(Error::new(format!("There is no {what} {shown}"))
            .hint(format!("Look at the ids: connect hub {what} list"))),
        _ => Err(Error::new(format!("{shown} means {} of them", ids.len()))
            .hint(format!("Give the id of one: {}", ids.join(" ")))),
    }
}

/// An id or code from the command line becomes a part of a path, so nothing else may be in it.
pub fn path_part(text: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text);
    }
    Err(Error::misread(text, "has characters that it cannot have").hint("Copy it again, whole"))
}
