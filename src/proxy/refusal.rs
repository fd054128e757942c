//! The answers that are our own: why a request went no further, in JSON for tools and in a page for people.

use serde::Serialize;

use super::context::ProxyContext;
use crate::http::bad_message::BadHead;
use crate::http::head::RequestHead;
use crate::http::host::Host;
use crate::http::host::RequestTarget;
use crate::http::host::parse_target;
use crate::http::reply::Reply;
use crate::http::reply::escaped;

#[derive(Serialize)]
struct NotFound<'a> {
    error: &'a str,
    subdomain: &'a str,
    available: Vec<&'a str>,
    hint: String,
}

#[derive(Serialize)]
struct BadGateway<'a> {
    error: &'a str,
    service: &'a str,
}

pub fn bad_head(bad: BadHead) -> Reply {
    Reply::error(bad.status(), bad.reason(), "")
}

/// A host outside `.localhost`: somebody's DNS points here, perhaps on purpose.
pub fn elsewhere(context: &ProxyContext) -> Reply {
    let hint = format!("Use a name under .localhost, like {}", context.url_of("NAME"));
    Reply::error(421, "This proxy serves names under .localhost only", &hint)
}

pub fn not_found(context: &ProxyContext, name: &str, request: &RequestHead<'_>) -> Reply {
    let routes = context.table.now();
    let available: Vec<&str> = routes.iter().map(|route| route.name.as_str()).collect();
    if wants_html(request) {
        return page(404, &not_found_page(context, name, &available));
    }
    let hint = match available.first() {
        Some(first) => format!("Try: {}", context.url_of(first)),
        None => "No services yet. Try: connect reach NAME".to_owned(),
    };
    json(404, &NotFound { error: "Service not found", subdomain: name, available, hint })
}

pub fn bad_gateway(service: &str, error: &str) -> Reply {
    json(502, &BadGateway { error, service })
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

pub fn looped() -> Reply {
    Reply::error(
        508,
        "This request has been here before",
        "A route leads back to the proxy itself: connect proxy status",
    )
}

pub fn foreign_origin() -> Reply {
    Reply::error(
        403,
        "A page from elsewhere may not open this connection",
        "If you trust it: connect proxy start --allow-origin ORIGIN",
    )
}

pub fn timed_out() -> Reply {
    Reply::error(408, "The request did not come in time", "")
}

pub fn too_many() -> Reply {
    Reply::error(503, "The proxy has too many connections", "Try again in a moment")
}

/// In the order of its fields, which a map would not keep.
fn json(status: u16, value: &impl Serialize) -> Reply {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    let reply = Reply::empty(status).field("Content-Type", "application/json");
    Reply { body: text.into_bytes(), ..reply }
}

fn page(status: u16, html: &str) -> Reply {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    guarded(Reply::html(status, html).field("Content-Security-Policy", policy))
}

/// For no other page's eyes, and no cache.
pub fn guarded(reply: Reply) -> Reply {
    reply
        .field("X-Content-Type-Options", "nosniff")
        .field("Referrer-Policy", "no-referrer")
        .field("Cross-Origin-Resource-Policy", "same-origin")
        .field("Cache-Control", "no-store")
}

fn wants_html(request: &RequestHead<'_>) -> bool {
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
        "<p>There are no services yet. Bring one near: <code>connect reach NAME</code></p>".to_owned()
    } else {
        format!("<p>Available:</p><ul>{}</ul>", links.collect::<String>())
    };
    let home = escaped(&context.url());
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Service not found</title><style>:root{{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}}\
         body{{max-width:40rem;margin:3rem auto;padding:0 1rem}}small{{opacity:.7}}</style>\
         <h1>Service not found</h1><p>There is no service called <b>{}</b> here.</p>{list}\
         <p><a href=\"{home}/\">All routes</a></p></html>\n",
        escaped(name)
    )
}
