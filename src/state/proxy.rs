//! `proxy-state.json`: whether the proxy runs, and where. What it serves is in the entry of its run.

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use super::runs;
use crate::error::Result;
use crate::os::clock;
use crate::os::files;

pub const PROXY_STATE_FILE: &str = "proxy-state.json";
pub const LOCAL_PROXY_PORT: u16 = 3456;
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
    pub state: ProxyState,
}

/// The running proxy. The file counts only if the process that it names is alive and ours.
pub fn running(home: &Home) -> Option<ProxyState> {
    let state: ProxyState = home.read(PROXY_STATE_FILE).ok().flatten()?;
    let run = runs::running(home, PROXY_KIND)?;
    (run.pid == state.pid && run.pid != std::process::id()).then_some(state)
}

pub fn announce(home: &Home, port: u16, tls: bool) -> Result<OwnProxyState> {
    let state = ProxyState { pid: std::process::id(), port, tls, started_at: clock::stamp() };
    home.write(PROXY_STATE_FILE, &state)?;
    Ok(OwnProxyState { home: home.clone(), state })
}

impl Drop for OwnProxyState {
    fn drop(&mut self) {
        // Another proxy may have taken over and written its own state by now.
        if self.home.read(PROXY_STATE_FILE).ok().flatten().as_ref() == Some(&self.state) {
            let _ = files::remove(&self.home.file(PROXY_STATE_FILE));
        }
    }
}
