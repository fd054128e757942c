//! What every connection of the proxy shares.

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

/// Makes sure that a tunnel to that hub service stands, and says on which loopback port.
pub type TunnelPort = Box<dyn Fn(&str) -> Result<u16> + Send + Sync>;
/// Makes or loads the certificates when they are first needed.
pub type CertificateLoader = Box<dyn Fn() -> Result<Arc<Certificates>> + Send + Sync>;
pub type RequestObserver = Box<dyn Fn(&FinishedRequest<'_>) + Send + Sync>;

pub struct ProxySettings {
    /// HTTPS on the port itself.
    pub secure: bool,
    pub certificates: CertificateLoader,
    pub open_tunnel: TunnelPort,
    /// Services that get their own host instead of the one that the client sent.
    pub rewrite_host: Vec<String>,
    /// Origins from elsewhere whose pages may open a `WebSocket`.
    pub allow_origin: Vec<String>,
    /// Outside hosts that CONNECT may reach, with a port or on all.
    pub connect_allow: Vec<(String, Option<u16>)>,
    /// Told of every request that was answered.
    pub on_request: Option<RequestObserver>,
}

pub struct ProxyContext {
    pub settings: ProxySettings,
    pub table: RouteTable,
    pub live: OpenClients,
    pub recent: RecentRequests,
    pub stop: Stop,
    /// Our name in `Via`, unlike any other.
    pub via: String,
    pub port: u16,
    /// Towards services that speak TLS. Whose certificate that is does not matter: the way to a hub's service is
    /// encrypted and its agent known, and none of them has a certificate for a name under `localhost`.
    pub tls: Arc<ClientConfig>,
}

impl ProxyContext {
    pub fn scheme(&self) -> &'static str {
        if self.settings.secure { "https" } else { "http" }
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

    /// A new connection to a service, by TLS if that is wanted; a hub's first gets its tunnel. The error is for the
    /// client.
    pub fn dial(&self, route: &ProxyRoute, by_tls: bool) -> std::result::Result<Upstream, &'static str> {
        let opened = if route.is_local() { Ok(route.port) } else { (self.settings.open_tunnel)(&route.name) };
        let port = opened.map_err(|error| {
            log::debug!("{error}");
            NOT_RESPONDING
        })?;
        Upstream::dial(route, port, by_tls.then_some(&self.tls)).map_err(|error| {
            log::debug!("{} does not answer on port {port}: {error}", route.name);
            if error.kind() == ErrorKind::InvalidData { NO_TLS } else { NOT_RESPONDING }
        })
    }

    pub fn rewritten_host(&self, route: &ProxyRoute) -> Option<String> {
        let wanted = self.settings.rewrite_host.iter().any(|name| name.eq_ignore_ascii_case(&route.name));
        wanted.then(|| format!("localhost:{}", route.port))
    }

    pub fn allows_origin(&self, origin: &[u8]) -> bool {
        let text = str::from_utf8(origin).unwrap_or_default();
        self.settings.allow_origin.iter().any(|allowed| allowed.eq_ignore_ascii_case(text))
    }

    pub fn allows_connect(&self, host: &str, port: u16) -> bool {
        let fits = |(name, only): &(String, Option<u16>)| {
            name.eq_ignore_ascii_case(host) && only.is_none_or(|only| only == port)
        };
        self.settings.connect_allow.iter().any(fits)
    }

    pub fn note(&self, note: &FinishedRequest<'_>) {
        self.recent.note(note);
        if let Some(tell) = &self.settings.on_request {
            tell(note);
        }
    }
}
