//! `ports.json`: the alternative port that a service got last time, because its own was taken, so that it gets the same
//! one again.

use std::collections::BTreeMap;

use super::home::Home;
use crate::error::Result;

const PORTS_FILE: &str = "ports.json";
/// More services than one user reaches. At the limit the file starts over empty.
const REMEMBERED_PORTS_LIMIT: usize = 1000;

/// By the service with its hub or share, as in `https://hub/db`.
type RememberedPorts = BTreeMap<String, u16>;

pub fn last_alternative(home: &Home, service: &str) -> Option<u16> {
    home.read::<RememberedPorts>(PORTS_FILE).ok().flatten()?.get(service).copied()
}

/// `None` forgets: the service's own port was available.
pub fn remember(home: &Home, service: &str, alternative: Option<u16>) -> Result<()> {
    if last_alternative(home, service) == alternative {
        return Ok(());
    }
    home.update(PORTS_FILE, |ports: &mut RememberedPorts| {
        if ports.len() >= REMEMBERED_PORTS_LIMIT {
            ports.clear();
        }
        match alternative {
            Some(port) => ports.insert(service.to_owned(), port),
            None => ports.remove(service),
        };
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn services_of_one_name_at_two_hubs_have_an_alternative_each_until_it_is_forgotten() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-ports")));
        remember(&home, "https://a/db", Some(5433)).unwrap();
        remember(&home, "https://b/db", Some(5434)).unwrap();
        remember(&home, "https://a/db", None).unwrap();
        assert_eq!(last_alternative(&home, "https://a/db"), None);
        assert_eq!(last_alternative(&home, "https://b/db"), Some(5434));
    }
}
