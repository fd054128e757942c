//! `connect services`.

use crate::cli::Call;
use crate::cli::Outcome;
use crate::cli::say::columns;
use crate::state::seen;

pub fn run(call: &Call) -> Outcome {
    let services = call.hub()?.services()?;
    seen::remember(&call.home, &services);
    call.say.value(&services);
    if services.is_empty() {
        call.say.line("No services yet. Offer one beside it: connect expose NAME PORT");
        return Ok(0);
    }
    let rows = services.iter().map(|service| {
        let tunnel = service.tunnel_port.map_or("-".to_owned(), |port| port.to_string());
        let port = service.target_port.to_string();
        [
            service.name.to_string(),
            port,
            tunnel,
            service.status.as_str().to_owned(),
            service.protocol.as_str().to_owned(),
            service.agent_label.clone(),
        ]
    });
    call.say.result(&columns(&["NAME", "PORT", "TUNNEL", "STATUS", "PROTOCOL", "AGENT"], rows));
    Ok(0)
}
