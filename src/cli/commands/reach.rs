//! `connect reach`: one service on a port of this machine.

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
use crate::cli::local_tunnel::TunnelAccess;
use crate::cli::local_tunnel::TunnelSpec;
use crate::cli::proxy_autostart;
use crate::cli::tunnels::TunnelSet;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::state::service_cache;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

const DEFAULT_REACH_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(call: &Call) -> CommandResult {
    let name = name_of(call.args.positional(0).unwrap_or_default())?;
    let asked_port = match (call.args.positional(1), call.args.port("port")?) {
        (Some(_), Some(_)) => {
            return Err(
                Error::usage("The port is given twice").hint(format!("Write: connect reach {name} PORT"))
            );
        }
        (Some(text), None) => Some(port_of(text)?),
        (None, port) => port,
    };
    if let Some(code) = background::detach(call, "reach", name.as_str(), &[])? {
        return Ok(code);
    }
    let deadline = Instant::now() + call.args.duration("timeout")?.unwrap_or(DEFAULT_REACH_TIMEOUT);
    // Who gives up waits for nothing that is still on its way.
    let way = call.stop.child();
    let hub = call.hub_at(call.hub_urls()?, &way)?;
    call.say.line(&format!("🔗 Reaching {name}"));
    let mut report = Diagnosis { steps: hub_path::walk(call, &hub, deadline)?, latency: Duration::ZERO };
    let service = find(call, &hub_path::within(&hub, deadline), &name, &mut report)?;
    let mut party = TunnelSet::new(call, "reach", &[name.to_string()], TunnelAccess::own(call, hub)?);
    let began = Instant::now();
    let check = call.args.flag("check");
    party.patience = deadline.saturating_duration_since(began);
    party.add(vec![TunnelSpec {
        name: name.clone(),
        service: name.to_string(),
        // Whoever only looks takes no port but any free one: on the agent's own machine it might be the very
        // one that the service is missing from, and the tunnel would answer for it.
        port: if check { 0 } else { asked_port.unwrap_or(service.target_port) },
        chosen: check || asked_port.is_some(),
        strict: check,
    }]);
    let Some(member) = party.members().first() else { return Ok(1) };
    if member.trouble.is_none() {
        report.add("Agent", format!("{}, end-to-end encrypted", service.agent_label), began.elapsed());
    }
    report.draw(call, &name);
    let shown = member.shown();
    let port = member.port();
    if let Some(error) = party.take_trouble(&name) {
        way.stop();
        return Err(error);
    }
    if check {
        call.say.result(&format!("[ok] {name} can be reached"));
        call.say.value(&report.as_json(&name, None));
        return Ok(0);
    }
    party.settle()?;
    call.say.event(&report.as_json(&name, port));
    call.say.result(&format!("[ok] {name} → {shown}"));
    if wants_proxy(call)
        && let Some(line) = proxy_autostart::address_line(call, name.as_str())
    {
        call.say.line(&format!("  {line}"));
    }
    if call.args.run.is_none() {
        background::how_to_end(call, name.as_str(), "Press Ctrl+C to disconnect");
    }
    let code = party.stay(&mut |_| Ok(()))?;
    call.say.event(&json!({ "event": "closed", "name": name }));
    Ok(code)
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

/// Scripts get what they asked for and nothing beside it.
fn wants_proxy(call: &Call) -> bool {
    call.args.run.is_none() && !call.say.json && variable("CONNECT_NO_PROXY").is_none_or(|value| value == "0")
}

/// What was found on the way.
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
