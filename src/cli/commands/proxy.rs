//! `connect proxy start`, `stop`, `status` and `logs`.
//!
//! `start` runs the same command again in the background, unless it is told to stay in the foreground; the one in the
//! background serves. `proxy-state.json` says which process that is.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::background::ChildOutput;
use crate::cli::health_page::HealthPage;
use crate::cli::logs;
use crate::cli::proxy_setup;
use crate::cli::proxy_setup::ProxyOptions;
use crate::cli::proxy_setup::ProxyParts;
use crate::cli::request_log::RequestLogWriter;
use crate::error::Error;
use crate::error::Result;
use crate::net::address::HubUrl;
use crate::net::serve::BoundPort;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::detach;
use crate::os::detach::BackgroundStart;
use crate::os::lock::locked;
use crate::os::passed_socket;
use crate::os::paths;
use crate::os::process;
use crate::os::setup::unit;
use crate::proxy::Proxy;
use crate::proxy::context::ProxyContext;
use crate::proxy::route_table::ProxyRoute;
use crate::proxy::route_table::RouteTable;
use crate::proxy::route_table::Routes;
use crate::state::proxy;
use crate::state::proxy::LOCAL_PROXY_PORT;
use crate::state::proxy::ProxyState;
use crate::state::runs;

/// A process that `--replace` ends has this long before it is killed.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(3);

/// A service that goes is reported this late at most.
const PROOF_INTERVAL: Duration = Duration::from_secs(2);

pub fn start(call: &Call) -> CommandResult {
    let options = ProxyOptions::read(call)?;
    if call.args.flag("foreground") || call.is_background() {
        return serve(call, &options);
    }
    let log = call.home.file(proxy::PROXY_LOG);
    let arguments = detach::own_arguments();
    background::start(call, &BackgroundStart { arguments, secret: None, log: &log }, ChildOutput::Repeated)
}

fn serve(call: &Call, options: &ProxyOptions) -> CommandResult {
    let kind = if options.tls { "subdomain proxy" } else { "proxy" };
    call.say.line(&format!("🌐 Starting {kind}...\n"));
    if let Some(running) = proxy::running(&call.home)
        && already_serves(call, options, &running)?
    {
        return Ok(0);
    }
    // The port comes first: without it nothing else is worth making, and two that start at once cannot both go on.
    let bound = listen(call, options)?;
    let port = bound.port;
    let names = [proxy::PROXY_KIND.to_owned()];
    let run = runs::register(&call.home, proxy::PROXY_KIND, &names, call.background_log.clone())?;
    let run = Arc::new(Mutex::new(run));
    // From here on `proxy status` and `reach` find it: clients that connect now are served in a moment.
    let own = proxy::announce(&call.home, port, options.tls)?;
    if options.tls {
        say_plan(call, &call.hub_urls()?[0], port);
    }
    // The certificates are made before the first request, so that a failure ends the command.
    let requests = RequestLogWriter::start(&call.say)?;
    let ProxyParts { settings, login } = proxy_setup::parts(call, options, &requests.log)?;
    let certificates = if options.tls { Some((settings.certificates)()?) } else { None };
    if let Some(certificates) = &certificates {
        proxy_setup::say_certificates(call, certificates)?;
    }
    let (reporting, state) = (Arc::clone(&run), own.state.clone());
    let changed = move |routes: &Routes| {
        proxy_setup::report_routes(&mut locked(&reporting), &state, certificates.as_deref(), routes);
    };
    // Makes the server's certificate even if there is no route.
    changed(&Routes::default());
    let table = RouteTable::start(&call.home, login.lister(), changed, &call.stop)?;
    let serving = Proxy::start(bound, table, settings, &call.stop)?;
    let threads = ThreadGroup::default();
    if let Some(health) = HealthPage::start(call)? {
        let (context, stop) = (Arc::clone(&serving.context), call.stop.clone());
        threads.spawn("health", move || prove(&health, &context, &stop))?;
    }
    announce(call, &serving);
    // The process that started this one returns now.
    if call.is_background() {
        detach::ready(&call.home.file(proxy::PROXY_LOG))?;
    }
    login.follow(call, &serving.context.table)?;
    threads.join(|| ());
    drop(serving);
    drop(requests);
    locked(&run).ends_well();
    call.say.event(&json!({ "event": "stopped" }));
    Ok(0)
}

/// Looks at intervals whether every route leads to something that listens, and tells the health page.
fn prove(health: &HealthPage, context: &ProxyContext, stop: &Stop) {
    loop {
        let routes = context.table.now();
        let missing = routes.available().filter_map(|route| {
            let proved =
                if route.is_local() { context.dial(route, false).map(drop) } else { context.check(route) };
            proved.err().map(|trouble| format!("{}: {}", route.name, trouble.reason))
        });
        health.set_missing(missing.collect());
        if stop.wait_for(PROOF_INTERVAL) {
            return;
        }
    }
}

/// A proxy of ours runs. It will do if it serves what is asked for; otherwise it must be stopped first.
fn already_serves(call: &Call, options: &ProxyOptions, running: &ProxyState) -> Result<bool> {
    if call.args.flag("replace") {
        unit::stop_socket(proxy::PROXY_KIND);
        background::end(call, "The proxy", running.pid)?;
        call.say.line(&format!("[ok] Ended the proxy (PID {})", running.pid));
        return Ok(false);
    }
    // A proxy in the background does not become one in the foreground.
    let same = options.port == running.port && options.tls == running.tls && !call.args.flag("foreground");
    if same {
        call.say.line(&format!("[ok] The proxy already runs on port {} (PID {})", running.port, running.pid));
        call.say.event(
            &json!({ "event": "running", "pid": running.pid, "port": running.port, "tls": running.tls }),
        );
        return Ok(true);
    }
    Err(Error::new(format!("The proxy already runs on port {} (PID {})", running.port, running.pid)).hint(
        format!(
            "Stop it: connect proxy stop, or take over: connect proxy start{} --replace",
            typed(call, options)
        ),
    ))
}

/// The options, to be typed again.
fn typed(call: &Call, options: &ProxyOptions) -> String {
    let https = if call.args.flag("https") { " --https" } else { "" };
    let port =
        if options.port == LOCAL_PROXY_PORT { String::new() } else { format!(" --port {}", options.port) };
    format!("{https}{port}")
}

fn listen(call: &Call, options: &ProxyOptions) -> Result<BoundPort> {
    let port = options.port;
    let bound = passed_socket::listen("127.0.0.1", port).and_then(BoundPort::beside);
    bound.or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse if process::listener_on(port).is_some_and(|(_, name)| name == "systemd") => {
            Err(Error::new(format!("systemd listens on port {port} for the installed proxy"))
                .hint("Start it: systemctl --user start connect-proxy. Or free the port: connect proxy stop"))
        }
        io::ErrorKind::AddrInUse if call.args.flag("replace") => take_over(call, port),
        io::ErrorKind::AddrInUse => {
            let mut hint = format!("Try: connect proxy start --port {}", next_port(port));
            if process::listener_on(port).is_some_and(|(pid, _)| process::is_own(pid)) {
                hint += &format!(
                    "\n  Or use --replace to take over:\n  connect proxy start --port {port} --replace"
                );
            }
            Err(Error::new(format!("Port {port} is already in use")).with_code("port-in-use").hint(hint))
        }
        io::ErrorKind::PermissionDenied => {
            Err(Error::new(format!("Port {port} needs privileges that this user does not have"))
                .because(error)
                .hint(format!("Try: connect proxy start --port {LOCAL_PROXY_PORT}")))
        }
        _ => Err(Error::new(format!("Cannot listen on port {port}")).because(error)),
    })
}

/// Ends the process that holds the port, if it is this user's.
fn take_over(call: &Call, port: u16) -> Result<BoundPort> {
    let holder = process::listener_on(port);
    let Some((pid, name)) = holder.filter(|(pid, _)| process::is_own(*pid)) else {
        let what = format!("Port {port} is in use by another user's process{}", process::shown_holder(port));
        return Err(Error::new(what).hint(format!("Try: connect proxy start --port {}", next_port(port))));
    };
    process::terminate(pid);
    let began = Instant::now();
    let mut is_killed = false;
    loop {
        if let Ok(bound) = BoundPort::bind(port) {
            call.say.line(&format!("[ok] Ended {} (PID {pid})", name.escape_debug()));
            return Ok(bound);
        }
        // It may have ended, and another process may have its ID or its port by now.
        let holds_on = || process::listener_on(port).is_some_and(|(now, _)| now == pid);
        if !is_killed && began.elapsed() > TERMINATE_TIMEOUT && holds_on() {
            process::kill_now(pid);
            is_killed = true;
        }
        if began.elapsed() > 2 * TERMINATE_TIMEOUT {
            return Err(Error::new(format!("Port {port} is still in use{}", process::shown_holder(port))));
        }
        call.stop.wait_for(Duration::from_millis(50));
        call.fail_if_stopped()?;
    }
}

fn next_port(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(LOCAL_PROXY_PORT)
}

fn say_plan(call: &Call, hub: &HubUrl, port: u16) {
    call.say.line(&format!("  Hub:  {hub}"));
    call.say.line(&format!("  Port: {port}"));
    let own = call.args.value("cert").map(|_| "your certificate");
    call.say.line(&format!("  TLS:  {}\n", own.unwrap_or("auto-generating certificates...")));
}

/// In the background without TLS two lines are enough; otherwise the routes and their addresses are listed.
fn announce(call: &Call, serving: &Proxy) {
    let context = &serving.context;
    let table = context.table.now();
    let routes: Vec<_> = table.available().collect();
    let at = |route: &ProxyRoute| route.how_to_connect().unwrap_or_else(|| context.url_of(&route.name));
    let listed: Vec<Value> = routes
        .iter()
        .map(|route| json!({ "name": route.name, "port": route.port, "source": route.source_word(), "at": at(route) }))
        .collect();
    call.say.event(&json!({ "event": "listening", "pid": std::process::id(), "port": context.port,
        "tls": context.settings.https, "url": context.url(), "routes": listed }));
    let foreground = !call.is_background();
    let kind = if context.settings.https { "HTTPS" } else { "HTTP" };
    if context.settings.https || foreground {
        if !routes.is_empty() {
            call.say.line(&format!("[ok] Found {} route(s):", routes.len()));
            for route in &routes {
                let source = route.source_word();
                call.say.line(&format!("  • {} → 127.0.0.1:{} [{source}]", route.name, route.port));
            }
            call.say.line("");
        }
        call.say.line(&format!("[ok] {kind} proxy running on port {}\n", context.port));
        call.say.line("  Access your services via subdomains:\n");
        for route in &routes {
            call.say.line(&format!("    {}", shown_route(&route.name, &at(route))));
        }
        if routes.is_empty() {
            call.say.line("    No services yet. Bring one here: connect reach NAME");
        }
        call.say.line("");
    } else {
        call.say.line(&format!("[ok] {kind} proxy started on port {}", context.port));
    }
    if foreground {
        call.say.line("  Press Ctrl+C to stop\n");
    } else {
        call.say.line(&format!("  Logs: {}", paths::shown(&call.home.file(proxy::PROXY_LOG))));
        call.say.line("  Stop: connect proxy stop");
    }
}

/// A URL has the name in it; what is typed for another service has not.
fn shown_route(name: &str, at: &str) -> String {
    if at.contains("://") { at.to_owned() } else { format!("{name}: {at}") }
}

/// The running proxy, if it is the one that `--port` and `--https` mean.
fn running(call: &Call) -> Result<Option<ProxyState>> {
    let port = call.args.port("port")?;
    let is_meant = |state: &ProxyState| {
        port.is_none_or(|port| port == state.port) && (state.tls || !call.args.flag("https"))
    };
    Ok(proxy::running(&call.home).filter(is_meant))
}

pub fn stop(call: &Call) -> CommandResult {
    let meant = running(call)?;
    if meant.is_some() || proxy::running(&call.home).is_none() {
        unit::stop_socket(proxy::PROXY_KIND);
    }
    let Some(running) = meant else {
        call.say.line("[ok] No proxy is running.");
        call.say.value(&json!({ "stopped": false }));
        return Ok(0);
    };
    background::end(call, "The proxy", running.pid)?;
    call.say.line("[ok] Proxy stopped.");
    call.say.value(&json!({ "stopped": true, "pid": running.pid }));
    Ok(0)
}

pub fn status(call: &Call) -> CommandResult {
    let running = running(call)?;
    call.say.line("🌐 Proxy Status\n");
    let Some(running) = running else {
        call.say.result("  ○ Proxy: not running");
        call.say.line("    Start it: connect proxy start");
        call.say.value(&json!({ "running": false }));
        return Ok(0);
    };
    let routes = runs::running(&call.home, proxy::PROXY_KIND).map(|run| run.open).unwrap_or_default();
    call.say.result(&format!("  ● Proxy: running (PID {})", running.pid));
    call.say.result(&format!("    Port: {}", running.port));
    call.say.result(&format!("    TLS:  {}", if running.tls { "enabled" } else { "disabled" }));
    call.say.result(if routes.is_empty() { "    Routes: none" } else { "    Routes:" });
    for route in &routes {
        call.say.result(&format!("      {}", shown_route(&route.name, &route.at)));
    }
    call.say.value(&json!({ "running": true, "pid": running.pid, "port": running.port, "tls": running.tls,
        "startedAt": running.started_at, "routes": routes.iter().map(|route| json!({ "name": route.name, "at": route.at })).collect::<Vec<_>>() }));
    Ok(0)
}

pub fn logs(call: &Call) -> CommandResult {
    logs::show(call, &call.home.file(proxy::PROXY_LOG), "Start the proxy: connect proxy start")
}
