//! The local proxy: `http(s)://NAME.localhost:PORT` leads to the service of that name.
//!
//! A thread for each client `connection` hears one request after the other (`requests`). What is not plainly
//! valid goes no further. What is, is written anew (`exchange`) and its answer too (`answer`). The table of
//! routes stays true by itself (`table`). Nothing here listens beyond loopback.

pub mod certificates;
pub mod context;
pub mod recent_requests;
pub mod route_table;

mod answer;
mod connection;
mod current_request;
mod exchange;
mod idle_upstreams;
mod open_clients;
mod page;
mod read_buffer;
mod refusal;
mod requests;
mod switch;
mod upstream;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::http_server;
use crate::net::serve::BoundPort;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::Worker;
use crate::net::serve::shut;
use crate::net::stop::Stop;
use crate::os::secret;
use crate::tls::trust;
use crate::wire::tls_record::TLS_HANDSHAKE;
use connection::Visit;
use context::ProxyContext;
use context::ProxySettings;
use idle_upstreams::IdleUpstreams;
use open_clients::CLIENT_LIMIT;
use open_clients::OpenClients;
use recent_requests::RecentRequests;
use route_table::RouteTable;

/// Far above the cap of `live`, which makes room: a connection that is closed needs a moment to be gone, and
/// only when nothing rests is one turned away.
const THREADS: usize = 2 * CLIENT_LIMIT;
/// So long a thread keeps connections to services after its client has left.
const IDLE: Duration = Duration::from_secs(2);

/// A proxy that serves until it is dropped, or until its `Stop`.
pub struct Proxy {
    pub context: Arc<ProxyContext>,
    servers: Vec<Server>,
    stop: Stop,
}

impl Proxy {
    pub fn start(bound: BoundPort, table: RouteTable, settings: ProxySettings, stop: &Stop) -> Result<Self> {
        let stop = stop.child();
        let context = Arc::new(ProxyContext {
            settings,
            table,
            live: OpenClients::new(),
            recent: RecentRequests::default(),
            stop: stop.clone(),
            via: secret::id("connect-proxy"),
            port: bound.port,
            tls: trust::unverified_client()?,
        });
        if context.settings.secure {
            context.certificates()?;
        }
        let servers = bound.listeners.into_iter().map(|listener| {
            let own = Arc::clone(&context);
            let service = ServeOptions {
                name: "proxy",
                limit: THREADS,
                new_worker: Box::new(move || worker(Arc::clone(&own))),
                idle: Some(IDLE),
                cut: shut,
                turn_away: Box::new(|stream| http_server::turn_away(stream, &refusal::too_many())),
            };
            Server::start(listener, service, &stop)
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
fn worker(context: Arc<ProxyContext>) -> Worker {
    let mut shelf = IdleUpstreams::default();
    Box::new(move |stream, _| {
        let entry = context.live.enter(&stream);
        shelf.next_client();
        let visit = Visit { context: &context, entry: &entry, shelf: &mut shelf };
        let served = if context.settings.secure {
            serve_secure(visit, &stream)
        } else {
            requests::serve(visit, Duplex::plain(stream), false)
        };
        if let Err(error) = served {
            log::debug!("a connection ended: {error}");
        }
    })
}

/// The first byte tells TLS from a client that forgot it, which is sent there.
fn serve_secure(visit: Visit<'_>, stream: &Arc<TcpStream>) -> io::Result<()> {
    stream.set_read_timeout(Some(NETWORK_TIMEOUT))?;
    let mut first = [0];
    if stream.peek(&mut first)? == 0 {
        return Ok(());
    }
    let below = Duplex::plain(Arc::clone(stream));
    if first[0] != TLS_HANDSHAKE {
        return requests::serve(visit, below, false);
    }
    let within = requests::in_tls(visit.context, below)?;
    requests::serve(visit, within, true)
}
