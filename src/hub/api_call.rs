//! One call of the API, as an endpoint sees it, and what several endpoints say alike.

use std::net::IpAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::core::Core;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::service::Service;
use crate::model::version;
use crate::model::version::Version;
use crate::net::address::bracketed;
use crate::net::address::split_host_port;
use crate::wire::control::CONTROL_UPGRADE;
use crate::wire::control::RELAY_UPGRADE;

/// A name for people to know each other by.
const LABEL_LENGTH: usize = 64;

/// How a request came here.
#[derive(Clone, Copy)]
pub struct Origin {
    pub address: IpAddr,
    /// By TLS that this hub itself ends.
    pub over_tls: bool,
}

/// One call, as an endpoint sees it.
pub struct ApiCall<'c> {
    pub core: &'c Core,
    pub request: &'c Request,
    pub principal: Principal,
    pub origin: Origin,
    /// The parts of the path that the pattern leaves open.
    pub parts: Vec<&'c str>,
}

impl ApiCall<'_> {
    /// The request's body; what does not fit is named.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        let misfit = |why: &str| {
            let what = format!("The body does not fit this call: {why}");
            Reply::error(400, &what, "Send JSON as the README describes")
        };
        // serde reads an array as an object whose names are left out.
        if !self.request.body.trim_ascii_start().starts_with(b"{") {
            return Err(misfit("it is no JSON object"));
        }
        serde_json::from_slice(&self.request.body).map_err(|error| misfit(&error.to_string()))
    }

    /// The same; none says nothing.
    pub fn body_if_any<T: DeserializeOwned + Default>(&self) -> Result<T, Reply> {
        if self.request.body.is_empty() { Ok(T::default()) } else { self.body() }
    }

    pub fn workspace(&self) -> &str {
        self.principal.workspace()
    }
}

pub fn ok(status: u16, value: &impl Serialize) -> Result<Reply, Reply> {
    match serde_json::to_value(value) {
        Ok(value) => Ok(Reply::json(status, value)),
        Err(error) => {
            log::error!("an answer cannot be written: {error}");
            Err(Reply::error(500, "The hub failed to write its answer", ""))
        }
    }
}

/// What the sender of a request speaks.
pub fn spoken_by(request: &Request) -> Version {
    Version::said(request.field(version::FIELD))
}

/// The relay is this same hub, by the address that the client itself used. Who came by TLS of our own finds
/// it in the clear on the same port; who came through a proxy that ends TLS comes through it again.
pub fn relay_address(request: &Request, over_tls: bool) -> Result<String, Reply> {
    let host = request.field("host").unwrap_or_default();
    let scheme = if over_tls { "http" } else { "https" };
    match split_host_port(host, 443) {
        Some((name, port)) => Ok(format!("{scheme}://{}:{port}", bracketed(&name))),
        None => Err(Reply::error(400, "The Host header is not an address", "")),
    }
}

/// What is spoken here beside the API is something else.
pub fn other_upgrade(what: &str, hint: &str) -> Reply {
    Reply::error(426, what, hint).field("upgrade", format!("{CONTROL_UPGRADE}, {RELAY_UPGRADE}"))
}

/// Labels are shown on other people's terminals: printable, and not long.
pub fn clean_label(label: &str) -> String {
    label.chars().filter(|c| !c.is_control()).take(LABEL_LENGTH).collect::<String>().trim().to_owned()
}

pub fn offline(service: &Service) -> Reply {
    let Service { name, target_port, .. } = service;
    let hint = format!("Its agent is not connected; start it there: connect expose {name} {target_port}");
    Reply::error(503, &format!("{name} is offline"), &hint)
}

pub fn no_such_service() -> Reply {
    Reply::error(404, "There is no such service", "List them: connect services")
}
