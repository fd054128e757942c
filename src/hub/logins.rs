//! Logins by a device code: a machine without a key asks for a code, an admin approves the code, and the machine
//! fetches its key.

use std::cmp::Reverse;
use std::time::Duration;

use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::audit::Actor;
use super::core::Core;
use super::keys;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::Role;
use crate::model::code::Code;
use crate::model::hub_records::Approval;
use crate::model::hub_records::Change;
use crate::model::hub_records::Device;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::limiter::network_of;
use crate::model::registry::Registry;
use crate::os::secret;
use crate::wire::api::ApproveDevice;
use crate::wire::api::AskDevice;
use crate::wire::api::AskDeviceState;
use crate::wire::api::DeviceCode;
use crate::wire::api::DeviceState;
use crate::wire::api::MakeKey;
use crate::wire::api::WaitingLogin;

/// Enough time to reach an admin. `LOGIN_CODES` in `endpoints.rs` counts over the same time.
const LOGIN_CODE_LIFETIME: Duration = Duration::from_mins(15);
/// How often the waiting machine asks whether its code was approved.
const POLL_SECONDS: u64 = 2;
/// Codes that may wait at once. Asking for one needs no key, so their number must be bounded.
const WAITING_LOGINS: usize = 100;

/// Makes a code for a machine without a key. The machine also gets a secret: the code alone does not fetch the key.
pub fn ask(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let order: AskDevice = call.body()?;
    let letters = Code::make(|| secret::bytes::<1>()[0]).as_str().to_ascii_uppercase();
    let code = format!("{}-{}", &letters[..4], &letters[4..8]);
    let secret = secret::secret();
    let device = Device {
        code_hash: hash_of(core, &code),
        secret_hash: secret::hash(&secret),
        label: clean_label(&order.label),
        address: call.origin.address,
        asked_at: call.now,
        expires_at: call.now.plus(LOGIN_CODE_LIFETIME),
        approved: None,
    };
    core.records.change(|registry| {
        let surplus = surplus(registry).map(|device| Change::drop(Table::Device, &device.code_hash));
        Ok((surplus.into_iter().chain([Change::Put(Record::Device(device.clone()))]).collect(), ()))
    })?;
    let actor = Actor { id: "", label: "", address: Some(device.address) };
    core.audit.say("device.asked", actor, &[("machine", &device.label)]);
    let host = call.request.field("host").unwrap_or("localhost");
    let asked = DeviceCode {
        page: format!("https://{host}/device"),
        code,
        secret,
        interval_seconds: POLL_SECONDS,
        expires_in_seconds: LOGIN_CODE_LIFETIME.as_secs(),
    };
    ok(201, &asked)
}

/// When too many wait, the oldest login of the network that holds most. A flood so pushes out its own logins first.
fn surplus(registry: &Registry) -> Option<&Device> {
    let waiting: Vec<&Device> = registry.devices().filter(|device| device.approved.is_none()).collect();
    let network = |device: &Device| network_of(device.address);
    let held = |of: &Device| waiting.iter().filter(|device| network(device) == network(of)).count();
    let worst = waiting.iter().max_by_key(|device| (held(device), Reverse(device.asked_at)));
    worst.filter(|_| waiting.len() >= WAITING_LOGINS).copied()
}

/// The state of a code, for the machine that asked for it. An approved code is exchanged for a new key, once.
pub fn state(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    // Others see or hear the code, so it alone must not fetch the key.
    let asked: AskDeviceState = call.body()?;
    let given = secret::hash(&asked.secret);
    let device = core.records.registry().device(&hash_of(core, &asked.code), call.now).cloned();
    let device = device.filter(|device| device.secret_hash == given).ok_or(Refusal::LoginCodeUnknown)?;
    let Some(approval) = device.approved else {
        return ok(200, &DeviceState { status: "pending".into(), key: None });
    };
    let order =
        MakeKey { role: Some(approval.role), label: Some(device.label.clone()), ..MakeKey::default() };
    let (secret, key) = keys::new_key(&order, approval.workspace, call.now);
    // The code is used up by the same change that makes the key.
    core.records.change(|registry| {
        let hash = &registry.device(&device.code_hash, call.now).ok_or(Refusal::LoginCodeUnknown)?.code_hash;
        let used_up = Change::drop(Table::Device, hash);
        Ok((keys::added(registry, &key, call.now)?.into_iter().chain([used_up]).collect(), ()))
    })?;
    let actor = Actor { id: "device", label: &device.label, address: Some(call.origin.address) };
    keys::audit_made(&core.audit, actor, &key.info);
    ok(200, &DeviceState { status: "approved".into(), key: Some(keys::with_pin(secret, core.key_pin())) })
}

/// The API's two calls for an admin: who waits with this code, and its approval.
pub fn preview(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    ok(200, &waiting(core, call, &call.body::<ApproveDevice>()?.code)?)
}

pub fn approve(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    ok(200, &approve_code(core, call, &call.body()?)?)
}

/// What an admin should see before approving: whoever made somebody read out a code chose the label, but not the address.
pub fn waiting(core: &Core, call: &ApiCall<'_>, code: &str) -> Result<WaitingLogin, Refusal> {
    let registry = core.records.registry();
    let device = registry.device(&hash_of(core, code), call.now).ok_or(Refusal::NoLoginWaiting)?;
    let age_seconds = call.now.since(device.asked_at).as_secs();
    Ok(WaitingLogin { label: device.label.clone(), address: device.address, age_seconds })
}

/// Approves a code; returns the waiting machine.
pub fn approve_code(core: &Core, call: &ApiCall<'_>, order: &ApproveDevice) -> Result<WaitingLogin, Refusal> {
    let workspace = keys::ruled_workspace(call, order.workspace.as_deref())?;
    let approval = Approval { role: order.role.unwrap_or(Role::Member), workspace };
    let (hash, login) = (hash_of(core, &order.code), waiting(core, call, &order.code)?);
    core.records.change(|registry| {
        // The first approval counts: the admin of another workspace must not take the machine over.
        let device = registry.device(&hash, call.now).filter(|device| device.approved.is_none());
        let device = device.cloned().ok_or(Refusal::NoLoginWaiting)?;
        let device = Device { approved: Some(approval.clone()), ..device };
        Ok((vec![Change::Put(Record::Device(device))], ()))
    })?;
    let address = login.address.to_string();
    let details = [("machine", login.label.as_str()), ("machineAddress", &address)];
    core.audit.say("device.approved", call.actor(), &details);
    Ok(login)
}

/// A login belongs to no workspace until it is approved.
fn hash_of(core: &Core, code: &str) -> String {
    core.code_key.hash("", &spelled(code))
}

/// The one spelling of a code: `abcd efgh` becomes `ABCD-EFGH`.
fn spelled(code: &str) -> String {
    let letters: String = code.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    let letters = letters.to_ascii_uppercase();
    match letters.split_at_checked(4) {
        Some((first, last)) => format!("{first}-{last}"),
        None => letters,
    }
}
