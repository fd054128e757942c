//! `active-routes.json`: which service is on which loopback port, for the proxy and for other tools. An entry of somebody
//! else is kept as it is, unless the process that it names is dead.

use std::fs;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

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
use crate::os::process;

pub const ROUTES_FILE: &str = "active-routes.json";

/// A route of this process. Dropping it removes the route from the file.
pub struct OwnRoute {
    home: Home,
    entry: Value,
}

/// Adds a route, and drops those whose process is dead.
pub fn add(home: &Home, name: &str, port: u16, protocol: Protocol, share: Option<&str>) -> Result<OwnRoute> {
    let mut entry = json!({ "serviceName": name, "localPort": port, "pid": std::process::id(), "startedAt": clock::now() });
    if protocol != Protocol::usual_at(port) {
        entry["protocol"] = protocol.as_str().into();
    }
    if let Some(share) = share {
        entry["share"] = share.into();
    }
    rewrite(home, |entries| entries.push(entry.clone()))?;
    Ok(OwnRoute { home: home.clone(), entry })
}

impl Drop for OwnRoute {
    fn drop(&mut self) {
        if let Err(error) = rewrite(&self.home, |entries| entries.retain(|entry| *entry != self.entry)) {
            log::warn!("a route stays listed until the next change: {error}");
        }
    }
}

/// How many entries belong to processes that are dead.
pub fn dead(home: &Home) -> usize {
    let entries = read_own(home).ok().flatten().unwrap_or_default();
    entries.iter().filter(|entry| is_dead(home, entry)).count()
}

/// Removes the entries of processes that are dead.
pub fn tidy(home: &Home) -> Result<()> {
    rewrite(home, |_| ())
}

fn is_dead(home: &Home, entry: &Value) -> bool {
    route::process_of(entry).is_some_and(|pid| runs::is_known_dead(home, pid) || !process::exists(pid))
}

fn rewrite(home: &Home, change: impl FnOnce(&mut Vec<Value>)) -> Result<()> {
    let _lock = home.lock()?;
    let found = read_own(home);
    // A damaged file is replaced, since the processes write their routes again; what somebody wrote is kept aside.
    if matches!(found, Ok(None)) {
        let _ = fs::rename(home.file(ROUTES_FILE), home.file("active-routes.json.damaged"));
    }
    let mut entries = found.ok().flatten().unwrap_or_default();
    entries.retain(|entry| !is_dead(home, entry));
    change(&mut entries);
    home.write(ROUTES_FILE, &entries)
}

fn read_own(home: &Home) -> Result<Option<Vec<Value>>> {
    Ok(route::entries(&files::read_text(&home.file(ROUTES_FILE))?.unwrap_or_default()))
}

/// The routes in all files, ours first, and what is wrong with the entries that are left out.
#[derive(Default)]
pub struct ListedRoutes {
    pub routes: Vec<Route>,
    pub faults: Vec<String>,
}

/// A file that cannot be read at all is an error that names it. Entries of our own processes that were killed are left
/// out.
pub fn listed(home: &Home) -> Result<ListedRoutes> {
    let own = home.file(ROUTES_FILE);
    let mut listed = ListedRoutes::default();
    listed.add_file(home, &own, &files::read_text(&own)?.unwrap_or_default())?;
    if let Some(path) = paths::foreign_routes()
        && let Ok(text) = fs::read_to_string(&path)
    {
        listed.add_file(home, &path, &text)?;
    }
    Ok(listed)
}

impl ListedRoutes {
    /// Of two entries with one name the first one counts, of two in one file the last.
    fn add_file(&mut self, home: &Home, path: &Path, text: &str) -> Result<()> {
        let damaged = || {
            Error::new(format!("{} is damaged", path.display()))
                .hint("The routes stay as they were; mend it, or move it away")
        };
        let before = self.routes.len();
        for (index, entry) in route::entries(text).ok_or_else(damaged)?.iter().enumerate() {
            if route::process_of(entry).is_some_and(|pid| runs::is_known_dead(home, pid)) {
                continue;
            }
            match Route::read(entry) {
                Ok(route) => {
                    let is_it = |own: &Route| own.service_name.eq_ignore_ascii_case(&route.service_name);
                    if !self.routes[..before].iter().any(is_it) {
                        self.routes.push(route);
                    }
                }
                Err(fault) => {
                    let entry = format!("Entry {} of {}", index + 1, path.display());
                    self.faults.push(format!("{entry} {fault}; it is left out"));
                }
            }
        }
        Ok(())
    }
}
