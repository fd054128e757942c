//! The hub's part in sessions: a joiner asks for one, an agent waits for them on its control channel, both dial the relay.

use std::time::Instant;

use serde_json::Value;

use super::Hub;
use super::hub_client::CallFailure;
use super::hub_client::HubAnswer;
use super::hub_client::HubClient;
use super::hub_client::HubRequest;
use super::hub_client::HubUpgrade;
use super::hub_client::from_json;
use super::hub_client::to_json;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::net::address::HubUrl;
use crate::net::duplex::Duplex;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;
use crate::wire::control;

impl Hub {
    /// The session, and the hub that granted it: the one that has the agent. If that one cannot be reached from this
    /// machine, the hub that named it carries the session.
    pub fn ask_session(&self, ask: &AskSession) -> Result<(SessionGrant, HubUrl)> {
        let body = to_json(ask)?;
        let post = |client: &HubClient, url: &HubUrl, body: &[u8]| {
            let request = HubRequest { method: "POST", path: "/v1/sessions", body: Some(body) };
            client.exchange_at(url, &request)
        };
        let (mut answer, mut at) = self.client.at_any_hub(true, |client, url| post(client, url, &body))?;
        if answer.status == 421 {
            let named: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let named = named["hub"].as_str().filter(|_| self.has_pin);
            let there = named.and_then(|url| HubUrl::parse(url).ok());
            let followed = there.and_then(|url| Some((post(&self.client, &url, &body).ok()?, url)));
            (answer, at) = match followed.filter(|(answer, _)| answer.status != 421) {
                Some(followed) => followed,
                None => {
                    let carried = to_json(&AskSession { carry: true, ..ask.clone() })?;
                    (post(&self.client, &at, &carried).map_err(|failure| failure.error)?, at)
                }
            };
        }
        Ok((from_json(&self.url, &answer.content()?)?, at))
    }

    /// What this very hub answers to the request for a session.
    pub fn ask_session_here(&self, ask: &AskSession) -> Result<HubAnswer> {
        let body = to_json(ask)?;
        let request = HubRequest { method: "POST", path: "/v1/sessions", body: Some(&body) };
        self.client.exchange_raw(&self.url, &request).map_err(|failure| failure.error)
    }

    /// The agent's control channel, and the hub it leads to.
    pub fn control(&self) -> Result<(Duplex, HubUrl)> {
        let key = self.key();
        let upgrade = HubUpgrade {
            path: "/v1/agent",
            protocol: control::CONTROL_UPGRADE,
            proof: ("x-api-key", &key),
            is_tls: true,
        };
        self.client.at_any_hub(true, |client, url| {
            let upgraded = client.upgrade(url, &upgrade, Instant::now() + client.timeout);
            upgraded.map_err(|error| CallFailure { nothing_done: error.may_pass(), error })
        })
    }

    /// One half of a session, at the hub that granted or announced it. Of the address that the hub names only the
    /// scheme counts, which says whether TLS ends before the relay: were the host believed, a hub could have its
    /// clients connect to anything in their networks.
    ///
    /// Only success means anything: in the clear anybody on the way can refuse. `declined` asks why.
    pub fn relay(&self, at: &HubUrl, relay: &str, ticket: &str, deadline: Instant) -> Result<Duplex> {
        self.show_ticket(at, relay, ticket, deadline).map_err(|error| match error.kind {
            ErrorKind::Refused(status) => Error::new("The hub's relay cannot be reached")
                .because(format!("it was refused with {status}, by the hub or on the way"))
                .kind(ErrorKind::Unreachable),
            _ => error,
        })
    }

    /// Why the agent does not come to a session of ours, if that hub knows. An error of the call means more: a key that is
    /// no longer good.
    pub fn declined(&self, at: &HubUrl, session: &str) -> Result<Option<String>> {
        let path = format!("/v1/sessions/{session}");
        let request = HubRequest { method: "GET", path: &path, body: None };
        let answer = self.client.exchange_at(at, &request).map_err(|failure| failure.error)?;
        let state: Value = from_json(at, &answer.content()?)?;
        Ok(state["declined"].as_str().map(str::to_owned))
    }

    /// The relay's own answer to a ticket, for callers that do not act on it.
    pub fn show_ticket(&self, at: &HubUrl, relay: &str, ticket: &str, deadline: Instant) -> Result<Duplex> {
        let is_tls = match relay.split_once("://") {
            Some(("http", _)) => false,
            Some(("https", _)) => true,
            _ => return Err(Error::new(format!("The hub named an odd relay: {}", relay.escape_debug()))),
        };
        let upgrade = HubUpgrade {
            path: "/v1/relay",
            protocol: control::RELAY_UPGRADE,
            proof: ("x-ticket", ticket),
            is_tls,
        };
        self.client.upgrade(at, &upgrade, deadline)
    }
}
