//! Logins by a device code: a machine without a key asks for a code, an admin approves the code, and the machine
//! fetches its key.

use std::time::Duration;

use serde_json::json;

use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::audit::Audit;
use super::keys;
use super::records::Records;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::Role;
use crate::model::code::Code;
use crate::model::fingerprint::Pin;
use crate::model::hub_records::Approval;
use crate::model::hub_records::Change;
use crate::model::hub_records::Device;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::os::secret;
use crate::wire::api::ApproveDevice;
use crate::wire::api::AskDevice;
use crate::wire::api::DeviceCode;
use crate::wire::api::DeviceState;
use crate::wire::api::MakeKey;

/// Enough time to reach an admin. `LOGIN_CODES` in `endpoints.rs` counts over the same time.
const LOGIN_CODE_LIFETIME: Duration = Duration::from_mins(15);
/// How often the waiting machine asks whether its code was approved.
const POLL_SECONDS: u64 = 2;
/// Codes that may wait at once. Asking for one needs no key, so their number must be bounded.
const WAITING_LOGINS: usize = 100;

/// Makes a code for a machine without a key. The machine also gets a secret: the code alone does not fetch the key.
pub fn ask(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<Reply, Refusal> {
    let order: AskDevice = call.body()?;
    let letters = Code::make(|| secret::bytes::<1>()[0]).as_str().to_ascii_uppercase();
    let code = format!("{}-{}", &letters[..4], &letters[4..8]);
    let secret = secret::secret();
    let device = Device {
        code: code.clone(),
        secret_hash: secret::hash(&secret),
        label: clean_label(&order.label),
        expires_at: call.now.plus(LOGIN_CODE_LIFETIME),
        approved: None,
    };
    records.change(|registry| {
        if registry.devices().count() >= WAITING_LOGINS {
            return Err(Refusal::TooManyLoginsWaiting);
        }
        Ok((vec![Change::Put(Record::Device(device.clone()))], ()))
    })?;
    let address = call.origin.address.to_string();
    audit.say("device.asked", &[("code", &code), ("label", &device.label), ("address", &address)]);
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

/// The state of a code, for the machine that asked for it. An approved code is exchanged for a new key, once.
pub fn state(
    call: &ApiCall<'_>,
    records: &Records,
    audit: &Audit,
    pin: Option<Pin>,
) -> Result<Reply, Refusal> {
    // Others see or hear the code, so it alone must not fetch the key.
    let given = secret::hash(call.request.field("x-device-secret").unwrap_or_default());
    let device = records.registry().device(call.parts[0], call.now).cloned();
    let device = device.filter(|device| device.secret_hash == given).ok_or(Refusal::LoginCodeUnknown)?;
    let Some(approval) = device.approved else {
        return ok(200, &DeviceState { status: "pending".into(), key: None });
    };
    let order =
        MakeKey { role: Some(approval.role), label: Some(device.label.clone()), ..MakeKey::default() };
    let (secret, key) = keys::new_key(&order, approval.workspace, call.now);
    // The code is used up by the same change that makes the key.
    records.change(|registry| {
        let code = &registry.device(&device.code, call.now).ok_or(Refusal::LoginCodeUnknown)?.code;
        Ok((vec![Change::Put(Record::Key(key.clone())), Change::drop(Table::Device, code)], ()))
    })?;
    audit.say("key.made", &[("key", &key.info.id), ("by", "device"), ("label", &device.label)]);
    ok(200, &DeviceState { status: "approved".into(), key: Some(keys::with_pin(secret, pin)) })
}

/// The API's call to approve a code.
pub fn approve(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<Reply, Refusal> {
    let label = approve_code(call, records, audit)?;
    Ok(Reply::json(200, json!({ "label": label })))
}

/// Approves a code; returns the label of the waiting machine.
pub fn approve_code(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<String, Refusal> {
    let order: ApproveDevice = call.body_if_any()?;
    let code = spelled(call.parts[0]);
    let workspace = keys::ruled_workspace(call, order.workspace.as_deref(), audit)?;
    let approval = Approval { role: order.role.unwrap_or(Role::Member), workspace };
    let label = records.change(|registry| {
        let device = registry.device(&code, call.now).cloned().ok_or(Refusal::NoLoginWaiting)?;
        let label = device.label.clone();
        let device = Device { approved: Some(approval.clone()), ..device };
        Ok((vec![Change::Put(Record::Device(device))], label))
    })?;
    audit.say("device.approved", &[("code", &code), ("label", &label), ("by", call.principal.id())]);
    Ok(label)
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
