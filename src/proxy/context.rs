//! What all connections of the proxy share: its settings, its routes, and who is connected.

use std::io;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;

use super::certificates::Certificates;
use super::open_clients::OpenClients;
use super::recent_requests::FinishedRequest;
use super::recent_requests::RecentRequests;
use super::route_table::ProxyRoute;
use super::route_table::RouteSource;
use super::route_table::RouteTable;
use super::trouble::Trouble;
use super::upstream::Upstream;
use crate::error::Result;
use crate::model::service::Protocol;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial_first;
use crate::net::connect::loopbacks;
use crate::net::duplex::Duplex;
use crate::net::stop::Stop;
use crate::tls;
use crate::wire::tls_record::TLS_ALERT;

/// A listener on this machine accepts at once, and so does a tunnel's.
const UPSTREAM_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A service that speaks TLS answers our hello by then.
const TLS_PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A question about the service of this name.
type ByName<T> = Box<dyn Fn(&str) -> Result<T> + Send + Sync>;
/// The tunnels to services of the hub, by name. Both open one if there is none yet.
pub struct HubTunnels {
    /// The loopback port of the tunnel.
    pub port: ByName<u16>,
    /// Whether the agent reaches the service.
    pub check: ByName<()>,
}
/// Makes or loads the certificates when they are first needed.
pub type CertificateLoader = Box<dyn Fn() -> Result<Arc<Certificates>> + Send + Sync>;
pub type RequestObserver = Box<dyn Fn(&FinishedRequest<'_>) + Send + Sync>;

pub struct ProxySettings {
    /// Answers every user of this machine, not only its own and root.
    pub any_user: bool,
    /// HTTPS on the port itself.
    pub https: bool,
    pub certificates: CertificateLoader,
    pub hub_tunnels: HubTunnels,
    /// Services that get their own host in place of the one that the client sent.
    pub rewrite_host: Vec<String>,
    /// Foreign origins whose pages may open a `WebSocket`.
    pub allow_origin: Vec<String>,
    /// Outside hosts that CONNECT may reach, on one port or on all.
    pub connect_allow: Vec<(String, Option<u16>)>,
    /// Called after each request.
    pub on_request: RequestObserver,
}

pub struct ProxyContext {
    pub settings: ProxySettings,
    pub table: RouteTable,
    pub clients: OpenClients,
    pub recent: RecentRequests,
    pub stop: Stop,
    /// Our name in `Via`. No other proxy has it, so finding it in a request means a loop.
    pub via: String,
    pub port: u16,
    /// For services that speak TLS. It accepts any certificate: the path to a hub service is encrypted and its agent is
    /// known, and no service has a certificate for a name under `localhost`.
    pub tls: Arc<ClientConfig>,
}

impl ProxyContext {
    pub fn scheme(&self) -> &'static str {
        if self.settings.https { "https" } else { "http" }
    }

    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme(), self.port)
    }

    pub fn url_of(&self, name: &str) -> String {
        format!("{}://{name}.localhost:{}", self.scheme(), self.port)
    }

    pub fn certificates(&self) -> Result<Arc<Certificates>> {
        (self.settings.certificates)()
    }

    /// The loopback port that leads to the service: its own, or that of a tunnel.
    pub fn port_of(&self, route: &ProxyRoute) -> std::result::Result<u16, Trouble> {
        match &route.source {
            RouteSource::Local { .. } => Ok(route.port),
            RouteSource::Hub { agent, online: false } => Err(Trouble::offline(route, agent)),
            RouteSource::Hub { .. } => {
                (self.settings.hub_tunnels.port)(&route.name).map_err(Trouble::of_error)
            }
        }
    }

    /// Opens a connection to a service.
    pub fn dial(&self, route: &ProxyRoute, by_tls: bool) -> std::result::Result<Upstream, Trouble> {
        let port = self.port_of(route)?;
        let dialled = self.connect(route, port, by_tls.then_some(NETWORK_TIMEOUT));
        dialled.map_err(|error| match self.check(route) {
            Err(trouble) => trouble,
            Ok(()) if error.kind() == ErrorKind::InvalidData => Trouble::no_tls(route),
            Ok(()) => Trouble::not_connected(route, &error),
        })
    }

    /// In the clear, or by TLS if there is a limit for its handshake.
    fn connect(&self, route: &ProxyRoute, port: u16, tls_limit: Option<Duration>) -> io::Result<Upstream> {
        let deadline = Instant::now() + UPSTREAM_CONNECT_TIMEOUT;
        let mut stream = Duplex::plain(dial_first(&loopbacks(port), deadline, &self.stop)?);
        if let Some(limit) = tls_limit {
            let name = format!("{}.localhost", route.name);
            stream = tls::client(&self.tls, &name, stream, Instant::now() + limit)?.into_duplex();
        }
        Upstream::new(route, port, stream)
    }

    /// Whether something listens at the end of the route, on the agent's machine too.
    pub fn check(&self, route: &ProxyRoute) -> std::result::Result<(), Trouble> {
        if route.is_local() {
            return Ok(());
        }
        self.port_of(route)?;
        (self.settings.hub_tunnels.check)(&route.name).map_err(Trouble::of_error)
    }

    /// Why a service closed the connection without an answer, or answered something else than HTTP.
    pub fn why_no_response(&self, route: &ProxyRoute, answered: &[u8]) -> Trouble {
        if let Err(trouble) = self.check(route) {
            return trouble;
        }
        match answered.first() {
            Some(&TLS_ALERT) => Trouble::speaks_tls(route),
            Some(_) => Trouble::not_http(route),
            None if route.protocol == Protocol::Http && self.accepts_tls(route) => Trouble::speaks_tls(route),
            None => Trouble::closed(route),
        }
    }

    fn accepts_tls(&self, route: &ProxyRoute) -> bool {
        let port = self.port_of(route);
        port.is_ok_and(|port| self.connect(route, port, Some(TLS_PROBE_TIMEOUT)).is_ok())
    }

    pub fn rewritten_host(&self, route: &ProxyRoute) -> Option<String> {
        let rewrite = self.settings.rewrite_host.iter().any(|name| name.eq_ignore_ascii_case(&route.name));
        rewrite.then(|| format!("localhost:{}", route.port))
    }

    pub fn allows_origin(&self, origin: &[u8]) -> bool {
        let text = str::from_utf8(origin).unwrap_or_default();
        self.settings.allow_origin.iter().any(|allowed| allowed.eq_ignore_ascii_case(text))
    }

    pub fn allows_connect(&self, host: &str, port: u16) -> bool {
        let allowed = |(name, only): &(String, Option<u16>)| {
            name.eq_ignore_ascii_case(host) && only.is_none_or(|only| only == port)
        };
        self.settings.connect_allow.iter().any(allowed)
    }

    pub fn record(&self, request: &FinishedRequest<'_>) {
        self.recent.add(request);
        (self.settings.on_request)(request);
    }
}
