//! One call of the API, as an endpoint sees it.

use std::net::IpAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::audit::Actor;
use super::refusal::Refusal;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::access::Principal;
use crate::model::access::Role;
use crate::model::host_port::HostPort;
use crate::model::service::Service;
use crate::model::text::is_hidden;
use crate::model::time::Time;
use crate::wire::api::NEXT_PAGE_FIELD;

/// Records and bytes of one page of a list, so that one answer takes little of the hub's memory, and keeps the
/// registry's lock for a moment only.
const PAGE_RECORDS: usize = 500;
const PAGE_BYTES: usize = 64 * 1024;
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

    /// The caller, for the audit log.
    pub fn actor(&self) -> Actor<'_> {
        Actor::of(&self.principal, self.origin.address)
    }

    pub fn workspace(&self) -> &str {
        self.principal.workspace()
    }

    /// Whether what is in this workspace is the caller's business. The hub's own command line sees all workspaces.
    pub fn sees(&self, workspace: &str) -> bool {
        self.principal == Principal::Local || self.workspace() == workspace
    }

    /// Whether the caller knows of this service: all of its workspace, or what its own key made; within its limits.
    pub fn sees_service(&self, service: &Service) -> bool {
        self.sees(&service.workspace)
            && self.principal.may_use(&service.name)
            && (self.principal.may(Action::Reach) || service.key == self.principal.id())
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
    Ok(Reply::typed(
        status,
        "application/json",
        serde_json::to_vec(value).map_err(|error| not_written(&error))?,
    ))
}

fn not_written(error: &serde_json::Error) -> Refusal {
    log::error!("an answer cannot be written: {error}");
    Refusal::AnswerFailed
}

/// One page of a list: the records after `?after=ID`, up to `?limit=N` and to the bounds above. If more follow, a field
/// says after which ID. `records` are in the order of their IDs.
pub fn page<'r, R: 'r, T: Serialize>(
    call: &ApiCall<'_>,
    records: impl Iterator<Item = &'r R>,
    id: impl Fn(&R) -> &str,
    shown: impl Fn(&'r R) -> T,
) -> Result<Reply, Refusal> {
    let after = call.request.parameter("after").unwrap_or_default();
    let wanted =
        call.request.parameter("limit").map(|text| text.parse::<u16>().map_err(|_| Refusal::BadPage));
    let limit = wanted.transpose()?.map_or(PAGE_RECORDS, usize::from).clamp(1, PAGE_RECORDS);
    let (mut body, mut last, mut next) = (b"[".to_vec(), "", None);
    for (number, record) in records.filter(|record| id(record) > after).enumerate() {
        if number == limit || body.len() > PAGE_BYTES {
            next = Some(last);
            break;
        }
        if number > 0 {
            body.push(b',');
        }
        serde_json::to_writer(&mut body, &shown(record)).map_err(|error| not_written(&error))?;
        last = id(record);
    }
    body.push(b']');
    let reply = Reply::typed(200, "application/json", body);
    Ok(match next {
        Some(id) => reply.field(NEXT_PAGE_FIELD, id),
        None => reply,
    })
}

/// Labels are shown on other users' terminals, so control and format characters are removed and the length is limited.
pub fn clean_label(label: &str) -> String {
    label.chars().filter(|c| !is_hidden(*c)).take(LABEL_LENGTH).collect::<String>().trim().to_owned()
}
