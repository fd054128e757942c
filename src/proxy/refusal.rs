//! The proxy's own answers: why a request went no further. JSON for programs, and a page for people.

use serde::Serialize;

use super::context::ProxyContext;
use super::trouble::Trouble;
use crate::http::bad_message::BadBody;
use crate::http::bad_message::BadHead;
use crate::http::head::RequestHead;
use crate::http::head::parse_request;
use crate::http::host::Host;
use crate::http::host::RequestTarget;
use crate::http::host::parse_target;
use crate::http::reply::Reply;
use crate::http::reply::escaped;

#[derive(Serialize)]
struct NotFoundBody<'a> {
    error: &'a str,
    subdomain: &'a str,
    available: Vec<&'a str>,
    hint: String,
}

#[derive(Serialize)]
struct BadGatewayBody<'a> {
    error: &'a str,
    service: &'a str,
    reason: &'a str,
    hint: &'a str,
}

pub fn bad_head(bad: BadHead) -> Reply {
    Reply::error(bad.status(), bad.reason(), "")
}

pub fn bad_body(bad: BadBody) -> Reply {
    Reply::error(bad.status(), bad.reason(), "")
}

/// A host outside `.localhost`: somebody's DNS name points to this machine, perhaps on purpose (DNS rebinding).
pub fn outside_host(context: &ProxyContext) -> Reply {
    let hint = format!("Use a name under .localhost, like {}", context.url_of("NAME"));
    Reply::error(421, "This proxy serves names under .localhost only", &hint)
}

pub fn not_found(context: &ProxyContext, name: &str, request: &RequestHead<'_>) -> Reply {
    let routes = context.table.now();
    let available: Vec<&str> = routes.available().map(|route| route.name.as_str()).collect();
    if accepts_html(request) {
        return page(404, &not_found_page(context, name, &available));
    }
    let hint = match available.first() {
        Some(first) => format!("Try: {}", context.url_of(first)),
        None => "No services yet. Try: connect reach NAME".to_owned(),
    };
    json(404, &NotFoundBody { error: "Service not found", subdomain: name, available, hint })
}

/// A 502 or 504. `head` is the request's own, if there is one.
pub fn gateway_failed(context: &ProxyContext, service: &str, trouble: &Trouble, head: &[u8]) -> Reply {
    let Trouble { status, error, reason, hint } = trouble;
    if matches!(parse_request(head), Ok(Some(request)) if accepts_html(&request)) {
        let content =
            format!("<p><b>{}</b>: {}.</p><p>{}</p>", escaped(service), escaped(reason), escaped(hint));
        return page(*status, &page_with(context, error, &content));
    }
    json(*status, &BadGatewayBody { error, service, reason, hint })
}

pub fn outside_unreachable(host: &str, port: u16) -> Reply {
    Reply::error(502, &format!("{host}:{port} does not answer"), "")
}

pub fn connect_not_allowed() -> Reply {
    let hint = "CONNECT reaches known services only; to open another host: connect proxy start --connect-allow HOST:PORT";
    Reply::error(404, "Host not found", hint)
}

/// Plain HTTP on the HTTPS port.
pub fn use_https(request: &RequestHead<'_>, host: &Host<'_>) -> Reply {
    let path = match parse_target(request.method, request.target) {
        Ok(RequestTarget::Path(path) | RequestTarget::Url { path, .. }) => path,
        _ => "/",
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    Reply::error(308, "This port speaks HTTPS", "")
        .field("Location", format!("https://{}{slash}{path}", host.text))
}

pub fn loop_detected() -> Reply {
    let hint = "A route leads back to the proxy itself: connect proxy status";
    Reply::error(508, "This request has already passed through this proxy", hint)
}

pub fn foreign_origin() -> Reply {
    let hint = "If you trust that page: connect proxy start --allow-origin ORIGIN, which is like http://web.localhost:3456";
    Reply::error(403, "A page of another site sent this request", hint)
}

pub fn other_user() -> Reply {
    let hint = "Start your own: connect proxy start --port PORT. Its user can open this one to all: connect proxy start --any-user";
    Reply::error(403, "This proxy answers only the user that it runs for, and root", hint)
}

pub fn timed_out() -> Reply {
    Reply::error(408, "The request did not arrive in time", "")
}

pub fn too_many_connections() -> Reply {
    Reply::error(503, "The proxy has too many connections", "Try again in a moment")
}

/// Keeps the order of the fields, which a `json!` map would not.
fn json(status: u16, value: &impl Serialize) -> Reply {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    let reply = Reply::empty(status).field("Content-Type", "application/json");
    Reply { body: text.into_bytes(), ..reply }
}

fn page(status: u16, html: &str) -> Reply {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    with_page_protection(Reply::html(status, html).field("Content-Security-Policy", policy))
}

/// Adds the fields that keep a page of ours from other sites and out of caches.
pub fn with_page_protection(reply: Reply) -> Reply {
    reply
        .field("X-Content-Type-Options", "nosniff")
        .field("Referrer-Policy", "no-referrer")
        .field("Cross-Origin-Resource-Policy", "same-origin")
        .field("Cache-Control", "no-store")
}

fn accepts_html(request: &RequestHead<'_>) -> bool {
    request.fields.list("accept").any(|kind| {
        let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default();
        kind.eq_ignore_ascii_case(b"text/html")
    })
}

fn not_found_page(context: &ProxyContext, name: &str, available: &[&str]) -> String {
    let links = available.iter().map(|name| {
        let (url, name) = (escaped(&context.url_of(name)), escaped(name));
        format!("<li><a href=\"{url}/\">{name}</a> <small>{url}</small></li>")
    });
    let list = if available.is_empty() {
        "<p>No services yet. Try: <code>connect reach NAME</code></p>".to_owned()
    } else {
        format!("<p>Available:</p><ul>{}</ul>", links.collect::<String>())
    };
    let content = format!("<p>There is no service called <b>{}</b>.</p>{list}", escaped(name));
    page_with(context, "Service not found", &content)
}

fn page_with(context: &ProxyContext, title: &str, content: &str) -> String {
    let home = escaped(&context.url());
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>:root{{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}}\
         body{{max-width:40rem;margin:3rem auto;padding:0 1rem}}small{{opacity:.7}}</style>\
         <h1>{title}</h1>{content}<p><a href=\"{home}/\">All routes</a></p></html>\n"
    )
}
