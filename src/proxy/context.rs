//! What all connections of the proxy share: its settings, its routes, and who is connected.

use std::io::ErrorKind;
use std::sync::Arc;

use rustls::ClientConfig;

use super::certificates::Certificates;
use super::open_clients::OpenClients;
use super::recent_requests::FinishedRequest;
use super::recent_requests::RecentRequests;
use super::route_table::ProxyRoute;
use super::route_table::RouteTable;
use super::upstream::NO_TLS;
use super::upstream::NOT_RESPONDING;
use super::upstream::Upstream;
use crate::error::Result;
use crate::net::stop::Stop;

/// The loopback port of the tunnel to a hub service, which is opened if there is none yet.
pub type TunnelPort = Box<dyn Fn(&str) -> Result<u16> + Send + Sync>;
/// Makes or loads the certificates when they are first needed.
pub type CertificateLoader = Box<dyn Fn() -> Result<Arc<Certificates>> + Send + Sync>;
pub type RequestObserver = Box<dyn Fn(&FinishedRequest<'_>) + Send + Sync>;

pub struct ProxySettings {
    /// Answers every user of this machine, not only its own and root.
    pub any_user: bool,
    /// HTTPS on the port itself.
    pub https: bool,
    pub certificates: CertificateLoader,
    pub tunnel_port: TunnelPort,
    /// Services that get their own host in place of the one that the client sent.
    pub rewrite_host: Vec<String>,
    /// Foreign origins whose pages may open a `WebSocket`.
    pub allow_origin: Vec<String>,
    /// Outside hosts that CONNECT may reach, on one port or on all.
    pub connect_allow: Vec<(String, Option<u16>)>,
    /// Called after each request.
    pub on_request: Option<RequestObserver>,
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

    /// Opens a connection to a service. For a hub service it goes through a tunnel. The error text is for the client.
    pub fn dial(&self, route: &ProxyRoute, by_tls: bool) -> std::result::Result<Upstream, &'static str> {
        let port = if route.is_local() { Ok(route.port) } else { (self.settings.tunnel_port)(&route.name) };
        let port = port.map_err(|error| {
            log::debug!("{error}");
            NOT_RESPONDING
        })?;
        Upstream::dial(route, port, by_tls.then_some(&self.tls)).map_err(|error| {
            log::debug!("{} does not answer on port {port}: {error}", route.name);
            if error.kind() == ErrorKind::InvalidData { NO_TLS } else { NOT_RESPONDING }
        })
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
        if let Some(observe) = &self.settings.on_request {
            observe(request);
        }
    }
}
