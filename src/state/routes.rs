//! `active-routes.json`: which service is on which loopback port, for the proxy and for other tools.

use std::fs;
use std::path::Path;

use super::home::Home;
use super::runs;
use crate::error::Error;
use crate::error::Result;
use crate::model::route;
use crate::model::route::Route;
use crate::model::service::Protocol;
use crate::os::clock;
use crate::os::files;
use crate::os::paths;

pub const ROUTES_FILE: &str = "active-routes.json";

/// A route of this process. Dropping it removes the route from the file.
pub struct OwnRoute {
    home: Home,
    name: String,
    port: u16,
}

/// Adds a route, and drops those whose process is dead.
pub fn add(home: &Home, name: &str, port: u16, protocol: Protocol) -> Result<OwnRoute> {
    let (pid, service_name, started_at) = (std::process::id(), name.to_owned(), clock::now());
    let protocol = Some(protocol).filter(|protocol| *protocol != Protocol::usual_at(port));
    let added = Route { service_name, local_port: port, pid, started_at, protocol };
    rewrite(home, |routes| routes.push(added))?;
    Ok(OwnRoute { home: home.clone(), name: name.to_owned(), port })
}

impl Drop for OwnRoute {
    fn drop(&mut self) {
        let pid = std::process::id();
        let mine = |route: &Route| {
            route.pid == pid && route.local_port == self.port && route.service_name == self.name
        };
        if let Err(error) = rewrite(&self.home, |routes| routes.retain(|route| !mine(route))) {
            log::warn!("a route stays listed until the next change: {error}");
        }
    }
}

/// How many of our entries belong to processes that were killed.
pub fn dead(home: &Home) -> usize {
    let routes = read_own(home).ok().flatten().unwrap_or_default();
    routes.iter().filter(|route| runs::is_known_dead(home, route.pid)).count()
}

/// Removes the entries of processes that were killed.
pub fn tidy(home: &Home) -> Result<()> {
    rewrite(home, |_| ())
}

fn rewrite(home: &Home, change: impl FnOnce(&mut Vec<Route>)) -> Result<()> {
    let _lock = home.lock()?;
    // A damaged file is replaced: the processes write their routes again.
    let mut routes = read_own(home).ok().flatten().unwrap_or_default();
    routes.retain(|route| runs::is_alive(home, route.pid));
    change(&mut routes);
    home.write(ROUTES_FILE, &routes)
}

fn read_own(home: &Home) -> Result<Option<Vec<Route>>> {
    Ok(files::read_text(&home.file(ROUTES_FILE))?.and_then(|text| route::parse(&text)))
}

/// The routes in all files, ours first. A damaged file is an error that names it. Entries of our own processes that were
/// killed are left out. An entry whose process never held a lock comes from another tool, and is kept.
pub fn listed(home: &Home) -> Result<Vec<Route>> {
    let damaged = |path: &Path| {
        Error::new(format!("{} is damaged", path.display()))
            .hint("The routes stay as they were; mend it, or move it away")
    };
    let own = home.file(ROUTES_FILE);
    let text = files::read_text(&own)?.unwrap_or_default();
    let mut routes = route::parse(&text).ok_or_else(|| damaged(&own))?;
    routes.retain(|route| !runs::is_known_dead(home, route.pid));
    let Some(path) = paths::foreign_routes() else { return Ok(routes) };
    let Ok(text) = fs::read_to_string(&path) else { return Ok(routes) };
    for route in route::parse(&text).ok_or_else(|| damaged(&path))? {
        if !routes.iter().any(|own| own.service_name.eq_ignore_ascii_case(&route.service_name)) {
            routes.push(route);
        }
    }
    Ok(routes)
}
