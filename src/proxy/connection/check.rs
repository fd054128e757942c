//! The request check: whether a request goes on, and where to. Every rule about who may ask for what is in this file,
//! except that only the proxy's own user is answered.
//! It sees the head only, so no byte of a request that is refused reaches a service.

use std::sync::Arc;

use super::current_request::CurrentRequest;
use crate::http::bad_message::BadHead;
use crate::http::body::request_body;
use crate::http::forward::ClientInfo;
use crate::http::forward::RequestForwarding;
use crate::http::forward::has_passed;
use crate::http::forward::write_request;
use crate::http::head::RequestHead;
use crate::http::host::Host;
use crate::http::host::HostKind;
use crate::http::host::HostName;
use crate::http::host::host_of;
use crate::http::reply::Reply;
use crate::model::service::Protocol;
use crate::proxy::context::ProxyContext;
use crate::proxy::refusal;
use crate::proxy::route_table::ProxyRoute;
use crate::proxy::trouble::Trouble;

/// What is done with a request.
pub enum RequestAction {
    Answer(Reply),
    Refuse(Trouble),
    StatusPage,
    /// Its new head is in `CurrentRequest::outgoing`.
    Forward(Arc<ProxyRoute>),
    Connect(Arc<ProxyRoute>),
    ConnectOutside(String, u16),
}

/// The rules, in this order: one framing, one valid host, a host of ours, TLS where the port demands it, no loop, no
/// foreign page, a known service that speaks HTTP. An error closes the connection.
pub fn check(
    request: &RequestHead<'_>,
    client: &ClientInfo,
    context: &ProxyContext,
    current: &mut CurrentRequest,
) -> Result<RequestAction, BadHead> {
    let body = request_body(request)?;
    let host = host_of(request)?.ok_or(BadHead::NoHost)?;
    current.begin(request, body, context.recent.shown_fields(&request.fields));
    if request.method == "CONNECT" {
        return Ok(check_connect(request, &host, context, current));
    }
    let kind = host.kind();
    if kind == HostKind::Outside {
        return Ok(RequestAction::Answer(refusal::outside_host(context)));
    }
    if context.settings.https && !client.https {
        return Ok(RequestAction::Answer(refusal::use_https(request, &host)));
    }
    let HostKind::Service(name) = kind else { return Ok(RequestAction::StatusPage) };
    current.service.push_str(&name);
    if has_passed(request, &context.via) {
        return Ok(RequestAction::Answer(refusal::loop_detected()));
    }
    if is_from_foreign_page(request, current, host.text, context) {
        return Ok(RequestAction::Answer(refusal::foreign_origin()));
    }
    let Some(route) = context.table.find(&name) else {
        return Ok(RequestAction::Answer(refusal::not_found(context, &name, request)));
    };
    let rewritten = context.rewritten_host(&route);
    let forwarding = RequestForwarding { client, body, host: host.text, rewrite_host: rewritten.as_deref() };
    write_request(request, &forwarding, &mut current.outgoing)?;
    if route.protocol == Protocol::Tcp {
        return Ok(RequestAction::Refuse(Trouble::not_http(&route)));
    }
    Ok(RequestAction::Forward(route))
}

/// Whether a page of another site makes its reader's browser send this: it must change nothing, and read nothing. A
/// `WebSocket` is not covered by the browser's own same-origin policy. A link that opens the service itself is harmless.
/// Clients other than browsers send none of these fields.
fn is_from_foreign_page(
    request: &RequestHead<'_>,
    current: &CurrentRequest,
    host: &str,
    context: &ProxyContext,
) -> bool {
    let origins = || request.fields.all("origin");
    if origins().next().is_some() && origins().all(|origin| context.allows_origin(origin)) {
        return false;
    }
    let is = |name: &str, value: &[u8]| request.fields.all(name).any(|sent| sent == value);
    let opens_page =
        request.method == "GET" && is("sec-fetch-mode", b"navigate") && is("sec-fetch-dest", b"document");
    if is("sec-fetch-site", b"cross-site") && !opens_page {
        return true;
    }
    (current.upgrade || !current.is_safe()) && !origins().all(|origin| is_origin_of(origin, host))
}

/// Whether a page with this `Origin` came from `host`, which has a port if it is not the scheme's own.
fn is_origin_of(origin: &[u8], host: &str) -> bool {
    let origin = str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
}

/// CONNECT reaches known services, and outside hosts that `--connect-allow` names. Anything more would make this an
/// open proxy.
fn check_connect(
    request: &RequestHead<'_>,
    host: &Host<'_>,
    context: &ProxyContext,
    current: &mut CurrentRequest,
) -> RequestAction {
    if let HostKind::Service(name) = host.kind() {
        current.service.push_str(&name);
        return match context.table.find(&name) {
            Some(_) if has_passed(request, &context.via) => RequestAction::Answer(refusal::loop_detected()),
            Some(route) => RequestAction::Connect(route),
            None => RequestAction::Answer(refusal::not_found(context, &name, request)),
        };
    }
    let port = host.port.unwrap_or(443);
    let outside = match host.name {
        HostName::Dns(name) => name.to_owned(),
        HostName::V4(address) => address.to_string(),
        HostName::V6(address) => address.to_string(),
    };
    if context.allows_connect(&outside, port) {
        return RequestAction::ConnectOutside(outside, port);
    }
    RequestAction::Answer(refusal::connect_not_allowed())
}
