//! `known_agents.json`: the agent that each service had when it was first used. Another agent is refused.

use std::collections::BTreeMap;

use super::home::Home;
use crate::error::Error;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;

const AGENT_PINS_FILE: &str = "known_agents.json";

type AgentPins = BTreeMap<String, Fingerprint>;

/// Pins the agent on first use, if the folder can be written, and refuses any other after that. `what` is the service with its hub, as in
/// `https://hub/db`.
pub fn check_or_pin(home: &Home, what: &str, agent: Fingerprint) -> Result<()> {
    let known: AgentPins = home.read(AGENT_PINS_FILE)?.unwrap_or_default();
    let pinned = match known.get(what) {
        Some(pinned) => *pinned,
        None => {
            let pin = |known: &mut AgentPins| *known.entry(what.to_owned()).or_insert(agent);
            // A folder that cannot be written, as in a container, is no reason to reach nothing.
            home.update(AGENT_PINS_FILE, pin).unwrap_or_else(|error| {
                log::info!("the agent of {what} is not remembered: {error}");
                agent
            })
        }
    };
    if pinned == agent {
        return Ok(());
    }
    Err(Error::new(format!("The agent behind {what} is not the one it was"))
        .because(format!("it was {}, now it is {}", pinned.pin(), agent.pin()))
        .hint(format!(
            "Somebody may stand in between, or the service moved to another machine. Ask its owner; if it moved, remove the line \"{what}\" from {}",
            home.file(AGENT_PINS_FILE).display()
        )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn the_first_agent_is_pinned_and_another_is_refused() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-known")));
        let (first, other) = (secret::sha256(b"1"), secret::sha256(b"2"));
        check_or_pin(&home, "https://h/db", first).unwrap();
        check_or_pin(&home, "https://h/db", first).unwrap();
        assert!(check_or_pin(&home, "https://h/db", other).is_err());
        check_or_pin(&home, "https://h/web", other).unwrap();
    }
}
