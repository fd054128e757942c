//! `connect expose`: keeps a service reachable until Ctrl-C.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::name_of;
use crate::cli::background;
use crate::cli::commands::daemon;
use crate::cli::supervisor::Stay;
use crate::cli::supervisor::Supervisor;
use crate::cli::supervisor::exposures::RegisteredService;
use crate::discover;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::target::Target;
use crate::tunnel::agent::Exposure;
use crate::wire::api::ServiceInfo;

pub fn run(call: &Call) -> CommandResult {
    let exposure = requested(call)?;
    if call.args.flag("take-over") {
        take_over(call, &exposure.name)?;
    }
    if call.args.flag("keep") {
        return daemon::keep(call, &exposure);
    }
    let name = exposure.name.clone();
    if let Some(code) = background::detach(call, "expose", name.as_str(), None)? {
        return Ok(code);
    }
    let mut supervisor = Supervisor::new(call, "expose", &[name.to_string()]);
    for service in supervisor.expose(&call.hub()?, vec![exposure])? {
        announce(call, &service);
    }
    let code = supervisor.stay(|_| Ok(Stay::On))?;
    drop(supervisor);
    call.say.event(&json!({ "event": "closed", "name": name }));
    Ok(code)
}

/// Removes the name's record if another agent has it. The hub allows that to this agent's key and to admins.
fn take_over(call: &Call, name: &Name) -> Result<()> {
    let (hub, own) = (call.hub()?, call.config()?.agent_id.clone());
    let is_others = |service: &&ServiceInfo| service.name == *name && Some(&service.agent_id) != own.as_ref();
    if let Some(taken) = hub.workspace_services()?.iter().find(is_others) {
        hub.remove_service(&taken.id, true)?;
        call.say.line(&format!("[ok] {name} was taken over from {}", taken.agent_label));
    }
    Ok(())
}

/// `NAME TARGET`, or `TARGET --name NAME`.
fn requested(call: &Call) -> Result<Exposure> {
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
    let is_swapped = Target::parse(target).is_none() && Target::parse(first).is_some();
    let swapped =
        if is_swapped { format!("Did you mean: connect expose {target} {first}") } else { String::new() };
    let (target, name) = (target_of(target).map_err(|error| error.hint(swapped))?, name_of(name)?);
    let protocol = match args.value("protocol") {
        Some(text) => Protocol::parse(text)
            .ok_or_else(|| Error::unknown("protocol", text).hint("Use tcp, http or https"))?,
        None => discover::protocol_of(discover::identify(&target, &call.stop).as_ref(), target.port),
    };
    Ok(Exposure { name, target, protocol })
}

pub fn target_of(text: &str) -> Result<Target> {
    Target::parse(text).ok_or_else(|| {
        Error::misread(text, "is neither a port nor HOST:PORT")
            .hint("Write it like 5432, 192.168.1.50:8080 or [::1]:3000")
    })
}

fn announce(call: &Call, service: &RegisteredService) {
    let Exposure { name, target, protocol } = &service.exposure;
    call.say.event(
        &json!({ "event": "exposed", "name": name, "target": target.to_string(), "id": service.registration.service,
        "protocol": protocol, "tunnelPort": service.registration.tunnel_port, "answers": service.answers }),
    );
    call.say.result(&format!("[ok] {name} → {target} is exposed"));
    if !service.answers {
        call.say.warn(&format!("Nothing answers at {target} yet; start the service, {name} stays exposed"));
    }
    call.say.line(&format!("\n  Reach it from any machine: connect reach {name}"));
    background::how_to_end(call, name.as_str(), "Press Ctrl+C to stop exposing it");
}
