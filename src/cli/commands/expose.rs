//! `connect expose`: keeps a service reachable until Ctrl-C.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use serde_json::json;

use crate::cli::Call;
use crate::cli::Outcome;
use crate::cli::args::name_of;
use crate::cli::context::not_configured;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::record::Protocol;
use crate::model::target::Target;
use crate::net::connect::DEADLINE;
use crate::net::connect::dial;
use crate::os::files;
use crate::state::runs;
use crate::tunnel::agent::Agent;
use crate::tunnel::agent::Event;
use crate::tunnel::agent::Exposure;
use crate::tunnel::agent::Myself;

pub fn run(call: &Call) -> Outcome {
    let exposure = wanted(call)?;
    let config = call.config()?;
    let hub = call.hub()?;
    let id = config.agent_id.ok_or_else(not_configured)?;
    let myself = Myself { id, label: config.label.unwrap_or_default(), identity: call.identity()? };
    let (name, target) = (exposure.name.clone(), exposure.target.clone());
    let run = runs::register(&call.home, "expose", &[name.to_string()])?;
    let _mine = alone(call, &name)?;
    let (tell, told) = mpsc::channel();
    let end = tell.clone();
    let woken = call.stop.on_stop(move || drop(end.send(None)));
    let agent = Agent::start(
        Arc::clone(&hub),
        &myself,
        Box::new(move |event| drop(tell.send(Some(event)))),
        &call.stop,
    )?;
    agent.expose(exposure);
    let mut exposed = false;
    while let Ok(Some(event)) = told.recv() {
        match event {
            Event::Exposed { service, tunnel_port, .. } if !exposed => {
                exposed = true;
                announce(call, &name, &target, &service, tunnel_port);
            }
            Event::Exposed { .. } => {}
            Event::Refused { error, .. } => return Err(error),
            Event::Lost(error) if !exposed && error.kind != Kind::Unreachable => return Err(error),
            Event::Lost(error) => {
                call.say.event(&json!({ "event": "lost", "reason": error.to_string() }));
                call.say.warn(&format!("{error}; trying again until it is back"));
            }
            Event::Back => {
                call.say.event(&json!({ "event": "back" }));
                call.say.line("[ok] The hub is back");
            }
        }
    }
    drop((woken, agent, run));
    call.say.event(&json!({ "event": "closed", "name": name }));
    Ok(0)
}

fn wanted(call: &Call) -> Result<Exposure> {
    let args = &call.args;
    let (first, second) = (args.positional(0).unwrap_or_default(), args.positional(1));
    let (name, target) = match (second, args.value("name")) {
        (Some(target), None) => (first, target),
        (None, Some(name)) => (name, first),
        (Some(_), Some(_)) => {
            return Err(Error::usage("The name is given twice")
                .hint("Write: connect expose NAME PORT, or [HOST:]PORT --name NAME"));
        }
        (None, None) if Target::parse(first).is_none() => {
            return Err(Error::usage("The service needs a port")
                .hint(format!("Write: connect expose {} PORT", first.escape_debug())));
        }
        (None, None) => {
            return Err(Error::usage("The service needs a name")
                .hint(format!("Write: connect expose NAME {}", first.escape_debug())));
        }
    };
    let target = Target::parse(target).ok_or_else(|| {
        Error::usage(format!("`{}` is no port and no HOST:PORT", target.escape_debug()))
            .hint("Write it like 5432, 192.168.1.50:8080 or [::1]:3000")
    })?;
    let protocol = args.value("protocol").unwrap_or("tcp");
    let protocol = Protocol::parse(protocol).ok_or_else(|| {
        Error::usage(format!("There is no protocol `{}`", protocol.escape_debug()))
            .hint("Use tcp, http or https")
    })?;
    Ok(Exposure { name: name_of(name)?, target, protocol })
}

/// Two processes of one agent that expose the same name would take it from each other without end.
fn alone(call: &Call, name: &Name) -> Result<files::Lock> {
    files::try_lock(&call.home.file(&format!("run/expose-{name}.lock")))?.ok_or_else(|| {
        Error::new(format!("{name} is already exposed by another process of this machine"))
            .hint("End that one first, or choose another name")
    })
}

fn announce(call: &Call, name: &Name, target: &Target, service: &str, tunnel_port: Option<u16>) {
    let answers = dial(&target.host, target.port, Instant::now() + DEADLINE / 5).is_ok();
    call.say.event(&json!({ "event": "exposed", "name": name, "target": target.to_string(), "id": service,
        "tunnelPort": tunnel_port, "answers": answers }));
    call.say.line(&format!("[ok] {name} → {target} is exposed"));
    if !answers {
        call.say.warn(&format!("Nothing answers at {target} yet; start the service, {name} stays exposed"));
    }
    call.say.line("");
    call.say.line(&format!("  Reach it from any machine: connect reach {name}"));
    call.say.line("  Press Ctrl+C to stop exposing it");
}
