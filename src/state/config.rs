//! `config.json`: the hub, the key, and who this machine's agent is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use crate::error::Error;
use crate::error::Result;
use crate::model::fingerprint::Pin;
use crate::model::hub_trust::HubTrust;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::target::Target;
use crate::os::files;

pub const DEFAULT_HUB: &str = "https://hub.privateconnect.co";
const CONFIG_FILE: &str = "config.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_url: Option<String>,
    /// The other hubs of its fleet, used when that one cannot be reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// The key's workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The CA certificates given with `--ca`, copied so that the file may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The hub's pin that the user confirmed, for keys that carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub_pin: Option<String>,
    /// What `connect expose --keep` saved: the daemon keeps it up, after a reboot too.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposures: BTreeMap<Name, SavedExposure>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedExposure {
    pub target: Target,
    #[serde(default)]
    pub protocol: Protocol,
}

impl Config {
    /// From `--config FILE`, which must exist, or from the state folder, where it need not.
    pub fn load(home: &Home, file: Option<&Path>) -> Result<Self> {
        let Some(path) = file else { return Ok(home.read(CONFIG_FILE)?.unwrap_or_default()) };
        // The user's own file may lie behind a link, as secrets in containers do.
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::new(format!("Cannot read {}", path.display()))
                .because(error)
                .hint("Check the path given with --config")
        })?;
        serde_json::from_str(&text).map_err(|error| {
            Error::new(format!("{} is damaged", path.display()))
                .because(error)
                .hint("It must be JSON, as connect up writes it")
        })
    }

    /// Reads, changes and writes it; the lock keeps other processes out meanwhile.
    pub fn change<R>(home: &Home, file: Option<&Path>, change: impl FnOnce(&mut Self) -> R) -> Result<R> {
        let _lock = home.lock()?;
        let mut config = Self::load(home, file)?;
        let result = change(&mut config);
        config.write(home, file)?;
        Ok(result)
    }

    fn write(&self, home: &Home, file: Option<&Path>) -> Result<()> {
        match file {
            Some(path) => {
                let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
                files::write(path, text.as_bytes())
            }
            None => home.write(CONFIG_FILE, self),
        }
    }
}

/// Different after every change of the config.
pub fn stamp(home: &Home, file: Option<&Path>) -> files::FileStamp {
    files::stamp(file.unwrap_or(&home.file(CONFIG_FILE)))
}

/// The pin that a key carries: `pc_SECRET.PIN`.
pub fn pin_of(key: &str) -> Option<Pin> {
    key.split_once('.').and_then(|(_, pin)| Pin::parse(pin))
}

/// How the hub is recognised: by the CA the user gave, else by the pin in the key, else by a pin learnt earlier, else
/// by public roots.
pub fn trust_of(ca: Option<&str>, key: Option<&str>, learnt: Option<&str>) -> HubTrust {
    if let Some(pem) = ca {
        return HubTrust::Roots(pem.to_owned());
    }
    let pin = key.and_then(pin_of).or_else(|| learnt.and_then(Pin::parse));
    pin.map_or(HubTrust::Public, HubTrust::Pin)
}
