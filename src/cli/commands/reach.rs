//! `connect reach`: one service on a port of this machine.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::did_you_mean;
use crate::cli::args::name_of;
use crate::cli::args::port_of;
use crate::cli::background;
use crate::cli::call::variable;
use crate::cli::hub_path;
use crate::cli::hub_path::PathStep;
use crate::cli::proxy_autostart;
use crate::cli::say::cut;
use crate::cli::say::width;
use crate::cli::supervisor::Stay;
use crate::cli::supervisor::Supervisor;
use crate::cli::supervisor::local_tunnel::LocalTunnel;
use crate::cli::supervisor::local_tunnel::TunnelSpec;
use crate::cli::tunnel_access::TunnelAccess;
use crate::cli::tunnel_access::peer_check;
use crate::error::Error;
use crate::error::Result;
use crate::model::access::Action;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::os::process;
use crate::state::runs;
use crate::state::runs::Run;
use crate::state::service_cache;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

/// Without `--timeout`. A path that works takes well under a second.
const DEFAULT_REACH_TIMEOUT: Duration = Duration::from_secs(5);

/// Walks the path to the hub step by step, finds the service, and proves that its agent reaches the target. Only then
/// is the port opened, and the drawing of the path shown. `--timeout` covers all of it; whatever is still in progress
/// when the time is up is cut off.
pub fn run(call: &Call) -> CommandResult {
    let name = name_of(call.args.positional(0).unwrap_or_default())?;
    let asked_port = asked_port(call, &name)?;
    if say_already_reached(call, &name, asked_port)? {
        return Ok(0);
    }
    if let Some(code) = background::detach(call, "reach", name.as_str(), None)? {
        return Ok(code);
    }
    let peer_check = peer_check(call)?;
    let deadline = Instant::now() + call.args.duration("timeout")?.unwrap_or(DEFAULT_REACH_TIMEOUT);
    let stop = call.stop.child();
    let hub = call.hub_at(call.hub_urls()?, &stop)?;
    call.say.line(&format!("🔗 Reaching {name}"));
    let mut report = Diagnosis {
        steps: hub_path::walk(call, &hub, deadline)?,
        latency: Duration::ZERO,
        path: String::new(),
    };
    let service = find(call, &hub.until(deadline), &name, &mut report)?;
    let check = call.args.flag("check");
    let spec = TunnelSpec {
        name: name.clone(),
        service: name.to_string(),
        // A check takes any free port. On the agent's own machine the service's port might be the very one where the
        // service is missing, and the tunnel would answer for it.
        asked: if check { Some(0) } else { asked_port },
        original: service.target_port,
        strict: check || call.args.value("port").is_some() || call.args.flag("strict-ports"),
    };
    let mut supervisor = Supervisor::new(call, "reach", &[name.to_string()]);
    supervisor.run.iter_mut().for_each(|run| run.note_hub(hub.url.to_string()));
    let began = Instant::now();
    supervisor.tunnels.check_timeout = deadline.saturating_duration_since(began);
    supervisor.tunnels.reconcile(&Arc::new(TunnelAccess::own(call, hub, peer_check)?), vec![spec])?;
    let trouble = supervisor.tunnels.take_trouble(&name);
    if trouble.is_none() {
        let found = format!("{}, end-to-end encrypted", service.agent_label);
        let tls = supervisor.tunnels.all().iter().find_map(LocalTunnel::negotiated).cloned();
        report.steps.push(PathStep { name: "Agent", found, took: began.elapsed(), tls });
        let path = supervisor.tunnels.all().first().map(LocalTunnel::path);
        report.path = path.unwrap_or_default();
    }
    report.draw(call, &name);
    if let Some(error) = trouble {
        stop.stop();
        return Err(error);
    }
    if check {
        call.say.result(&format!("[ok] {name} can be reached"));
        call.say.value(&report.as_json(&name, None));
        return Ok(0);
    }
    supervisor.tunnels.publish()?;
    for tunnel in supervisor.tunnels.all() {
        call.say.event(&report.as_json(&name, tunnel.port()));
        announce(call, asked_port, &service, tunnel);
    }
    if call.args.run.is_none() {
        background::how_to_end(call, name.as_str(), "Press Ctrl+C to disconnect");
    }
    let code = supervisor.stay(|_| Ok(Stay::On))?;
    drop(supervisor);
    call.say.event(&json!({ "event": "closed", "name": name }));
    if call.args.run.is_none() {
        call.say.line(&format!("[ok] Disconnected from {name}"));
    }
    Ok(code)
}

/// Says where the service is now, and what to type there.
fn announce(call: &Call, asked_port: Option<u16>, service: &ServiceInfo, tunnel: &LocalTunnel) {
    let (name, port) = (&service.name, tunnel.port().unwrap_or_default());
    let address = match asked_port {
        Some(asked) if asked != port => {
            let holder = process::shown_holder(asked);
            call.say.warn(&format!("Port {asked} is in use on this machine{holder}"));
            format!("localhost:{port} (auto-selected)")
        }
        _ => tunnel.shown_address(),
    };
    call.say.result(&format!("[ok] {name} → {address}"));
    if let Some(command) = service.protocol.client_command(service.target_port, port)
        && call.args.run.is_none()
    {
        call.say.line(&format!("  {command}"));
    }
    if wants_proxy(call) {
        proxy_autostart::say_address(call, name.as_str(), service.protocol != Protocol::Tcp);
    }
}

/// With `-d`: whether a process in the background has this service of this hub at a port already, and at the port that is
/// asked for now. Says where.
fn say_already_reached(call: &Call, name: &Name, asked_port: Option<u16>) -> Result<bool> {
    let is_plain = call.args.run.is_none() && !call.args.flag("check") && !call.is_background();
    if !call.args.flag("detach") || !is_plain {
        return Ok(false);
    }
    let hub = call.hub_urls()?.first().map(ToString::to_string);
    let is_same = |run: &Run| run.is_alive() && run.kind == "reach" && run.log.is_some() && run.hub == hub;
    for run in runs::all(&call.home).iter().filter(|run| is_same(run)) {
        let is_asked = |at: &str| asked_port.is_none_or(|port| at == format!("localhost:{port}"));
        if let Some(open) = run.open.iter().find(|open| open.name == name.as_str() && is_asked(&open.at)) {
            call.say.result(&format!("[ok] {name} is already at {} (PID {})", open.at, run.pid));
            call.say.event(&json!({ "event": "background", "pid": run.pid, "log": run.log, "at": open.at }));
            return Ok(true);
        }
    }
    Ok(false)
}

/// `reach NAME PORT` or `reach NAME --port PORT`.
fn asked_port(call: &Call, name: &Name) -> Result<Option<u16>> {
    match (call.args.positional(1), call.args.port("port")?) {
        (Some(_), Some(_)) => {
            Err(Error::usage("The port is given twice").hint(format!("Write: connect reach {name} PORT")))
        }
        (Some(text), None) => port_of(text).map(Some).map_err(|error| {
            error.hint("A port is a number from 1 to 65535; put -- before a command to run")
        }),
        (None, port) => Ok(port),
    }
}

fn find(call: &Call, hub: &Hub, name: &Name, report: &mut Diagnosis) -> Result<ServiceInfo> {
    let began = Instant::now();
    let services = hub.workspace_services()?;
    service_cache::remember(&call.home, &services);
    report.latency = began.elapsed();
    let named = services.iter().filter(|service| service.name == *name);
    let found = named.max_by_key(|service| service.status == Status::Online).cloned();
    let service = found.ok_or_else(|| {
        let known = services.iter().map(|service| service.name.as_str());
        let may_reach = hub.whoami().is_ok_and(|who| who.may(Action::Reach));
        let hint = if may_reach {
            did_you_mean(name.as_str(), known, "connect reach ", "List them: connect services")
        } else {
            "This key reaches nothing; ask for one with --role member".to_owned()
        };
        Error::new(format!("There is no service {name}")).hint(hint).with_code("no-such-service")
    })?;
    if service.status == Status::Offline {
        return Err(Error::new(format!("{name} is offline")).with_code("offline").hint(format!(
            "Its agent {} is not connected; start it there: connect expose {name} {}",
            service.agent_label, service.target_port
        )));
    }
    Ok(service)
}

/// Scripts get what they asked for and nothing else.
fn wants_proxy(call: &Call) -> bool {
    call.args.run.is_none() && !call.say.json && variable("CONNECT_NO_PROXY").is_none_or(|value| value == "0")
}

/// The path to the service, step by step.
struct Diagnosis {
    steps: Vec<PathStep>,
    latency: Duration,
    /// How the tunnel's sessions get to the agent, once that is known.
    path: String,
}

impl Diagnosis {
    fn draw(&self, call: &Call, name: &Name) {
        // All else in a line of the frame takes 28 columns.
        let room = width().saturating_sub(28);
        let found = room.min(40);
        let lines = self.steps.iter().map(|step| {
            format!(
                "{:<8}[ok] {:<found$} {:>5} ms",
                step.name,
                cut(&call.say.shown(&step.found), room),
                step.took.as_millis()
            )
        });
        let (to, wide) = ("to the hub and back", found + 5);
        let latency = format!("{:<8}{to:<wide$} {:>5} ms", "Latency", self.latency.as_millis());
        // The frame is as wide as what is seen.
        let path = (!self.path.is_empty()).then(|| format!("{:<8}{}", "Path", self.path));
        let lines: Vec<String> =
            lines.chain([latency]).chain(path).map(|line| call.say.shown(&line)).collect();
        let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        let title = format!("─ {name} ");
        let top = "─".repeat((width + 2).saturating_sub(title.chars().count()));
        call.say.line(&format!("\n  ┌{title}{top}┐"));
        lines.iter().for_each(|line| call.say.line(&format!("  │ {line:width$} │")));
        call.say.line(&format!("  └{}┘\n", "─".repeat(width + 2)));
    }

    fn as_json(&self, name: &Name, port: Option<u16>) -> serde_json::Value {
        let steps: Vec<_> = self
            .steps
            .iter()
            .map(|step| json!({ "step": step.name, "found": step.found, "ms": step.took.as_millis(), "tls": step.tls }))
            .collect();
        json!({ "event": if port.is_some() { "up" } else { "checked" }, "name": name, "localPort": port,
            "latencyMs": self.latency.as_millis(), "path": self.path, "steps": steps })
    }
}
