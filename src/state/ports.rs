//! `ports.json`: the local port that each service of each hub had last time, so that it gets the same one again.

use std::collections::BTreeMap;

use super::home::Home;
use crate::error::Result;

const PORTS_FILE: &str = "ports.json";
/// More services than one user reaches. At the limit the file starts over empty.
const REMEMBERED_PORTS_LIMIT: usize = 1000;

/// By hub and name. Earlier versions wrote the name alone; such an entry holds for every hub.
type RememberedPorts = BTreeMap<String, u16>;

pub fn last_time(home: &Home, hub: &str, name: &str) -> Option<u16> {
    let ports: RememberedPorts = home.read(PORTS_FILE).ok().flatten()?;
    ports.get(&at(hub, name)).or_else(|| ports.get(name)).copied()
}

pub fn remember(home: &Home, hub: &str, name: &str, port: u16) -> Result<()> {
    if last_time(home, hub, name) == Some(port) {
        return Ok(());
    }
    home.update(PORTS_FILE, |ports: &mut RememberedPorts| {
        if ports.len() >= REMEMBERED_PORTS_LIMIT {
            ports.clear();
        }
        ports.insert(at(hub, name), port);
    })
}

fn at(hub: &str, name: &str) -> String {
    format!("{hub}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    fn home() -> Home {
        Home::at(std::env::temp_dir().join(secret::id("connect-ports")))
    }

    #[test]
    fn services_of_one_name_at_two_hubs_have_a_port_each() {
        let home = home();
        remember(&home, "https://a", "db", 5432).unwrap();
        remember(&home, "https://b", "db", 5433).unwrap();
        assert_eq!(last_time(&home, "https://a", "db"), Some(5432));
        assert_eq!(last_time(&home, "https://b", "db"), Some(5433));
        assert_eq!(last_time(&home, "https://c", "db"), None);
    }

    #[test]
    fn what_an_earlier_version_remembered_holds_until_a_hub_has_its_own() {
        let home = home();
        home.write(PORTS_FILE, &RememberedPorts::from([("db".into(), 5434), ("web".into(), 8081)])).unwrap();
        assert_eq!(last_time(&home, "https://a", "db"), Some(5434));
        remember(&home, "https://a", "db", 5432).unwrap();
        assert_eq!(last_time(&home, "https://a", "db"), Some(5432));
        assert_eq!(last_time(&home, "https://b", "db"), Some(5434));
        assert_eq!(last_time(&home, "https://b", "web"), Some(8081));
    }
}
