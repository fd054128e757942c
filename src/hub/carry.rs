//! One hub as the client of another: it asks there in a joiner's name, with the joiner's own key, and carries
//! the session's bytes. The other hub decides as if the joiner had come itself, so hubs need no secret of
//! their own; and a hub is believed to be one of the fleet only when it proves the fleet's pin.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use super::api_call::ApiCall;
use super::api_call::ok;
use super::core::Core;
use super::refusal::Refusal;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::pairing::TICKET_SECONDS;
use crate::model::service::Service;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::secret;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;

/// A hub that does not answer for so long is not waited for.
const OTHER_HUB_TIMEOUT: Duration = Duration::from_secs(3);

type Refusable<T> = std::result::Result<T, Refusal>;

/// A session at another hub, for a joiner that cannot go there.
pub struct CarriedSession {
    hub: String,
    relay: String,
    ticket: String,
}

/// The other hub as we call it, in the name of the owner of `key`.
fn other_hub(core: &Core, hub: &str, key: Option<String>) -> Result<Hub> {
    let fleet = core.fleet.as_ref().ok_or_else(|| Error::new("This hub is alone"))?;
    Ok(Hub::of_fleet(HubUrl::parse(hub)?, Arc::clone(&fleet.tls), key, &core.stop))
}

/// Whether the other hub still reaches the store that this one has lost.
pub fn has_store(core: &Core, hub: &str) -> bool {
    let other = other_hub(core, hub, None).map(|other| other.with_timeout(OTHER_HUB_TIMEOUT));
    other.and_then(|other| other.health()).is_ok_and(|health| health.store.as_deref() == Some("ok"))
}

/// Asks for a session where the agent is, and keeps what is needed to carry it.
pub fn ask(
    core: &Core,
    call: &ApiCall<'_>,
    asked: &AskSession,
    service: &Service,
    hub: &str,
) -> Refusable<Reply> {
    let key = call.request.key();
    let offline = || Refusal::Offline(Box::new(service.clone()));
    let Some(fleet) = core.fleet.as_ref().filter(|_| call.principal != Principal::Local) else {
        return Err(offline());
    };
    let other = other_hub(core, hub, Some(key.to_owned())).map(|other| other.with_timeout(OTHER_HUB_TIMEOUT));
    let answered =
        other.and_then(|other| other.ask_session_here(&AskSession { carry: false, ..asked.clone() }));
    let answer = answered.map_err(|error| {
        log::debug!("a session cannot be carried: {error}");
        offline()
    })?;
    if answer.status == 421 {
        // The agent has moved on meanwhile.
        return Err(offline());
    }
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let Ok(granted) = serde_json::from_value::<SessionGrant>(value.clone()) else {
        return Err(Refusal::OtherHub(Reply::json(answer.status.max(400), value)));
    };
    let (ticket, now) = (secret::secret(), clock::now());
    let relay = call.relay_address()?;
    let carried = CarriedSession { hub: hub.to_owned(), relay: granted.relay, ticket: granted.ticket };
    let mut all = locked(&fleet.carried);
    all.retain(|_, (_, made)| now.since(*made).as_secs() <= TICKET_SECONDS);
    all.insert(ticket.clone(), (carried, now));
    drop(all);
    let by = [("session", granted.session.as_str()), ("who", call.principal.id()), ("hub", hub)];
    core.audit.say("session.carried", &by);
    ok(200, &SessionGrant { ticket, relay, ..granted })
}

/// Whether this ticket is for a session at another hub.
pub fn redeem(core: &Core, ticket: &str) -> Option<CarriedSession> {
    let fleet = core.fleet.as_ref()?;
    let (carried, made) = locked(&fleet.carried).remove(ticket)?;
    (clock::now().since(made).as_secs() < TICKET_SECONDS).then_some(carried)
}

/// The other end of a carried session, when the agent has come there; and what cuts it.
pub fn dial_relay(core: &Core, carried: &CarriedSession) -> Refusable<(Duplex, Registration)> {
    let deadline = Instant::now() + NETWORK_TIMEOUT;
    let dialled = other_hub(core, &carried.hub, None)
        .and_then(|other| other.relay(&other.url, &carried.relay, &carried.ticket, deadline))
        .and_then(|far| {
            let cut = core.stop.attach(&far.socket).ok_or_else(Error::stopped)?;
            Ok((far, cut))
        });
    dialled.map_err(|error| {
        let status = if let ErrorKind::Refused(status) = error.kind { status } else { 504 };
        Refusal::OtherHubAway { status, what: error.to_string() }
    })
}
