//! One call of the API, as an endpoint sees it.

use std::net::IpAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::refusal::Refusal;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::access::Role;
use crate::model::host_port::HostPort;
use crate::model::text::is_hidden;
use crate::model::time::Time;

/// The longest label of a key, an agent or a share, in characters.
const LABEL_LENGTH: usize = 64;

/// Where a request came from.
#[derive(Clone, Copy)]
pub struct Origin {
    pub address: IpAddr,
    /// Whether it came over TLS that this hub terminates itself.
    pub over_tls: bool,
    /// Whether it came from a proxy of ours, which speaks for its clients in the clear.
    pub by_proxy: bool,
}

/// A request whose sender may make it.
pub struct ApiCall<'r> {
    pub request: &'r Request,
    pub principal: Principal,
    pub origin: Origin,
    /// The path segments that match a `*` of the endpoint's pattern.
    pub parts: Vec<&'r str>,
    pub now: Time,
}

impl ApiCall<'_> {
    /// Parses the request's body. An error names the field that is wrong.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        // serde would also accept an array, with its elements as the fields in order.
        if !self.request.body.trim_ascii_start().starts_with(b"{") {
            return Err(Refusal::BadBody { why: "it is not a JSON object".to_owned() });
        }
        serde_json::from_slice(&self.request.body)
            .map_err(|error| Refusal::BadBody { why: error.to_string() })
    }

    /// Like `body`, but an empty body is the default.
    pub fn body_if_any<T: DeserializeOwned + Default>(&self) -> Result<T, Refusal> {
        if self.request.body.is_empty() { Ok(T::default()) } else { self.body() }
    }

    pub fn workspace(&self) -> &str {
        self.principal.workspace()
    }

    /// Whether what is in this workspace is the caller's business. The hub's own command line sees all workspaces.
    pub fn sees(&self, workspace: &str) -> bool {
        self.principal == Principal::Local || self.workspace() == workspace
    }

    /// Whether the caller may share, change and remove what this key made in the caller's workspace: the key itself may, and
    /// admins.
    pub fn may_change(&self, key: &str) -> bool {
        match &self.principal {
            Principal::Key { id, role, .. } => id == key || *role == Role::Admin,
            Principal::Link { .. } => false,
            Principal::Local => true,
        }
    }

    /// The relay's address for this caller: the host and port that the caller itself used. A client that came over
    /// our own TLS reaches the relay in the clear on the same port. A client that came through a proxy that
    /// terminates TLS uses that proxy for the relay as well.
    pub fn relay_address(&self) -> Result<String, Refusal> {
        let host = self.request.field("host").unwrap_or_default();
        let scheme = if self.origin.over_tls { "http" } else { "https" };
        let at = HostPort::parse(host, 443).ok_or(Refusal::BadHost)?;
        Ok(format!("{scheme}://{at}"))
    }
}

/// A reply with `value` as its JSON body.
pub fn ok(status: u16, value: &impl Serialize) -> Result<Reply, Refusal> {
    match serde_json::to_value(value) {
        Ok(value) => Ok(Reply::json(status, value)),
        Err(error) => {
            log::error!("an answer cannot be written: {error}");
            Err(Refusal::AnswerFailed)
        }
    }
}

/// Labels are shown on other users' terminals, so control and format characters are removed and the length is limited.
pub fn clean_label(label: &str) -> String {
    label.chars().filter(|c| !is_hidden(*c)).take(LABEL_LENGTH).collect::<String>().trim().to_owned()
}
