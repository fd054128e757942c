//! `services.json`: the services that the hub listed last, so that a shell can complete them without asking it.

use std::collections::BTreeSet;

use super::home::Home;
use crate::wire::api::ServiceInfo;

const SERVICE_CACHE_FILE: &str = "services.json";
/// Nobody picks from a longer list in a shell.
const CACHED_SERVICES_LIMIT: usize = 1000;

pub fn names(home: &Home) -> BTreeSet<String> {
    home.read(SERVICE_CACHE_FILE).ok().flatten().unwrap_or_default()
}

/// If the folder cannot be written, only completion suffers.
pub fn remember(home: &Home, services: &[ServiceInfo]) {
    let reachable = services.iter().filter(|service| service.share.is_none());
    let listed: BTreeSet<String> =
        reachable.take(CACHED_SERVICES_LIMIT).map(|service| service.name.to_string()).collect();
    if names(home) != listed
        && let Err(error) = home.write_unsynced(SERVICE_CACHE_FILE, &listed)
    {
        log::debug!("the services are not remembered: {error}");
    }
}
