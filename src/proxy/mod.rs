//! The local proxy: `http(s)://NAME.localhost:PORT` leads to the service of that name.
//!
//! The path of a request, from the accepted connection to the answer:
//!
//! 1. `net/serve.rs` accepts on both loopback addresses, never on another. The thread that accepts a connection serves it
//!    to its end (`new_worker` below). It keeps its idle connections to services from one client to the next
//!    (`idle_upstreams.rs`).
//! 2. `OpenClients::add` in `open_clients.rs` lists the connection. With 1,024 open, the one that has been idle for the
//!    longest time is closed. `os/peer_user.rs` says whether it comes from another user of the machine; then each of its
//!    requests is answered with 403.
//! 3. `ClientStream::accept` in `connection/client.rs`: on an HTTPS port the first byte tells TLS from plain HTTP. For TLS,
//!    `certificates.rs` makes a certificate for the name that the client asks for.
//! 4. `ProxyClient::serve` in `connection/mod.rs` takes one request after the other. `read_request` reads into a
//!    `BufferedReader` (`buffered_reader.rs`) until `http::head::parse_request` has a whole head. A head that is not plainly
//!    valid gets a 4xx, and the connection is closed.
//! 5. `check` in `connection/check.rs` decides by the head alone: its framing, the host (`http/host.rs`), the route
//!    (`route_table.rs`), loops by `Via`, the origin of an upgrade. What it refuses is answered from `refusal.rs`. A host
//!    that names no service gets the proxy's own page (`connection/status_page.rs`).
//! 6. If the request goes on, `http::forward::write_request` writes a new head for it: fields of one hop are dropped,
//!    claims about the client are replaced.
//! 7. `ProxyClient::forward` in `connection/forward.rs` takes an idle connection to the service, or a new one
//!    (`ProxyContext::dial`, `upstream.rs`). A local service is a loopback port. A hub service is the loopback port of a
//!    tunnel, which `ProxySettings::tunnel_port` opens. Head and first part of the body go in one write.
//! 8. If more of the body is to come, `Upload::run` in `connection/upload.rs` copies it in a thread of its own.
//! 9. `response::pass` in `connection/response.rs` reads the response and sends it to the client with a new head and one
//!    framing. A large body of known length goes from socket to socket inside the kernel.
//! 10. `conclude` in `connection/forward.rs` decides what is kept: the connection to the service, the connection to the
//!     client, both or neither. A service that fails before the response's head was sent causes a 502 or 504; after that,
//!     the client's connection is cut.
//!     `ProxyContext::record` adds the request to the page and to the terminal (`recent_requests.rs`).
//!
//! An upgrade (WebSocket) takes the same path. After the service's 101, `forward` ends with `AfterRequest::Relay`, and
//! `ProxyClient::relay` copies bytes in both directions until both have ended (`net/relay.rs`).
//!
//! CONNECT turns off at step 5 to `connection/connect.rs`. If the client begins TLS and the service speaks plain HTTP, TLS
//! ends here (`AfterRequest::StartTls`), and the requests inside continue at step 4. Anything else is relayed.
//!
//! `route_table.rs` follows the routes file and the hub in threads of its own, so no request waits for either.

pub mod certificates;
pub mod context;
pub mod recent_requests;
pub mod route_table;

mod buffered_reader;
mod connection;
mod idle_upstreams;
mod open_clients;
mod refusal;
mod trouble;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::net::http_server;
use crate::net::serve::BoundPort;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::Worker;
use crate::net::serve::shut;
use crate::net::stop::Stop;
use crate::os::peer_user;
use crate::os::secret;
use crate::tls::trust;
use connection::ProxyClient;
use connection::client::ClientStream;
use connection::current_request::CurrentRequest;
use context::ProxyContext;
use context::ProxySettings;
use idle_upstreams::IdleUpstreams;
use open_clients::CLIENT_LIMIT;
use open_clients::OpenClients;
use recent_requests::RecentRequests;
use route_table::RouteTable;

/// Far above `CLIENT_LIMIT`, at which an idle connection is closed: that one needs a moment to be gone. A connection is
/// refused only if none is idle.
const THREAD_LIMIT: usize = 2 * CLIENT_LIMIT;
/// A thread without a client keeps its connections to services for this long.
const WORKER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A proxy that serves until it is dropped, or until its `Stop`.
pub struct Proxy {
    pub context: Arc<ProxyContext>,
    servers: Vec<Server>,
    stop: Stop,
}

impl Proxy {
    /// Starts to serve the routes of `table` on the bound port.
    pub fn start(bound: BoundPort, table: RouteTable, settings: ProxySettings, stop: &Stop) -> Result<Self> {
        let stop = stop.child();
        let context = Arc::new(ProxyContext {
            settings,
            table,
            clients: OpenClients::default(),
            recent: RecentRequests::default(),
            stop: stop.clone(),
            via: secret::id("connect-proxy"),
            port: bound.port,
            tls: trust::unverified_client()?,
        });
        if context.settings.https {
            // If the certificate cannot be made, the start must fail, not the first request.
            context.certificates()?;
        }
        let servers = bound.listeners.into_iter().map(|listener| {
            let own = Arc::clone(&context);
            let options = ServeOptions {
                name: "proxy",
                limit: THREAD_LIMIT,
                new_worker: Box::new(move || new_worker(Arc::clone(&own))),
                idle: Some(WORKER_IDLE_TIMEOUT),
                cut: shut,
                make_room: None,
                turn_away: Box::new(|stream| {
                    http_server::turn_away(stream, &refusal::too_many_connections());
                }),
            };
            Server::start(listener, options, &stop)
        });
        let servers = servers.collect::<Result<_>>()?;
        Ok(Self { context, servers, stop })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.stop();
        self.servers.clear();
    }
}

/// What one thread does for its clients, and what it keeps between them.
fn new_worker(context: Arc<ProxyContext>) -> Worker {
    let mut idle = IdleUpstreams::default();
    Box::new(move |socket| {
        let slot = context.clients.add(&socket);
        idle.start_client();
        // Asked for each connection, and kept with nothing but the connection.
        let is_welcome = context.settings.any_user || peer_user::same_user(&socket);
        let served = ClientStream::accept(&context, socket).and_then(|client| {
            let request = CurrentRequest::new();
            ProxyClient { context: &context, slot, idle: &mut idle, client, is_welcome, request }.serve()
        });
        if let Err(error) = served {
            log::debug!("a connection ended: {error}");
        }
    })
}
