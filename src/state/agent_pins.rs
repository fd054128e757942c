//! `known_agents.json`: the agents that have proved who they are. Another identity is refused, as ssh refuses a host key.
//!
//! A pin stands under `HUB/WORKSPACE/NAME`: the hub by its own pin if it has one, the workspace as it was at the login, so
//! that a hub cannot evade a pin by another address or name. A share has names of its own, so its agent stands under its id.

use std::collections::BTreeMap;

use super::home::Home;
use crate::error::Error;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;

/// The code of the refusal of a changed identity, wherever it is shown.
pub const AGENT_CHANGED_CODE: &str = "agent-changed";
const AGENT_PINS_FILE: &str = "known_agents.json";

type PinnedAgents = BTreeMap<String, Fingerprint>;

/// The pins of one workspace.
#[derive(Clone)]
pub struct AgentPins {
    home: Home,
    scope: String,
}

impl AgentPins {
    pub fn new(home: &Home, hub: &str, workspace: &str) -> Self {
        Self { home: home.clone(), scope: format!("{hub}/{workspace}/") }
    }

    pub fn all(&self) -> Result<PinnedAgents> {
        let all: PinnedAgents = self.home.read(AGENT_PINS_FILE)?.unwrap_or_default();
        let own =
            all.into_iter().filter_map(|(at, agent)| Some((at.strip_prefix(&self.scope)?.to_owned(), agent)));
        Ok(own.collect())
    }

    /// An error if another agent is pinned.
    pub fn check(&self, name: &str, agent: Fingerprint) -> Result<()> {
        match self.all()?.get(name) {
            Some(pinned) if *pinned != agent => Err(agent_changed(name, *pinned, agent)),
            _ => Ok(()),
        }
    }

    /// Pins an agent that has proved to be the one that was checked.
    pub fn pin(&self, name: &str, agent: Fingerprint) -> Result<()> {
        if self.all()?.contains_key(name) {
            return Ok(());
        }
        let at = format!("{}{name}", self.scope);
        match self.home.update(AGENT_PINS_FILE, |all: &mut PinnedAgents| *all.entry(at).or_insert(agent)) {
            Ok(pinned) if pinned != agent => return Err(agent_changed(name, pinned, agent)),
            Ok(_) => {}
            // A folder that cannot be written, as in a container, is no reason to reach nothing.
            Err(error) => log::info!("the agent of {name} is not remembered: {error}"),
        }
        Ok(())
    }

    /// False if there was none.
    pub fn forget(&self, name: &str) -> Result<bool> {
        let at = format!("{}{name}", self.scope);
        self.home.update(AGENT_PINS_FILE, |all: &mut PinnedAgents| all.remove(&at).is_some())
    }
}

pub fn agent_changed(name: &str, pinned: Fingerprint, agent: Fingerprint) -> Error {
    Error::new(format!("The agent of {name} is not the one it was"))
        .because(format!("its identity was {}, now it is {}", pinned.pin(), agent.pin()))
        .hint(format!(
            "Somebody may stand in between, or its machine was replaced. Ask its owner; if it was: connect forget {name}"
        ))
        .with_code(AGENT_CHANGED_CODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn the_agent_that_was_pinned_stays_until_it_is_forgotten_and_in_its_workspace_only() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-known")));
        let pins = AgentPins::new(&home, "hub", "w");
        let (first, other) = (secret::sha256(b"1"), secret::sha256(b"2"));
        pins.check("db", first).unwrap();
        assert!(pins.all().unwrap().is_empty(), "pinned before the proof");
        pins.pin("db", first).unwrap();
        pins.check("db", first).unwrap();
        assert_eq!(pins.check("db", other).unwrap_err().code(), AGENT_CHANGED_CODE);
        for elsewhere in [AgentPins::new(&home, "hub", "x"), AgentPins::new(&home, "other", "w")] {
            elsewhere.check("db", other).unwrap();
            assert!(!elsewhere.forget("db").unwrap());
        }
        assert!(pins.forget("db").unwrap() && !pins.forget("db").unwrap());
        pins.check("db", other).unwrap();
    }
}
