//! Where this user's files are.

use std::env;
use std::path::Path;
use std::path::PathBuf;

use crate::os::user;

/// The state folder of a user without a home folder, named as Debian does. Reading finds nothing there; the error
/// of a write names the variable to set.
const NOWHERE: &str = "/nonexistent/.privateconnect";

/// `PRIVATECONNECT_HOME`, else `~/.privateconnect`. Containers run as users that have neither a `HOME` nor a line in
/// `/etc/passwd`. That is not an error yet: a join by link needs no state.
pub fn home() -> PathBuf {
    let moved = ["PRIVATECONNECT_HOME", "CONNECT_HOME"].iter().filter_map(env::var_os);
    if let Some(moved) = moved.into_iter().find(|value| !value.is_empty()) {
        return PathBuf::from(moved);
    }
    user_home().map_or_else(|| PathBuf::from(NOWHERE), |home| home.join(".privateconnect"))
}

/// The routes of other tools of this family; we read the file and never write it.
pub fn foreign_routes() -> Option<PathBuf> {
    user_home().map(|home| home.join(".connect/active-routes.json"))
}

/// `HOME`, else the folder in `/etc/passwd`.
pub fn user_home() -> Option<PathBuf> {
    let named = env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = named.or_else(|| user::listed(&user::uid().to_string()).map(|(_, home)| home));
    home.filter(|home| home.is_absolute())
}

/// The path as people write it, with `~` for their home folder.
pub fn shown(path: &Path) -> String {
    match user_home().and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
