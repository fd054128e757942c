//! API keys, and device codes by which a machine without one asks for one.
//!
//! An admin's key rules its own workspace: it lists, makes and revokes keys there and nowhere else. Whoever
//! is on the hub's own machine rules all of them.

use std::time::Duration;

use super::access;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::core::DEVICE_CODES;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::access::Role;
use crate::model::hub_records::Approval;
use crate::model::hub_records::Change;
use crate::model::hub_records::Device;
use crate::model::hub_records::Key;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::limiter::network_of;
use crate::model::name::Name;
use crate::os::clock;
use crate::os::secret;
use crate::wire::api::ApproveDevice;
use crate::wire::api::AskDevice;
use crate::wire::api::DeviceAsked;
use crate::wire::api::DeviceState;
use crate::wire::api::KeyInfo;
use crate::wire::api::KeyMade;
use crate::wire::api::MakeKey;

/// More keys than any team has; the registry keeps all of them in memory.
const HUB_KEYS: usize = 10_000;
const DEVICE_LIFE: Duration = Duration::from_mins(15);
const DEVICE_POLL: u64 = 2;
/// Device codes that may wait at once; asking needs no key.
const WAITING_LOGINS: usize = 100;

pub fn list(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let registry = call.core.registry();
    let keys: Vec<KeyInfo> = registry.keys().filter(|key| rules(call, &key.workspace)).map(info).collect();
    drop(registry);
    ok(200, &keys)
}

/// Whether the caller may give and take keys in this workspace.
fn rules(call: &ApiCall<'_>, workspace: &str) -> bool {
    call.principal == Principal::Local || call.workspace() == workspace
}

/// The workspace that was named, else the caller's own.
fn workspace_for(call: &ApiCall<'_>, named: Option<&str>) -> Result<String, Reply> {
    let workspace = workspace_named(named.unwrap_or(call.workspace()))?;
    if rules(call, &workspace) {
        return Ok(workspace);
    }
    call.core.audit_refusal("role.refused", &[("who", call.principal.id()), ("action", "OtherWorkspace")]);
    Err(Reply::error(
        403,
        "This key rules another workspace",
        "Make it on the hub's machine: connect hub key create --workspace NAME",
    ))
}

pub fn make(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let asked: MakeKey = call.body_if_any()?;
    if asked.expires_in_seconds == Some(0) {
        return Err(Reply::error(400, "A key lives a second at least", "Try --expires 30d"));
    }
    let workspace = workspace_for(call, asked.workspace.as_deref())?;
    let (secret, key) = new_key(&asked, workspace);
    let made = KeyMade { key: with_pin(call, &secret), info: info(&key) };
    let (id, role) = (key.id.clone(), key.role);
    call.core.change(|registry| {
        if registry.keys().count() >= HUB_KEYS {
            return Err(Reply::error(409, "There are too many keys", "Revoke some: connect hub key list"));
        }
        Ok((vec![Change::Put(Record::Key(key.clone()))], ()))
    })?;
    call.core.audit.say("key.made", &[("key", &id), ("role", role.as_str()), ("by", call.principal.id())]);
    ok(201, &made)
}

pub fn revoke(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let id = call.parts[0];
    call.core.change(|registry| match registry.key(id).filter(|key| rules(call, &key.workspace)) {
        Some(_) => Ok((vec![Change::drop(Table::Key, id)], ())),
        None => Err(Reply::error(404, "There is no such key", "Look at the ids: connect hub key list")),
    })?;
    call.core.audit.say("key.revoked", &[("key", id), ("by", call.principal.id())]);
    call.core.cut_dead();
    Ok(Reply::empty(204))
}

pub fn ask_device(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let asked: AskDevice = call.body()?;
    let now = clock::now();
    let who = [network_of(call.origin.address).to_string()];
    if let Some(seconds) = call.core.blocked(&DEVICE_CODES, &who, now) {
        call.core.refused("too-many-devices");
        return Err(access::too_many(seconds));
    }
    call.core.failed(&DEVICE_CODES, &who, now);
    let letters = crate::model::code::Code::make(|| secret::bytes::<1>()[0]).as_str().to_ascii_uppercase();
    let code = format!("{}-{}", &letters[..4], &letters[4..]);
    let secret = secret::secret();
    let label = clean_label(&asked.label);
    let device = Device {
        code: code.clone(),
        secret_hash: secret::hash(&secret),
        label: label.clone(),
        expires_at: now.plus(DEVICE_LIFE),
        approved: None,
    };
    call.core.change(|registry| {
        if registry.devices().count() >= WAITING_LOGINS {
            return Err(Reply::error(
                503,
                "Too many logins wait for approval",
                "Try again in a quarter of an hour",
            ));
        }
        Ok((vec![Change::Put(Record::Device(device.clone()))], ()))
    })?;
    call.core.audit.say(
        "device.asked",
        &[("code", &code), ("label", &label), ("address", &call.origin.address.to_string())],
    );
    let host = call.request.field("host").unwrap_or("localhost");
    ok(
        201,
        &DeviceAsked {
            page: format!("https://{host}/device"),
            code,
            secret,
            interval_seconds: DEVICE_POLL,
            expires_in_seconds: DEVICE_LIFE.as_secs(),
        },
    )
}

pub fn device_state(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let unknown =
        || Reply::error(404, "This login code is not valid", "It lives 15 minutes; run connect up again");
    let now = clock::now();
    let given = secret::hash(call.request.field("x-device-secret").unwrap_or_default());
    let device = call.core.registry().device(call.parts[0], now).cloned();
    let device = device.filter(|device| device.secret_hash == given).ok_or_else(unknown)?;
    let Some(approval) = device.approved else {
        return ok(200, &DeviceState { status: "pending".into(), key: None });
    };
    let asked =
        MakeKey { role: Some(approval.role), label: Some(device.label.clone()), ..MakeKey::default() };
    let (secret, key) = new_key(&asked, approval.workspace);
    let id = key.id.clone();
    // The code is used up by the same change that makes the key.
    call.core.change(|registry| match registry.device(&device.code, now) {
        Some(_) => {
            Ok((vec![Change::Put(Record::Key(key.clone())), Change::drop(Table::Device, &device.code)], ()))
        }
        None => Err(unknown()),
    })?;
    call.core.audit.say("key.made", &[("key", &id), ("by", "device"), ("label", &device.label)]);
    ok(200, &DeviceState { status: "approved".into(), key: Some(with_pin(call, &secret)) })
}

pub fn approve_device(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let label = approve(call, call.parts[0], &call.body_if_any()?)?;
    Ok(Reply::json(200, serde_json::json!({ "label": label })))
}

/// Approves a code; returns what the waiting machine calls itself.
pub fn approve(call: &ApiCall<'_>, code: &str, asked: &ApproveDevice) -> Result<String, Reply> {
    let now = clock::now();
    let code = spelled(code);
    let workspace = workspace_for(call, asked.workspace.as_deref())?;
    let approval = Approval { role: asked.role.unwrap_or(Role::Member), workspace };
    let label = call.core.change(|registry| {
        let device = registry.device(&code, now).cloned().ok_or_else(|| {
            Reply::error(
                404,
                "No login waits with this code",
                "Codes live 15 minutes; run connect up again there",
            )
        })?;
        let label = device.label.clone();
        let approved = Some(approval.clone());
        Ok((vec![Change::Put(Record::Device(Device { approved, ..device }))], label))
    })?;
    call.core
        .audit
        .say("device.approved", &[("code", &code), ("label", &label), ("by", call.principal.id())]);
    Ok(label)
}

/// `abcd efgh` and `ABCD-EFGH` are one code.
fn spelled(code: &str) -> String {
    let letters: String = code.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    let letters = letters.to_ascii_uppercase();
    match letters.split_at_checked(4) {
        Some((front, back)) => format!("{front}-{back}"),
        None => letters,
    }
}

fn new_key(asked: &MakeKey, workspace: String) -> (String, Key) {
    let now = clock::now();
    let secret = access::new_key();
    let key = Key {
        id: secret::id("key"),
        hash: secret::hash(&secret),
        role: asked.role.unwrap_or(Role::Member),
        label: clean_label(asked.label.as_deref().unwrap_or_default()),
        workspace,
        created_at: now,
        expires_at: asked.expires_in_seconds.map(|seconds| now.plus(Duration::from_secs(seconds))),
    };
    (secret, key)
}

fn workspace_named(text: &str) -> Result<String, Reply> {
    Name::parse(text).map(|name| name.to_string()).map_err(|bad| {
        Reply::error(400, &format!("The workspace's name {}", bad.reason()), "Use a-z, 0-9 and -")
    })
}

/// A key carries the pin of the hub's CA, unless somebody else's certificate stands before the hub.
fn with_pin(call: &ApiCall<'_>, secret: &str) -> String {
    if call.core.settings.behind_proxy {
        secret.to_owned()
    } else {
        format!("{secret}.{}", call.core.ca.pin())
    }
}

fn info(key: &Key) -> KeyInfo {
    KeyInfo {
        id: key.id.clone(),
        role: key.role,
        label: key.label.clone(),
        workspace: key.workspace.clone(),
        created_at: key.created_at,
        expires_at: key.expires_at,
    }
}
