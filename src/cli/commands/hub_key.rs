//! `connect hub key create`, `list` and `revoke`, and `connect hub approve`: who may use the hub.

use std::time::Duration;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub::LocalHub;
use crate::cli::say;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::access::Role;
use crate::model::hub_records::KeyInfo;
use crate::model::time::in_words;
use crate::os::clock;
use crate::os::terminal;
use crate::wire::api::ApproveDevice;
use crate::wire::api::NewKey;
use crate::wire::api::WaitingLogin;

/// The key is printed alone on its line, so that `-q` gives it to a script.
pub fn create(call: &Call) -> CommandResult {
    let args = &call.args;
    let body = json!({
        "role": role(call)?.map(Role::as_str),
        "label": args.value("label"),
        "workspace": args.value("workspace"),
        "expiresInSeconds": args.duration("expires")?.map(|life| life.as_secs()),
    });
    let made = LocalHub::find(call)?.call("POST", "/v1/keys", Some(&body))?;
    call.say.value(&made);
    let Ok(made) = serde_json::from_value::<NewKey>(made) else {
        return Err(Error::new("The hub's answer does not hold a key"));
    };
    call.say.line(&format!(
        "[ok] Made the {} key {}; it is shown only this once:",
        made.info.role.as_str(),
        made.info.id
    ));
    call.say.line("");
    call.say.result(&format!("  {}", made.key));
    if let Some(at) = made.info.expires_at {
        call.say.line(&format!("\n  It expires in {}, at {at}", in_words(at.since(clock::now()))));
    }
    call.say.line(&format!("\n  Use it: connect up --hub URL --api-key {}", made.key));
    Ok(0)
}

fn role(call: &Call) -> Result<Option<Role>> {
    let Some(text) = call.args.value("role") else { return Ok(None) };
    Role::parse(text)
        .map(Some)
        .ok_or_else(|| Error::unknown("role", text).hint("Use --role admin, member or join"))
}

pub fn list(call: &Call) -> CommandResult {
    let keys: Vec<KeyInfo> = LocalHub::find(call)?.list("/v1/keys")?;
    call.say.value(&keys);
    let rows = keys.iter().map(|key| {
        let expires = key.expires_at.map_or("never".to_owned(), |at| at.to_string());
        [key.id.clone(), key.role.as_str().to_owned(), key.label.clone(), key.workspace.clone(), expires]
    });
    let table = say::columns(&["ID", "ROLE", "LABEL", "WORKSPACE", "EXPIRES"], rows);
    call.say.result(&table);
    Ok(0)
}

pub fn revoke(call: &Call) -> CommandResult {
    let id = call.args.positional(0).unwrap_or_default();
    let order = json!({ "withAllItMade": call.args.flag("with-all-it-made") });
    let path = format!("/v1/keys/{}", path_part(id)?);
    LocalHub::find(call)?.call("DELETE", &path, Some(&order))?;
    let more = if call.args.flag("with-all-it-made") { ", and all that it made is removed" } else { "" };
    call.say.line(&format!("[ok] Revoked {id}; its sessions are cut{more}"));
    call.say.value(&json!({ "revoked": id }));
    Ok(0)
}

pub fn approve(call: &Call) -> CommandResult {
    let code = call.args.positional(0).unwrap_or_default();
    let order = ApproveDevice {
        code: code.to_owned(),
        role: role(call)?,
        workspace: call.args.value("workspace").map(str::to_owned),
    };
    let order = serde_json::to_value(order).or_say(|| "Cannot write the request")?;
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

/// An id or code from the command line becomes a part of a path, so nothing else may be in it.
pub fn path_part(text: &str) -> Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text);
    }
    Err(Error::misread(text, "has characters that it cannot have").hint("Copy it again, whole"))
}
