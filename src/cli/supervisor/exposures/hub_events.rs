//! What the agent reports of the hub: that it knows or refuses a service, is lost or back, or rotates this machine's key.

use serde_json::json;

use super::ExposureSet;
use super::HubRegistration;
use crate::cli::logs;
use crate::cli::next_key;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::name::Name;
use crate::tunnel::agent::AgentEvent;

impl ExposureSet<'_> {
    /// An error ends the command.
    pub fn on_event(&mut self, agent_number: u64, event: AgentEvent) -> Result<()> {
        if agent_number != self.agent_number {
            return Ok(());
        }
        match event {
            AgentEvent::Exposed { name, service, tunnel_port } => {
                self.register(&name, HubRegistration { service, tunnel_port });
            }
            AgentEvent::Refused { name, error } => return self.refuse(&name, error),
            AgentEvent::NextKey { sealed } => self.rotate_key(&sealed),
            AgentEvent::Lost(error) => return self.lose_hub(error),
            AgentEvent::Back => {
                self.outage = None;
                self.call.say.back();
                logs::note_exposure(self.call, "INFO", "The hub is back");
            }
        }
        Ok(())
    }

    /// Takes over the next secret of the key and proves it. Failing is no reason to end: the present one is still valid.
    fn rotate_key(&mut self, sealed: &str) {
        let Some(agent) = &self.agent else { return };
        match next_key::accept(self.call, agent.hub(), sealed)
            .and_then(|is_new| agent.register().map(|()| is_new))
        {
            Ok(false) => {}
            Ok(true) => {
                self.call.say.line("[ok] The hub has rotated this machine's key; the new one is saved");
                self.call.say.event(&json!({ "event": "keyRotated" }));
                logs::note_exposure(self.call, "INFO", "The key was rotated");
            }
            Err(error) => {
                let hint = error.hint.as_deref().unwrap_or("Run: connect up --rotate");
                self.call.say.warn(&format!("The key is rotated, but not here: {error}. {hint}"));
                logs::note_exposure(self.call, "WARN", &format!("The key is rotated, but not here: {error}"));
            }
        }
    }

    fn register(&mut self, name: &Name, registration: HubRegistration) {
        self.refused.remove(name);
        let Some(offer) = self.offers.get_mut(name) else { return };
        // The hub confirms every service again after an outage.
        if offer.registration.is_none() {
            let target = &offer.exposure.target;
            logs::note_exposure(self.call, "INFO", &format!("{name} exposed from {target}"));
            // A command that does not retry has its own words for what it exposes.
            if self.retries {
                self.call.say.line(&format!("[ok] {name} exposed from {target}"));
                self.call.say.event(
                    &json!({ "event": "exposed", "name": name, "target": target, "id": registration.service }),
                );
            }
        }
        offer.registration = Some(registration);
    }

    fn lose_hub(&mut self, error: Error) -> Result<()> {
        let is_key_rejected = error.is_status(401) || error.is_status(403);
        if is_key_rejected && self.hub.is_none() {
            self.stop_agent();
            return self.delay_agent(error);
        }
        // While the command starts, only an unreachable hub is worth waiting for.
        let is_starting = !self.retries && !self.is_registered();
        if is_key_rejected || (is_starting && error.kind != ErrorKind::Unreachable) {
            return Err(error);
        }
        self.outage = Some(if error.may_pass() { "the hub is away".to_owned() } else { error.to_string() });
        self.call.say.lost(&error);
        logs::note_exposure(self.call, "WARN", &format!("The hub is lost: {error}"));
        Ok(())
    }
}
