//! What `connect proxy start` gives the proxy: its options, its certificates, its routes and the tunnels to the hub.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::call::Call;
use super::call::not_configured;
use super::local_ca;
use super::request_log::RequestLog;
use super::tunnel_access::TunnelAccess;
use super::tunnel_access::TunnelObserver;
use crate::error::Error;
use crate::error::Result;
use crate::http::host::parse_host;
use crate::model::host_port::HostPort;
use crate::model::name::Name;
use crate::net::serve::BoundPort;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::os::peer_user;
use crate::proxy::certificates::Certificates;
use crate::proxy::context::CertificateLoader;
use crate::proxy::context::HubTunnels;
use crate::proxy::context::ProxySettings;
use crate::proxy::recent_requests::FinishedRequest;
use crate::proxy::route_table::Routes;
use crate::proxy::route_table::ServiceLister;
use crate::state::home::Home;
use crate::state::proxy;
use crate::tunnel::joiner;
use crate::tunnel::joiner::PeerCheck;
use crate::tunnel::joiner::Tunnel;

pub const LOCAL_PROXY_PORT: u16 = 3456;
/// The hub and an agent that are there answer far sooner.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

pub struct ProxyOptions {
    pub port: u16,
    pub tls: bool,
}

impl ProxyOptions {
    pub fn read(call: &Call) -> Result<Self> {
        let args = &call.args;
        let has_certificate = args.value("cert").is_some();
        if has_certificate != args.value("key").is_some() {
            return Err(
                Error::usage("A certificate and its key go together").hint("Write: --cert FILE --key FILE")
            );
        }
        // Port 0 is any that is free; --json says which.
        let port = if args.value("port") == Some("0") { Some(0) } else { args.port("port")? };
        Ok(Self { port: port.unwrap_or(LOCAL_PROXY_PORT), tls: args.flag("https") || has_certificate })
    }
}

pub fn settings(call: &Call, options: &ProxyOptions, log: &Arc<RequestLog>) -> Result<ProxySettings> {
    let log = Arc::clone(log);
    let values = |name: &str| call.args.values(name).map(str::to_owned).collect::<Vec<_>>();
    let connect_allow = call.args.values("connect-allow").map(outside_host).collect::<Result<_>>()?;
    let allow_origin =
        values("allow-origin").into_iter().map(|it| it.trim_end_matches('/').to_owned()).collect();
    let mut any_user = call.args.flag("any-user");
    if !any_user && !peer_user::is_known_here() {
        any_user = true;
        call.say.warn(
            "This system does not tell whose connection it is: the proxy answers every user of this machine",
        );
    }
    Ok(ProxySettings {
        any_user,
        https: options.tls,
        certificates: certificates(call),
        // Another user must not get around the proxy by the port of its own tunnel.
        hub_tunnels: hub_tunnels(call, if any_user { joiner::any_user } else { peer_user::same_user }),
        rewrite_host: values("rewrite-host"),
        allow_origin,
        connect_allow,
        on_request: Box::new(move |request: &FinishedRequest<'_>| log.add(request)),
    })
}

/// `HOST` or `HOST:PORT` of `--connect-allow`.
fn outside_host(text: &str) -> Result<(String, Option<u16>)> {
    let bad = || {
        Error::misread(text, "is neither HOST nor HOST:PORT")
            .hint("Write it like --connect-allow api.example.com:443")
    };
    let host = parse_host(text.as_bytes()).map_err(|_| bad())?;
    let at = HostPort::parse(text, 443).ok_or_else(bad)?;
    Ok((at.host, host.port))
}

/// The user's with `--cert`, otherwise signed by our own CA. They are loaded when first needed, since a proxy without
/// `--https` needs them only for a CONNECT to HTTPS.
fn certificates(call: &Call) -> CertificateLoader {
    let folder = local_ca::folder(call);
    let own = call.args.value("cert").zip(call.args.value("key"));
    let own = own.map(|(certificate, key)| (certificate.to_owned(), key.to_owned()));
    let made: Mutex<Option<Arc<Certificates>>> = Mutex::default();
    Box::new(move || {
        let mut made = locked(&made);
        let loaded = match (&*made, &own) {
            (Some(made), _) => Arc::clone(made),
            (None, Some((certificate, key))) => {
                Arc::new(Certificates::of_files(Path::new(certificate), Path::new(key))?)
            }
            (None, None) => Arc::new(Certificates::of_folder(&folder)?),
        };
        Ok(Arc::clone(made.insert(loaded)))
    })
}

/// Says what was made, and whether browsers trust it.
pub fn say_certificates(call: &Call, certificates: &Certificates) -> Result<()> {
    let Some(is_new) = certificates.is_new() else { return Ok(()) };
    call.say.line(if is_new { "  [ok] Generated local CA" } else { "  [ok] Local CA found" });
    call.say.line("  [ok] Generated server certificate");
    local_ca::trust_or_warn(call)?;
    call.say.line("");
    Ok(())
}

/// Lists the routes for `proxy status`, and puts their names into `server.crt` for other servers that use it.
pub fn write_routes(home: &Home, certificates: Option<&Certificates>, routes: &Routes) {
    let names: Vec<String> = routes.available().map(|route| route.name.clone()).collect();
    let listed = proxy::write_routes(home, &names);
    let written = certificates.map_or(Ok(()), |certificates| certificates.write_server(names.into_iter()));
    if let Err(error) = listed.and(written) {
        log::warn!("{error}");
    }
}

/// `None` without a login: then the proxy has only the local routes.
pub fn service_lister(call: &Call) -> Option<ServiceLister> {
    let hub = call.hub().ok()?;
    Some(Box::new(move || hub.services()))
}

/// One tunnel for each service of the hub, opened at its first request and kept.
struct TunnelSet {
    access: Option<TunnelAccess>,
    stop: Stop,
    tunnels: Mutex<HashMap<String, Arc<Tunnel>>>,
}

impl TunnelSet {
    fn tunnel(&self, service: &str) -> Result<Arc<Tunnel>> {
        let access = self.access.as_ref().ok_or_else(not_configured)?;
        if let Some(known) = locked(&self.tunnels).get(service) {
            return Ok(Arc::clone(known));
        }
        // It listens at once and dials nobody before its first connection, so two requests that come here at
        // the same time cost one port for a moment.
        let name = Name::parse(service).map_err(|_| Error::new("This is not the name of a service"))?;
        let mut tunnel = access.tunnel_to(service, Some(&name), TunnelObserver::default(), &self.stop)?;
        let port = BoundPort::first_free([0]).ok_or_else(|| Error::new("No port is free for a tunnel"))?;
        tunnel.listen(port)?;
        let mut tunnels = locked(&self.tunnels);
        Ok(Arc::clone(tunnels.entry(service.to_owned()).or_insert(Arc::new(tunnel))))
    }
}

fn hub_tunnels(call: &Call, peer_check: PeerCheck) -> HubTunnels {
    let access = call.hub().and_then(|hub| TunnelAccess::own(call, hub, peer_check)).ok();
    let set = Arc::new(TunnelSet { access, stop: call.stop.clone(), tunnels: Mutex::default() });
    let own = Arc::clone(&set);
    HubTunnels {
        port: Box::new(move |service| Ok(set.tunnel(service)?.port)),
        check: Box::new(move |service| own.tunnel(service)?.check_target(CHECK_TIMEOUT).map(drop)),
    }
}
