//! `connect hub`: runs the hub.
//!
//! The hub and the tunnels do not know each other. This file gives the hub what opens its tunnel ports.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::api::Hub;
use crate::api::LoginSecrets;
use crate::api::SavedLogin;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::DEFAULT_LISTEN;
use crate::cli::args::listen_address;
use crate::cli::args::tunnel_ports;
use crate::cli::local_hub;
use crate::cli::store_options::StoreOptions;
use crate::cli::tunnel_access::AcceptedAgents;
use crate::cli::tunnel_access::TunnelAccess;
use crate::cli::tunnel_access::TunnelObserver;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::hub;
use crate::hub::Core;
use crate::hub::HubSettings;
use crate::hub::audit_forward::AuditTarget;
use crate::hub::tunnel_ports::TunnelOpener;
use crate::model::access::Role;
use crate::model::address_block::AddressBlock;
use crate::model::host_port::HostPort;
use crate::model::hub_trust::HubTrust;
use crate::net::address::HubUrl;
use crate::net::connect::reached_locally;
use crate::net::serve::BoundPort;
use crate::os::detach;
use crate::os::files;
use crate::os::passed_socket;
use crate::os::peer_user;
use crate::os::terminal;
use crate::state::identity;
use crate::state::runs;
use crate::state::runs::HUB_KIND;

/// The proxies that are believed unless `--proxy` names others.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

pub fn run(call: &Call) -> CommandResult {
    let args = &call.args;
    let listen = args.value("listen").unwrap_or(DEFAULT_LISTEN);
    let (host, port) = listen_address("listen", listen)?;
    let names: Vec<String> = args.values("name").map(name_of_host).collect::<Result<_>>()?;
    let proxies = proxies(call, &host)?;
    let behind_proxy = !proxies.is_empty();
    if behind_proxy && call.tls_policy()?.is_some() {
        return Err(Error::usage(
            "With --behind-proxy, the proxy ends TLS: this hub cannot refuse its key exchange",
        )
        .hint("Leave --require-pq and --tls-policy out, and let the proxy accept X25519MLKEM768 only"));
    }
    let store_options = StoreOptions::given(call, args.value("store"))?;
    let data = local_hub::data_folder(call)?;
    let tunnel_ports = tunnel_ports(args)?;
    let has_tunnel_ports = tunnel_ports.is_some();
    let public_name = names.first().cloned();
    let audit_to = args.value("audit-to").map(AuditTarget::parse).transpose()?;
    let no_direct = args.flag("no-direct");
    let settings =
        HubSettings { names, proxies, tunnel_ports, audit_to, no_direct, ..store_options.settings(&data)? };
    // Opening locks the data folder, so a second hub fails here before it listens.
    let core = Core::open(settings, &call.stop)?.ok_or_else(|| {
        Error::new("Another hub runs on this data folder")
            .because(data.display().to_string())
            .hint("Look at it: connect hub status. For a second hub, give it its own folder: --data DIR")
    })?;
    let core = Arc::new(core);
    let listener = passed_socket::listen(&host, port).map_err(|error| cannot_listen(listen, port, error))?;
    let address = listener.local_addr().or_say(|| "Cannot tell the listening address")?;
    if has_tunnel_ports {
        core.tunnel_ports.set_opener(tunnel_opener(call, &core, address)?);
    }
    if let Some(note) = &core.note {
        call.say.warn(note);
    }
    let public = public_name.unwrap_or_else(|| shown_host(address.ip()));
    // Clients come to the reverse proxy, which is expected at the usual port.
    let port = if behind_proxy { 443 } else { address.port() };
    let url = HubUrl { host: public, port };
    let running = hub::start(&core, listener, &url.to_string(), &call.stop)?;
    // For `hub key` and the like, which mean the same store without being told.
    store_options.note(&data)?;
    let run = runs::register(&call.home, HUB_KIND, &[url.to_string()], None);
    let run = run.inspect_err(|error| log::info!("connect status does not list this hub: {error}"));
    announce(call, &core, &url, &address.to_string())?;
    detach::notify("READY=1");
    call.stop.wait();
    detach::notify("STOPPING=1");
    drop(running);
    drop(run);
    Ok(0)
}

fn announce(call: &Call, core: &Core, url: &HubUrl, listening: &str) -> Result<()> {
    let say = &call.say;
    let key_file = call.args.value("first-key-file");
    // What goes to anything but a terminal is often kept: in a journal, or in a container's log.
    let is_shown = key_file.is_none() && terminal::is_terminal_out();
    let needs_key = !is_begun(core);
    let first_key =
        (needs_key && (is_shown || key_file.is_some())).then(|| make_first_key(core)).transpose()?;
    if let (Some(file), Some(key)) = (key_file, &first_key) {
        files::write(Path::new(file), format!("{key}\n").as_bytes())?;
    }
    say.event(&json!({ "event": "listening", "address": listening, "url": url.to_string(),
        "pin": core.ca.pin().to_string(), "data": core.settings.data, "firstKey": first_key.as_ref().filter(|_| is_shown) }));
    say.line(&format!("[ok] Hub listening on {listening}"));
    say.line(&format!("  Data: {}", core.settings.data.display()));
    let others = core.records.registry().hub_urls();
    if core.fleet.is_some() {
        say.line(&format!("  Fleet: {}", others.join(" ")));
    }
    if core.settings.proxies.is_empty() {
        say.line(&format!("  Pin:  {}", core.ca.pin()));
    }
    let data = call.args.value("data").map(|data| format!(" --data {data}")).unwrap_or_default();
    let make_key = |role: &str| format!("connect hub key create --role {role} --label NAME{data}");
    match first_key.filter(|_| is_shown) {
        Some(key) => {
            say.line("\n  This is the first start. Here is an admin key; it is shown only this once:\n");
            say.result(&format!("    connect up --hub {url} --api-key {key}"));
            say.line(&format!("\n  Keys for others: {}", make_key("member")));
        }
        None if needs_key && key_file.is_none() => {
            say.line(&format!("  There is no key yet. Make one: {}", make_key("admin")));
        }
        None => {}
    }
    say.line("\n  Press Ctrl+C to stop");
    Ok(())
}

/// Whether the hub has a key. In a fleet only the hub that begins it makes one, or two hubs that start at once would make
/// two.
fn is_begun(core: &Core) -> bool {
    core.records.registry().keys().next().is_some() || (core.fleet.is_some() && !core.ca.is_new())
}

fn make_first_key(core: &Core) -> Result<String> {
    let body = json!({ "role": Role::Admin.as_str(), "label": "first admin" });
    let made = local_hub::call_core(core, "POST", "/v1/keys", Some(&body))?;
    Ok(made["key"].as_str().unwrap_or_default().to_owned())
}

/// Who may speak for clients in the clear: with `--behind-proxy`, this machine unless `--proxy` says otherwise.
fn proxies(call: &Call, listen: &str) -> Result<Vec<AddressBlock>> {
    let is_local = listen.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    let given: Vec<&str> = call.args.values("proxy").collect();
    let proxies = match (call.args.flag("behind-proxy"), given.is_empty()) {
        (false, true) => return Ok(Vec::new()),
        (false, false) => return Err(Error::usage("--proxy is for a hub with --behind-proxy")),
        (true, true) if is_local => LOOPBACK.to_vec(),
        (true, true) => {
            return Err(Error::usage("With --behind-proxy, anybody who reaches this address could claim to be any client")
                .hint("Name the proxy: --proxy 10.0.0.5, or listen where only this machine is: --listen 127.0.0.1:7443"));
        }
        (true, false) => given,
    };
    let misread =
        |text| Error::misread(text, "is not a block of addresses").hint("Write it like --proxy 10.0.0.0/8");
    proxies.into_iter().map(|text| AddressBlock::parse(text).ok_or_else(|| misread(text))).collect()
}

/// A name or an address without a port, for the hub's certificate.
fn name_of_host(text: &str) -> Result<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let name = HostPort::parse(text, 443).filter(|_| !text.contains(':'));
    name.map(|name| name.host)
        .ok_or_else(|| Error::misread(text, "is not a host's name").hint("Write it like --name hub.example"))
}

fn cannot_listen(listen: &str, port: u16, error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        let next = port.checked_add(1).unwrap_or(7443);
        return Error::new(format!("Port {port} is already in use")).with_code("port-in-use").hint(format!(
            "Try: connect hub --listen {}",
            listen.replace(&format!(":{port}"), &format!(":{next}"))
        ));
    }
    Error::new(format!("Cannot listen on {listen}"))
        .because(error)
        .hint("Check the address given with --listen")
}

/// The address to print: an unspecified one is of no use to a client.
fn shown_host(ip: IpAddr) -> String {
    if ip.is_unspecified() { crate::os::user::hostname() } else { ip.to_string() }
}

/// A tunnel port is a tunnel like any joiner's; the joiner is the hub's own machine.
fn tunnel_opener(call: &Call, core: &Arc<Core>, listening: SocketAddr) -> Result<TunnelOpener> {
    let identity = identity::load_or_make_in(&core.settings.data)?;
    let url = HubUrl::parse(&reached_locally(listening).to_string())?;
    let trust = HubTrust::Pin(core.ca.pin());
    let hub = Hub::new(vec![url], &trust, Some(core.local_token.clone()), &call.stop)?;
    let ca = Arc::clone(&core.ca);
    let read = Arc::new(move || Some(LoginSecrets { key: None, pin: Some(ca.pin()) }));
    let hub = Arc::new(hub.with_saved(SavedLogin { read, replace_root: Arc::new(|_, _| ()) }));
    let access = TunnelAccess {
        hub,
        identity,
        share: None,
        share_name: None,
        by_link: false,
        agents: AcceptedAgents::Any,
        peer_check: peer_user::same_user,
        // A hub dials no address that an agent names.
        may_be_direct: false,
    };
    let stop = call.stop.clone();
    Ok(Box::new(move |service, port| {
        let mut tunnel = access.tunnel_to(service, None, TunnelObserver::default(), &stop)?;
        tunnel.listen(BoundPort::bind_v4(port).or_say(|| "The port is taken")?)?;
        Ok(Box::new(tunnel))
    }))
}
