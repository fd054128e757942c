//! One hub as the client of another: it asks there in a joiner's name, with the joiner's own key, and carries
//! the session's bytes. The other hub decides as if the joiner had come itself, so hubs need no secret of
//! their own; and a hub is believed to be one of the fleet only when it proves the fleet's pin.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use super::api_call::ApiCall;
use super::api_call::ok;
use super::core::Core;
use super::refusal::Refusal;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::message::Response;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::pairing::TICKET_SECONDS;
use crate::model::service::Service;
use crate::model::version;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial;
use crate::net::duplex::Duplex;
use crate::net::http;
use crate::net::http::ClientRequest;
use crate::net::stop::Registration;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::secret;
use crate::tls;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGranted;
use crate::wire::control::RELAY_UPGRADE;

/// A hub that does not answer for so long is not waited for.
const OTHER_HUB_TIMEOUT: Duration = Duration::from_secs(3);

type Refusable<T> = std::result::Result<T, Refusal>;

/// A session at another hub, for a joiner that cannot go there.
pub struct CarriedSession {
    hub: String,
    relay: String,
    ticket: String,
}

/// A connection to another hub, and its cut.
fn connect(core: &Core, hub: &str, is_tls: bool, deadline: Instant) -> Result<(Duplex, Registration)> {
    let url = HubUrl::parse(hub)?;
    let fleet = core.fleet.as_ref().ok_or_else(|| Error::new("This hub is alone"))?;
    let socket = dial(&url.host, url.port, deadline, &core.stop)?;
    let cut = core.stop.attach(&socket).ok_or_else(Error::stopped)?;
    let plain = Duplex::plain(socket);
    if !is_tls {
        return Ok((plain, cut));
    }
    let proved = tls::client(&fleet.tls, &url.host, plain, deadline);
    Ok((proved.or_say(|| format!("{hub} did not prove that it is of this fleet"))?.into_duplex(), cut))
}

fn call(core: &Core, hub: &str, ask: &ClientRequest<'_>) -> Result<Response> {
    let deadline = Instant::now() + OTHER_HUB_TIMEOUT;
    let (mut stream, _cut) = connect(core, hub, true, deadline)?;
    let answered = http::exchange(&mut stream, ask, deadline);
    answered.map(|(answer, _)| answer).or_say(|| format!("{hub} does not answer"))
}

/// Whether the hub there has what this one has lost.
pub fn has_store(core: &Core, hub: &str) -> bool {
    let ask = ClientRequest { method: "GET", path: "/health", host: "hub", fields: &[], body: None };
    let health = call(core, hub, &ask).ok().and_then(|answer| serde_json::from_slice(&answer.body).ok());
    health.is_some_and(|health: Value| health["store"] == "ok")
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
    let body = json!(AskSession { carry: false, ..asked.clone() }).to_string();
    // What the joiner speaks is for the agent to judge, not what this hub does.
    let speaks = call.request.field(version::FIELD).map(|speaks| (version::FIELD, speaks));
    let fields: Vec<_> = [("x-api-key", key)].into_iter().chain(speaks).collect();
    let ask = ClientRequest {
        method: "POST",
        path: "/v1/sessions",
        host: "hub",
        fields: &fields,
        body: Some(body.as_bytes()),
    };
    let answer = self::call(core, hub, &ask).map_err(|error| {
        log::debug!("a session cannot be carried: {error}");
        offline()
    })?;
    if answer.status == 421 {
        // The agent has moved on meanwhile.
        return Err(offline());
    }
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let Ok(granted) = serde_json::from_value::<SessionGranted>(value.clone()) else {
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
    ok(200, &SessionGranted { ticket, relay, ..granted })
}

/// Whether this ticket is for a session at another hub.
pub fn redeem(core: &Core, ticket: &str) -> Option<CarriedSession> {
    let fleet = core.fleet.as_ref()?;
    let (carried, made) = locked(&fleet.carried).remove(ticket)?;
    (clock::now().since(made).as_secs() < TICKET_SECONDS).then_some(carried)
}

/// The other end of a carried session, when the agent has come there.
pub fn dial_relay(core: &Core, carried: &CarriedSession) -> Refusable<(Duplex, Registration)> {
    let deadline = Instant::now() + NETWORK_TIMEOUT;
    let fields = [("x-ticket", carried.ticket.as_str())];
    let ask = ClientRequest { method: "GET", path: "/v1/relay", host: "hub", fields: &fields, body: None };
    let is_tls = carried.relay.starts_with("https://");
    let dialled = connect(core, &carried.hub, is_tls, deadline).and_then(|(stream, cut)| {
        http::upgrade(stream, RELAY_UPGRADE, &ask, deadline).map(|stream| (stream, cut))
    });
    dialled.map_err(|error| {
        let status = if let ErrorKind::Refused(status) = error.kind { status } else { 504 };
        Refusal::OtherHubAway { status, what: error.to_string() }
    })
}
