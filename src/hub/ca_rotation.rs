//! The hub's root is replaced: at the order of its operator, or because another hub of the fleet has done it. The hub
//! tells those that trust the old one: agents, its own command line, and operators by a file.

use std::time::Duration;

use serde_json::json;

use super::api_call::ApiCall;
use super::core::Core;
use super::core::ListeningHub;
use super::refusal::Refusal;
use super::status;
use crate::error::Result;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::os::clock;
use crate::os::files;
use crate::os::lock::locked;
use crate::wire::api::RotationOrder;
use crate::wire::control::ToAgent;

/// A machine that is used once a month has come by within this time.
const DEFAULT_CA_OVERLAP: u64 = 30 * 24 * 3600;
/// How the hub's own command line reaches the running hub.
pub const NOTE_FILE: &str = "hub.json";

/// Gives the hub a new root. Only its operator may.
pub fn rotate(core: &Core, call: &ApiCall<'_>) -> std::result::Result<Reply, Refusal> {
    if call.principal != Principal::Local {
        return Err(Refusal::WholeHub);
    }
    let order: RotationOrder = call.body_if_any()?;
    let overlap = Duration::from_secs(order.overlap_seconds.unwrap_or(DEFAULT_CA_OVERLAP));
    let _turn = locked(&core.following_ca);
    let (from, until) = (core.ca.pin().to_string(), call.now.plus(overlap));
    let is_rotated = core.ca.rotate(until, call.now).map_err(|error| {
        log::error!("the CA is not rotated: {error}");
        Refusal::StoreFailed
    })?;
    if !is_rotated {
        return Err(Refusal::CaRotates);
    }
    let (to, until) = (core.ca.pin().to_string(), until.to_string());
    core.audit.say("ca.rotated", call.actor(), &[("from", &from), ("to", &to), ("until", &until)]);
    announce(core);
    status::ca(core)
}

/// Follows the CA, which another hub of the fleet may have rotated, to the end of its overlap.
pub fn follow(core: &Core) {
    let _turn = locked(&core.following_ca);
    match core.ca.refresh(clock::now()) {
        Ok(true) => announce(core),
        Ok(false) => {}
        Err(error) => log::warn!("the fleet's CA is not followed: {error}"),
    }
}

fn announce(core: &Core) {
    let written = write_roots(core);
    written.unwrap_or_else(|error| log::error!("the new root is not written: {error}"));
    core.channels.send_all(&ToAgent::NewRoot { pin: core.ca.pin().to_string() });
}

/// For operators, who hand the certificates to clients, and while the hub runs for its own command line.
pub fn write_roots(core: &Core) -> Result<()> {
    let (data, roots) = (&core.settings.data, core.ca.certificates());
    let file = if core.fleet.is_some() { "fleet-ca.crt" } else { "certs/ca.crt" };
    files::write(&data.join(file), roots.certificate.as_bytes())?;
    let Some(ListeningHub { address, url }) = core.listening.get() else { return Ok(()) };
    let note =
        json!({ "url": url, "address": address.to_string(), "pin": roots.pin, "token": core.local_token });
    files::write(&data.join(NOTE_FILE), note.to_string().as_bytes())
}
