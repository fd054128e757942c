//! `connect reach`: one service on a port of this machine.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::proxy;
use crate::api::Hub;
use crate::cli::Call;
use crate::cli::Outcome;
use crate::cli::args::name_of;
use crate::cli::args::port_of;
use crate::cli::context::variable;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::ports::candidates;
use crate::model::suggest;
use crate::net::connect::dial_hub;
use crate::net::connect::resolve;
use crate::state::home::Home;
use crate::state::known;
use crate::state::ports;
use crate::state::routes;
use crate::state::runs;
use crate::tunnel::joiner::Bound;
use crate::tunnel::joiner::Event;
use crate::tunnel::joiner::Tunnel;
use crate::tunnel::joiner::everyone;
use crate::tunnel::pool::Opener;
use crate::wire::api::AskSession;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(call: &Call) -> Outcome {
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
    let patience = call.args.duration("timeout")?.unwrap_or(PATIENCE);
    let hub = call.hub()?;
    call.say.line(&format!("🔗 Reaching {name}"));
    let mut report = Diagnosis::default();
    look(&hub, &mut report, patience)?;
    let service = find(&hub, &name, &mut report)?;
    let original = asked_port.unwrap_or(service.target_port);
    let last = if asked_port.is_some() { None } else { ports::last_time(&call.home, name.as_str()) };
    let bound = Bound::first_free(candidates(original, last, false)).ok_or_else(|| no_port(original))?;
    let port = bound.port;
    let tunnel = open(call, &hub, &name, bound)?;
    let latency = tunnel.prove().inspect_err(|_| report.draw(call, &name))?;
    report.add("Agent", format!("{}, end-to-end encrypted", service.agent_label), latency);
    report.draw(call, &name);
    if call.args.flag("check") {
        call.say.result(&format!("[ok] {name} can be reached"));
        call.say.value(&report.as_json(&name, None));
        return Ok(0);
    }
    let _run = runs::register(&call.home, "reach", &[name.to_string()])?;
    ports::remember(&call.home, name.as_str(), port)?;
    let _route = routes::add(&call.home, name.as_str(), port)?;
    announce(call, &name, &report, (original, port));
    if wants_proxy(call)
        && let Some(line) = proxy::beside_reach(call, name.as_str())
    {
        call.say.line(&format!("  {line}"));
    }
    if call.args.run.is_none() {
        call.say.line("");
        call.say.line("  Press Ctrl+C to disconnect");
    }
    tunnel.watch();
    let code = stay(call, &[(name.clone(), port)])?;
    drop(tunnel);
    call.say.event(&json!({ "event": "closed", "name": name }));
    Ok(code)
}

/// Until Ctrl-C, or until the command behind `--` ends.
fn stay(call: &Call, services: &[(Name, u16)]) -> Outcome {
    let (Some(command), Some(signals)) = (&call.args.run, &call.signals) else {
        call.stop.wait();
        return Ok(0);
    };
    call.go_on()?;
    signals.run(command, &environment(services), |_| ())
}

/// `STAGING_DB_HOST`, `STAGING_DB_PORT` and `STAGING_DB_ADDR` for the service `staging-db`.
fn environment(services: &[(Name, u16)]) -> Vec<(String, String)> {
    let three = |(name, port): &(Name, u16)| {
        let name = name.for_environment();
        [
            (format!("{name}_HOST"), "127.0.0.1".to_owned()),
            (format!("{name}_PORT"), port.to_string()),
            (format!("{name}_ADDR"), format!("127.0.0.1:{port}")),
        ]
    };
    services.iter().flat_map(three).collect()
}

fn no_port(original: u16) -> Error {
    Error::new(format!("Port {original} in use and no alternatives available"))
        .hint(format!("Stop what holds it: lsof -ti:{original} | xargs kill, or choose one: --port PORT"))
}

fn open(call: &Call, hub: &Arc<Hub>, name: &Name, bound: Bound) -> Result<Tunnel> {
    let identity = call.identity()?;
    let ask = AskSession { service: name.to_string(), fingerprint: identity.fingerprint, share: None };
    let (home, what): (Home, String) = (call.home.clone(), format!("{}/{name}", hub.url));
    let approve = Box::new(move |granted: &crate::wire::api::SessionGranted| {
        known::check_or_pin(&home, &what, granted.agent_fingerprint)
    });
    let opener = Opener::new(Arc::clone(hub), &identity, ask, approve)?;
    let (told, who) = (reporter(call), name.clone());
    Tunnel::start(bound, opener, everyone, Box::new(move |event| told(&who, event)), &call.stop)
}

/// One line each time the service goes or comes back.
fn reporter(call: &Call) -> impl Fn(&Name, Event) + Send + Sync + 'static {
    let say = call.say.clone();
    move |name, event| match event {
        Event::Up => {
            say.event(&json!({ "event": "up", "name": name }));
            say.line(&format!("[ok] {name} is back"));
        }
        Event::Down(error) => {
            say.event(&json!({ "event": "down", "name": name, "reason": error.to_string() }));
            say.warn(&format!("{name} is away: {error}"));
        }
    }
}

/// The way to the hub, step by step.
fn look(hub: &Hub, report: &mut Diagnosis, patience: Duration) -> Result<()> {
    let (host, port) = (&hub.url.host, hub.url.port);
    let deadline = Instant::now() + patience;
    let began = Instant::now();
    let addresses = resolve(host, port, deadline)?;
    let shown = addresses.first().map(|address| address.ip().to_string()).unwrap_or_default();
    report.add("DNS", format!("{host} → {shown}"), began.elapsed());
    let began = Instant::now();
    drop(dial_hub(host, port, deadline)?);
    report.add("TCP", format!("port {port}"), began.elapsed());
    let began = Instant::now();
    hub.whoami()?;
    report.add("TLS", "the hub proved who it is".into(), began.elapsed());
    Ok(())
}

fn find(hub: &Hub, name: &Name, report: &mut Diagnosis) -> Result<ServiceInfo> {
    let began = Instant::now();
    let services = hub.services()?;
    report.latency = began.elapsed();
    let named = services.iter().filter(|service| service.name == *name);
    let found = named.max_by_key(|service| service.status == Status::Online).cloned();
    let service = found.ok_or_else(|| {
        let error = Error::new(format!("There is no service {name}"));
        match suggest::nearest(name.as_str(), services.iter().map(|service| service.name.as_str())) {
            Some(near) => error.hint(format!("Did you mean: connect reach {near}")),
            None => error.hint("List them: connect services"),
        }
    })?;
    if service.status == Status::Offline {
        return Err(Error::new(format!("{name} is offline")).hint(format!(
            "Its agent {} is not connected; start it there: connect expose {name} {}",
            service.agent_label, service.target_port
        )));
    }
    Ok(service)
}

fn announce(call: &Call, name: &Name, report: &Diagnosis, (original, port): (u16, u16)) {
    call.say.event(&report.as_json(name, Some(port)));
    let moved = if port == original { String::new() } else { format!(" (was {original})") };
    call.say.result(&format!("[ok] {name} → localhost:{port}{moved}"));
}

/// Scripts get what they asked for and nothing beside it.
fn wants_proxy(call: &Call) -> bool {
    call.args.run.is_none() && !call.say.json && variable("CONNECT_NO_PROXY").is_none_or(|value| value == "0")
}

/// What was found on the way.
#[derive(Default)]
struct Diagnosis {
    steps: Vec<(&'static str, String, Duration)>,
    latency: Duration,
}

impl Diagnosis {
    fn add(&mut self, step: &'static str, found: String, took: Duration) {
        self.steps.push((step, found, took));
    }

    fn draw(&self, call: &Call, name: &Name) {
        let mut lines: Vec<String> = self
            .steps
            .iter()
            .map(|(step, found, took)| format!("{step:<8}[ok] {found:<40} {:>5} ms", took.as_millis()))
            .collect();
        lines.push(format!(
            "{:<8}{:<45} {:>5} ms",
            "Latency",
            "to the hub and back",
            self.latency.as_millis()
        ));
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
            .map(|(step, found, took)| json!({ "step": step, "found": found, "ms": took.as_millis() }))
            .collect();
        json!({ "event": if port.is_some() { "up" } else { "checked" }, "name": name, "localPort": port,
            "latencyMs": self.latency.as_millis(), "steps": steps })
    }
}
