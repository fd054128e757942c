//! `proxy-state.json`: whether the proxy runs, where, and what it serves.

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use super::runs;
use crate::error::Result;
use crate::os::clock;
use crate::os::files;

pub const PROXY_STATE_FILE: &str = "proxy-state.json";
/// The names that it serves. It is in the folder of the runs because it is removed together with the run.
const PROXY_ROUTES_FILE: &str = "run/proxy-routes.json";
pub const PROXY_LOG: &str = "proxy.log";
pub const PROXY_KIND: &str = "proxy";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyState {
    pub pid: u32,
    pub port: u16,
    pub tls: bool,
    /// With milliseconds, as other tools write it.
    pub started_at: String,
}

impl ProxyState {
    /// The URL of a service by its name.
    pub fn url_of(&self, name: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{name}.localhost:{}", self.port)
    }
}

/// The state file of this process. Dropping it removes the file.
pub struct OwnProxyState {
    home: Home,
}

/// The running proxy. The file counts only if the process that it names is alive and ours.
pub fn running(home: &Home) -> Option<ProxyState> {
    let state: ProxyState = home.read(PROXY_STATE_FILE).ok().flatten()?;
    is_running(home, state.pid).then_some(state)
}

pub fn is_running(home: &Home, pid: u32) -> bool {
    pid != std::process::id()
        && runs::is_alive(home, pid)
        && runs::kind_of(home, pid).as_deref() == Some(PROXY_KIND)
}

pub fn announce(home: &Home, port: u16, tls: bool) -> Result<OwnProxyState> {
    home.write(
        PROXY_STATE_FILE,
        &ProxyState { pid: std::process::id(), port, tls, started_at: clock::stamp() },
    )?;
    Ok(OwnProxyState { home: home.clone() })
}

pub fn write_routes(home: &Home, names: &[String]) -> Result<()> {
    home.write(PROXY_ROUTES_FILE, &names)
}

pub fn routes(home: &Home) -> Vec<String> {
    home.read(PROXY_ROUTES_FILE).ok().flatten().unwrap_or_default()
}

impl Drop for OwnProxyState {
    fn drop(&mut self) {
        let own = |state: &ProxyState| state.pid == std::process::id();
        // Another proxy may have taken over and written its own state by now.
        if self.home.read(PROXY_STATE_FILE).ok().flatten().as_ref().is_some_and(own) {
            let _ = files::remove(&self.home.file(PROXY_STATE_FILE));
            let _ = files::remove(&self.home.file(PROXY_ROUTES_FILE));
        }
    }
}
