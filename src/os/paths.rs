//! Where this user's state lies.

use std::env;
use std::path::Path;
use std::path::PathBuf;

use crate::os::user;

/// Where somebody without a home lives, as Debian calls it. Nothing is there to be read, and whoever
/// must write is told what to set.
const NOWHERE: &str = "/nonexistent/.privateconnect";

/// `PRIVATECONNECT_HOME`, else `~/.privateconnect`. Containers run as users that have neither a `HOME` nor
/// a line in `/etc/passwd`; a link needs no state, so that is no trouble yet.
pub fn home() -> PathBuf {
    if let Some(moved) = env::var_os("PRIVATECONNECT_HOME").filter(|value| !value.is_empty()) {
        return PathBuf::from(moved);
    }
    user_home().map_or_else(|| PathBuf::from(NOWHERE), |home| home.join(".privateconnect"))
}

/// The folder in which other tools of this family keep their routes; read, never written.
pub fn foreign_routes() -> Option<PathBuf> {
    user_home().map(|home| home.join(".connect/active-routes.json"))
}

/// `HOME`, else what the list of users says.
pub fn user_home() -> Option<PathBuf> {
    let told = env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = told.or_else(|| user::listed(&user::uid().to_string()).map(|(_, home)| home));
    home.filter(|home| home.is_absolute())
}

/// As people write it: `~` for their home folder.
pub fn shown(path: &Path) -> String {
    match user_home().and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
