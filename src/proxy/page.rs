//! The proxy's own page: the routes, and the last requests as they happen.

use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::connection::Connection;
use super::connection::Next;
use super::context::ProxyContext;
use super::refusal;
use super::route_table::ProxyRoute;
use super::route_table::RouteSource;
use crate::http::host::RequestTarget;
use crate::http::host::parse_target;
use crate::http::reply::Reply;
use crate::os::secret;
use crate::os::socket;

const PAGE: &str = include_str!("page.html");
/// On this machine an open port accepts at once.
const PROBE: Duration = Duration::from_millis(200);
/// How often the stream of requests looks whether anybody still listens.
const TURN: Duration = Duration::from_millis(400);

pub fn serve(it: &mut Connection<'_>) -> Next {
    if !matches!(it.asked.method.as_str(), "GET" | "HEAD") {
        let reply = Reply::error(405, "This page can only be read", "").field("Allow", "GET, HEAD");
        return it.say(&reply);
    }
    let path = match parse_target(&it.asked.method, &it.asked.target) {
        Ok(RequestTarget::Path(path) | RequestTarget::Url { path, .. }) => {
            path.split('?').next().unwrap_or_default()
        }
        _ => "",
    };
    match path {
        "" | "/" => it.say(&home()),
        // What the page asks for by itself is no request of anybody's, and goes unnoted.
        "/_connect/state" => {
            let reply = state(it.context);
            it.answer(&reply)
        }
        "/_connect/events" => {
            // Whoever leaves early, or is cut by a stop, ends it.
            let _ = events(it);
            Next::Close
        }
        _ => it.say(&Reply::error(404, "There is nothing here", &format!("See {}", it.context.url()))),
    }
}

fn home() -> Reply {
    let nonce = secret::secret();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let reply = Reply::html(200, PAGE.replace("{{nonce}}", &nonce));
    refusal::guarded(reply.field("Content-Security-Policy", policy))
}

fn state(context: &ProxyContext) -> Reply {
    let routes: Vec<Value> = context.table.now().iter().map(|route| as_json(context, route)).collect();
    let state = json!({ "port": context.port, "tls": context.settings.secure, "connections": context.live.count(), "routes": routes, "recent": context.recent.after(0, Duration::ZERO) });
    refusal::guarded(Reply::json(200, state))
}

fn as_json(context: &ProxyContext, route: &ProxyRoute) -> Value {
    let (agent, health) = match &route.source {
        RouteSource::Local => (None, if answers(route.port) { "up" } else { "down" }),
        RouteSource::Hub { agent, online, .. } => (Some(agent), if *online { "up" } else { "down" }),
    };
    json!({ "name": route.name, "url": context.url_of(&route.name), "target": format!("127.0.0.1:{}", route.port),
        "source": route.source_word(), "agent": agent, "health": health })
}

fn answers(port: u16) -> bool {
    let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    [four, six].iter().any(|address| TcpStream::connect_timeout(address, PROBE).is_ok())
}

/// Server-sent events, one for each request, beginning with those that are remembered.
fn events(it: &mut Connection<'_>) -> std::io::Result<()> {
    it.client.writer.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
          Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n\r\nretry: 1000\n\n",
    )?;
    let mut last = 0;
    while !it.context.stop.is_stopped() {
        let mut out = Vec::new();
        for seen in it.context.recent.after(last, TURN) {
            last = seen.number;
            let _ = write!(out, "id: {last}\ndata: {}\n\n", serde_json::to_string(&seen).unwrap_or_default());
        }
        if !out.is_empty() {
            it.client.writer.write_all(&out)?;
        } else if !socket::is_idle_and_open(&it.client.socket) {
            break;
        }
    }
    Ok(())
}
