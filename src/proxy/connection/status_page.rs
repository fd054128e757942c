//! The proxy's own page: the routes, and the last requests as they happen.

use std::io;
use std::io::Write;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use super::AfterRequest;
use super::ProxyClient;
use crate::http::host::RequestTarget;
use crate::http::host::parse_target;
use crate::http::reply::Reply;
use crate::net::connect::dial_first;
use crate::net::connect::loopbacks;
use crate::os::secret;
use crate::os::socket;
use crate::proxy::context::ProxyContext;
use crate::proxy::refusal;
use crate::proxy::route_table::ProxyRoute;
use crate::proxy::route_table::RouteSource;

const STATUS_PAGE: &str = include_str!("status_page.html");
/// On this machine an open port accepts at once.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_millis(200);
/// The stream of requests checks this often whether its reader is still there.
const READER_CHECK: Duration = Duration::from_millis(400);

impl ProxyClient<'_> {
    /// Answers a request for the page, for its state as JSON, or for its stream of events.
    pub fn status_page(&mut self) -> AfterRequest {
        if !matches!(self.request.method.as_str(), "GET" | "HEAD") {
            let reply = Reply::error(405, "This page can only be read", "").field("Allow", "GET, HEAD");
            return self.reply(&reply);
        }
        let path = match parse_target(&self.request.method, &self.request.target) {
            Ok(RequestTarget::Path(path) | RequestTarget::Url { path, .. }) => {
                path.split('?').next().unwrap_or_default()
            }
            _ => "",
        };
        match path {
            // Nothing that the page itself asks for is recorded as a request.
            "" | "/" => self.reply_unrecorded(&page()),
            "/_connect/state" => self.reply_unrecorded(&state(self.context)),
            "/_connect/events" => {
                if let Err(error) = self.send_events() {
                    log::debug!("the page's events ended: {error}");
                }
                AfterRequest::Close
            }
            _ => {
                let hint = format!("See {}", self.context.url());
                self.reply(&Reply::error(404, "There is no such page", &hint))
            }
        }
    }

    /// Server-sent events, one for each request, beginning with the remembered ones. They end when the reader leaves or
    /// the proxy stops.
    fn send_events(&mut self) -> io::Result<()> {
        self.client.writer.stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
              Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n\r\nretry: 1000\n\n",
        )?;
        let _reader = self.context.recent.reader();
        let mut last = 0;
        while !self.context.stop.is_stopped() {
            let mut out = Vec::new();
            for record in self.context.recent.after(last, READER_CHECK) {
                last = record.number;
                let data = serde_json::to_string(&record).unwrap_or_default();
                write!(out, "id: {last}\ndata: {data}\n\n")?;
            }
            if !out.is_empty() {
                self.client.writer.stream.write_all(&out)?;
            } else if !socket::is_idle_and_open(&self.client.writer.socket) {
                break;
            }
        }
        Ok(())
    }
}

/// Only scripts and styles with the page's nonce run.
fn page() -> Reply {
    let nonce = secret::secret();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let reply = Reply::html(200, STATUS_PAGE.replace("{{nonce}}", &nonce));
    refusal::with_page_protection(reply.field("Content-Security-Policy", policy))
}

fn state(context: &ProxyContext) -> Reply {
    let routes: Vec<Value> = context.table.now().iter().map(|route| describe(context, route)).collect();
    let state = json!({
        "port": context.port,
        "tls": context.settings.https,
        "connections": context.clients.count(),
        "routes": routes,
        "recent": context.recent.after(0, Duration::ZERO),
    });
    refusal::with_page_protection(Reply::json(200, state))
}

fn describe(context: &ProxyContext, route: &ProxyRoute) -> Value {
    let (agent, is_up) = match &route.source {
        RouteSource::Local { .. } => {
            let deadline = Instant::now() + HEALTH_CHECK_TIMEOUT;
            (None, dial_first(&loopbacks(route.port), deadline, &context.stop).is_ok())
        }
        RouteSource::Hub { agent, online } => (Some(agent), *online),
    };
    let connect = route.how_to_connect();
    json!({
        "name": route.name,
        // Of a web service; the others have what to type instead.
        "url": connect.is_none().then(|| context.url_of(&route.name)),
        "connect": connect,
        "target": format!("127.0.0.1:{}", route.port),
        "source": route.source_word(),
        "agent": agent,
        "health": if is_up { "up" } else { "down" },
    })
}
