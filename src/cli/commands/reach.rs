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
use crate::cli::supervisor::Stay;
use crate::cli::supervisor::Supervisor;
use crate::cli::supervisor::local_tunnel::TunnelSpec;
use crate::cli::tunnel_access::TunnelAccess;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
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
    if let Some(code) = background::detach(call, "reach", name.as_str(), &[])? {
        return Ok(code);
    }
    let deadline = Instant::now() + call.args.duration("timeout")?.unwrap_or(DEFAULT_REACH_TIMEOUT);
    let stop = call.stop.child();
    let hub = call.hub_at(call.hub_urls()?, &stop)?;
    call.say.line(&format!("🔗 Reaching {name}"));
    let mut report = Diagnosis { steps: hub_path::walk(call, &hub, deadline)?, latency: Duration::ZERO };
    let service = find(call, &hub_path::within(&hub, deadline), &name, &mut report)?;
    let check = call.args.flag("check");
    let spec = TunnelSpec {
        name: name.clone(),
        service: name.to_string(),
        // A check takes any free port. On the agent's own machine the service's port might be the very one where the
        // service is missing, and the tunnel would answer for it.
        port: if check { 0 } else { asked_port.unwrap_or(service.target_port) },
        chosen: check || asked_port.is_some(),
        strict: check,
    };
    let mut supervisor = Supervisor::new(call, "reach", &[name.to_string()]);
    let began = Instant::now();
    supervisor.tunnels.check_timeout = deadline.saturating_duration_since(began);
    supervisor.tunnels.reconcile(&Arc::new(TunnelAccess::own(call, hub)?), vec![spec])?;
    let trouble = supervisor.tunnels.take_trouble(&name);
    if trouble.is_none() {
        report.add("Agent", format!("{}, end-to-end encrypted", service.agent_label), began.elapsed());
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
        call.say.result(&format!("[ok] {name} → {}", tunnel.shown_address()));
    }
    if wants_proxy(call)
        && let Some(line) = proxy_autostart::address_line(call, name.as_str())
    {
        call.say.line(&format!("  {line}"));
    }
    if call.args.run.is_none() {
        background::how_to_end(call, name.as_str(), "Press Ctrl+C to disconnect");
    }
    let code = supervisor.stay(|_| Ok(Stay::On))?;
    drop(supervisor);
    call.say.event(&json!({ "event": "closed", "name": name }));
    Ok(code)
}

/// `reach NAME PORT` or `reach NAME --port PORT`.
fn asked_port(call: &Call, name: &Name) -> Result<Option<u16>> {
    match (call.args.positional(1), call.args.port("port")?) {
        (Some(_), Some(_)) => {
            Err(Error::usage("The port is given twice").hint(format!("Write: connect reach {name} PORT")))
        }
        (Some(text), None) => port_of(text).map(Some),
        (None, port) => Ok(port),
    }
}

fn find(call: &Call, hub: &Hub, name: &Name, report: &mut Diagnosis) -> Result<ServiceInfo> {
    let began = Instant::now();
    let services = hub.services()?;
    service_cache::remember(&call.home, &services);
    report.latency = began.elapsed();
    let named = services.iter().filter(|service| service.name == *name);
    let found = named.max_by_key(|service| service.status == Status::Online).cloned();
    let service = found.ok_or_else(|| {
        let known = services.iter().map(|service| service.name.as_str());
        let hint = did_you_mean(name.as_str(), known, "connect reach ", "List them: connect services");
        Error::new(format!("There is no service {name}")).hint(hint)
    })?;
    if service.status == Status::Offline {
        return Err(Error::new(format!("{name} is offline")).hint(format!(
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
}

impl Diagnosis {
    fn add(&mut self, step: &'static str, found: String, took: Duration) {
        self.steps.push(PathStep { name: step, found, took });
    }

    fn draw(&self, call: &Call, name: &Name) {
        let lines = self
            .steps
            .iter()
            .map(|step| format!("{:<8}[ok] {:<40} {:>5} ms", step.name, step.found, step.took.as_millis()));
        let latency =
            format!("{:<8}{:<45} {:>5} ms", "Latency", "to the hub and back", self.latency.as_millis());
        // The frame is as wide as what is seen.
        let lines: Vec<String> = lines.chain([latency]).map(|line| call.say.shown(&line)).collect();
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
            .map(|step| json!({ "step": step.name, "found": step.found, "ms": step.took.as_millis() }))
            .collect();
        json!({ "event": if port.is_some() { "up" } else { "checked" }, "name": name, "localPort": port,
            "latencyMs": self.latency.as_millis(), "steps": steps })
    }
}
