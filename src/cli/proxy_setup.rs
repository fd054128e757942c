//! What `connect proxy start` gives the proxy: its options, its certificates, its routes and the tunnels to the hub.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use super::call::Call;
use super::hub_login::HubLogin;
use super::local_ca;
use super::request_log::RequestLog;
use crate::error::Error;
use crate::error::Result;
use crate::http::host::parse_host;
use crate::model::host_port::HostPort;
use crate::os::lock::locked;
use crate::os::peer_user;
use crate::proxy::certificates::Certificates;
use crate::proxy::context::CertificateLoader;
use crate::proxy::context::ProxySettings;
use crate::proxy::recent_requests::FinishedRequest;
use crate::proxy::route_table::ProxyRoute;
use crate::proxy::route_table::Routes;
use crate::state::proxy::LOCAL_PROXY_PORT;
use crate::state::proxy::ProxyState;
use crate::state::runs::OpenService;
use crate::state::runs::OwnRun;
use crate::tunnel::joiner;

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

/// What serves, and what keeps it current.
pub struct ProxyParts {
    pub settings: ProxySettings,
    pub login: Arc<HubLogin>,
}

pub fn parts(call: &Call, options: &ProxyOptions, log: &Arc<RequestLog>) -> Result<ProxyParts> {
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
    // Another user must not get around the proxy by the port of its own tunnel.
    let login = HubLogin::new(call, if any_user { joiner::any_user } else { peer_user::same_user });
    let settings = ProxySettings {
        any_user,
        https: options.tls,
        certificates: certificates(call),
        hub_tunnels: login.tunnels(),
        rewrite_host: values("rewrite-host"),
        allow_origin,
        connect_allow,
        on_request: Box::new(move |request: &FinishedRequest<'_>| log.add(request)),
    };
    Ok(ProxyParts { settings, login })
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

/// Lists the routes for `status`, and puts their names into `server.crt` for other servers that use it.
pub fn report_routes(run: &mut OwnRun, state: &ProxyState, own: Option<&Certificates>, routes: &Routes) {
    let open = |route: &Arc<ProxyRoute>| OpenService {
        name: route.name.clone(),
        at: route.how_to_connect().unwrap_or_else(|| state.url_of(&route.name)),
        up: true,
        ..OpenService::default()
    };
    run.report(routes.available().map(open).collect());
    let names = routes.available().map(|route| route.name.clone());
    if let Some(Err(error)) = own.map(|certificates| certificates.write_server(names)) {
        log::warn!("{error}");
    }
}
