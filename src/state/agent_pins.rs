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

    /// An error if another agent is pinned, unless it is one that this agent has `replaced`. Returns whether that is so.
    pub fn check(&self, name: &str, agent: Fingerprint, replaced: &[Fingerprint]) -> Result<bool> {
        check(name, self.all()?.get(name), agent, replaced)
    }

    /// Pins an agent that has proved to be the one that was checked. Returns whether it has replaced the pinned one.
    pub fn pin(&self, name: &str, agent: Fingerprint, replaced: &[Fingerprint]) -> Result<bool> {
        if self.all()?.get(name) == Some(&agent) {
            return Ok(false);
        }
        let at = format!("{}{name}", self.scope);
        let pinned = self.home.update(AGENT_PINS_FILE, |all: &mut PinnedAgents| {
            let checked = check(name, all.get(&at), agent, replaced);
            if checked.is_ok() {
                all.insert(at, agent);
            }
            checked
        });
        pinned.unwrap_or_else(|error| {
            // A folder that cannot be written, as in a container, is no reason to reach nothing.
            log::info!("the agent of {name} is not remembered: {error}");
            Ok(false)
        })
    }

    /// False if there was none.
    pub fn forget(&self, name: &str) -> Result<bool> {
        let at = format!("{}{name}", self.scope);
        self.home.update(AGENT_PINS_FILE, |all: &mut PinnedAgents| all.remove(&at).is_some())
    }
}

fn check(
    name: &str,
    pinned: Option<&Fingerprint>,
    agent: Fingerprint,
    replaced: &[Fingerprint],
) -> Result<bool> {
    match pinned {
        Some(pinned) if replaced.contains(pinned) => Ok(true),
        Some(pinned) if *pinned != agent => Err(agent_changed(name, *pinned, agent)),
        _ => Ok(false),
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
        pins.check("db", first, &[]).unwrap();
        assert!(pins.all().unwrap().is_empty(), "pinned before the proof");
        assert!(!pins.pin("db", first, &[]).unwrap());
        pins.check("db", first, &[]).unwrap();
        for refused in [pins.check("db", other, &[]), pins.pin("db", other, &[])] {
            assert_eq!(refused.unwrap_err().code(), AGENT_CHANGED_CODE);
        }
        assert!(pins.pin("db", other, &[first]).unwrap() && !pins.pin("db", other, &[first]).unwrap());
        assert!(pins.check("db", first, &[]).is_err());
        for elsewhere in [AgentPins::new(&home, "hub", "x"), AgentPins::new(&home, "other", "w")] {
            elsewhere.check("db", other, &[]).unwrap();
            assert!(!elsewhere.forget("db").unwrap());
        }
        assert!(pins.forget("db").unwrap() && !pins.forget("db").unwrap());
        pins.check("db", first, &[]).unwrap();
    }
}
