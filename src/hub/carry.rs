//! One hub as the client of another: it asks there in a joiner's name, with the joiner's own key, and carries
//! the session's bytes. The other hub decides as if the joiner had come itself, so hubs need no secret of
//! their own; and a hub is believed to be one of the fleet only when it proves the fleet's pin.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use super::access;
use super::api_call::ApiCall;
use super::core::Core;
use super::refusal::Refusal;
use crate::api::Hub;
use crate::error::Error;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::hub_session::RemoteSession;
use crate::model::service::Service;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;

/// A hub that does not answer for so long is not waited for.
const OTHER_HUB_TIMEOUT: Duration = Duration::from_secs(3);

/// The other hub as we call it, in the name of the owner of `key`.
fn other_hub(core: &Core, hub: &str, key: Option<String>) -> crate::error::Result<Hub> {
    let direct =
        core.records.registry().hubs().find(|known| known.url == hub).map(|known| known.direct.clone());
    let direct = direct.ok_or_else(|| Error::new(format!("{hub} has left the fleet")))?;
    Hub::of_fleet(HubUrl::parse(&direct)?, core.ca.fleet_pin(), key, &core.stop)
}

/// Whether the other hub still reaches the store that this one has lost.
pub fn has_store(core: &Core, hub: &str) -> bool {
    let other = other_hub(core, hub, None).map(|other| other.with_timeout(OTHER_HUB_TIMEOUT));
    other.and_then(|other| other.health()).is_ok_and(|health| health.store.as_deref() == Some("ok"))
}

/// Asks for a session at the hub where the agent is.
pub fn ask_session(
    core: &Core,
    call: &ApiCall<'_>,
    asked: &AskSession,
    service: &Service,
    hub: &str,
) -> Result<SessionGrant, Refusal> {
    let offline = || Refusal::Offline(Box::new(service.clone()));
    // The key of the hub's own machine is unknown there.
    if call.principal == Principal::Local {
        return Err(offline());
    }
    let asked = AskSession { carry: false, direct: false, ..asked.clone() };
    let answered = other_hub(core, hub, Some(access::vouched_key(core, call)))
        .and_then(|other| other.with_timeout(OTHER_HUB_TIMEOUT).ask_session_here(&asked));
    let answer = answered.map_err(|error| {
        log::warn!("a session cannot be carried: {error}");
        offline()
    })?;
    // The agent has moved on in the meantime.
    if answer.status == 421 {
        return Err(offline());
    }
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    serde_json::from_value(value.clone())
        .map_err(|_| Refusal::OtherHub(Reply::json(answer.status.max(400), value)))
}

/// Why the agent does not come to a carried session, as its hub knows it.
pub fn declined(core: &Core, call: &ApiCall<'_>, remote: &RemoteSession, session: &str) -> Option<String> {
    let other = other_hub(core, &remote.hub, Some(access::vouched_key(core, call))).ok()?;
    other.with_timeout(OTHER_HUB_TIMEOUT).declined(&other.url, session).ok()?
}

/// The other end of a carried session, when the agent has come there; and what cuts it.
pub fn dial_relay(core: &Core, remote: &RemoteSession) -> Result<(Duplex, Registration), Refusal> {
    let deadline = Instant::now() + NETWORK_TIMEOUT;
    let dialled = other_hub(core, &remote.hub, None)
        .and_then(|other| other.relay(&other.url, &remote.relay, &remote.ticket, deadline))
        .and_then(|far| {
            let cut = core.stop.attach(&far.socket).ok_or_else(Error::stopped)?;
            Ok((far, cut))
        });
    dialled.map_err(|error| {
        log::debug!("a carried session ends: {error}");
        Refusal::OtherHubAway
    })
}
