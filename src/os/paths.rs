//! Where this user's state lies.

use std::env;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Error;
use crate::error::Result;

/// `PRIVATECONNECT_HOME`, else `~/.privateconnect`.
pub fn home() -> Result<PathBuf> {
    if let Some(moved) = env::var_os("PRIVATECONNECT_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(moved));
    }
    user_home().map(|home| home.join(".privateconnect")).ok_or_else(|| {
        Error::new("There is no home folder to keep state in")
            .hint("Set HOME, or PRIVATECONNECT_HOME=/a/folder/you/own")
    })
}

/// The folder in which other tools of this family keep their routes; read, never written.
pub fn foreign_routes() -> Option<PathBuf> {
    user_home().map(|home| home.join(".connect/active-routes.json"))
}

pub fn user_home() -> Option<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute())
}

/// As people write it: `~` for their home folder.
pub fn shown(path: &Path) -> String {
    match user_home().and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
