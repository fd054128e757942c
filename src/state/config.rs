//! `config.json`: the hub, the key, and who this machine's agent is.

use std::collections::BTreeMap;
use std::mem;
use std::net::SocketAddr;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use super::home::json_text;
use crate::error::Error;
use crate::error::Result;
use crate::model::access::Role;
use crate::model::fingerprint::Pin;
use crate::model::hub_trust::HubTrust;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::target::Target;
use crate::model::tls_policy::TlsPolicy;
use crate::os::files;

/// The hub that is meant where none is named. `make DEFAULT_HUB=URL` builds in another one, `DEFAULT_HUB=none` none at all.
pub const DEFAULT_HUB: &str = match option_env!("DEFAULT_HUB") {
    Some(hub) => hub,
    None => "https://hub.privateconnect.co",
};
pub const NO_HUB: &str = "none";
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
    /// The key's role, as the hub said at the login.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
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
    /// The hub's pin at the login, if its root was replaced since: what is known of its agents stands under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_pin: Option<String>,
    /// What its hub, and the other ends of its sessions, must offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_policy: Option<TlsPolicy>,
    /// What `connect expose --keep` saved: the daemon keeps it up, after a reboot too.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposures: BTreeMap<Name, SavedExposure>,
    /// Where agents of this machine listen for joiners that come without the relay, as `--direct` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<SocketAddr>,
    /// The logins at other hubs, which `--hub URL` uses. They have only the fields of a login.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logins: Vec<Self>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedExposure {
    pub target: Target,
    #[serde(default)]
    pub protocol: Protocol,
}

impl Config {
    /// Whether only the exposures differ, or the key's secret and the hub's pin: what runs takes those over when the old ones
    /// end.
    pub fn is_same_login(&self, other: &Self) -> bool {
        let Self { api_key, hub_pin, first_pin, exposures, .. } = self.clone();
        Self { api_key, hub_pin, first_pin, exposures, ..other.clone() } == *self
    }

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

    pub fn is_login_at(&self, hub: &str) -> bool {
        self.hub_url.as_deref() == Some(hub)
    }

    /// Makes the login at this hub the current one, and keeps the one before. A hub without a login begins with neither key
    /// nor trust: what is known about one hub does not hold for another. The machine keeps its name and what it exposes.
    pub fn switch_to(&mut self, hub: &str) {
        if self.hub_url.is_none() || self.is_login_at(hub) {
            return;
        }
        let at = self.logins.iter().position(|login| login.is_login_at(hub));
        let mut login = at.map_or_else(Self::default, |at| self.logins.remove(at));
        login.agent_id = self.agent_id.take();
        login.label = self.label.take();
        login.exposures = mem::take(&mut self.exposures);
        login.direct = self.direct.take();
        login.logins = mem::take(&mut self.logins);
        let before = mem::replace(self, login);
        self.logins.push(before);
    }

    pub fn login_at(&self, hub: &str) -> Option<&Self> {
        [self].into_iter().chain(&self.logins).find(|login| login.is_login_at(hub))
    }

    /// Replaces the secret of a key by its next one. Returns the key of a login that has that now: another process may have
    /// been first. The pin in it stays as it is.
    pub fn replace_secret(&mut self, old: &str, next: &str) -> Option<String> {
        let mut replaced = None;
        self.each_login(|login| {
            let Some(key) = &mut login.api_key else { return };
            if let Some(rest) = key.strip_prefix(old) {
                *key = format!("{next}{rest}");
            }
            if key.starts_with(next) {
                replaced = Some(key.clone());
            }
        });
        replaced
    }

    /// Replaces the pin of a hub. Returns whether a login had the old one: a process that has an older one still in memory, and
    /// follows whoever has the key of that root, changes nothing here.
    pub fn replace_pin(&mut self, old: Pin, new: Pin) -> bool {
        let mut is_replaced = false;
        self.each_login(|login| {
            if login.pin() != Some(old) {
                return;
            }
            is_replaced = true;
            login.first_pin.get_or_insert(old.to_string());
            match login.api_key.as_ref().and_then(|key| key.split_once('.')) {
                Some((secret, _)) => login.api_key = Some(format!("{secret}.{new}")),
                None => login.hub_pin = Some(new.to_string()),
            }
        });
        is_replaced
    }

    fn each_login(&mut self, mut change: impl FnMut(&mut Self)) {
        change(self);
        for login in &mut self.logins {
            change(login);
        }
    }

    /// How the hub of this login is recognised, if that is by a pin.
    pub fn pin(&self) -> Option<Pin> {
        match trust_of(self.ca.as_deref(), self.api_key.as_deref(), self.hub_pin.as_deref()) {
            HubTrust::Pin(pin) => Some(pin),
            HubTrust::Roots(_) | HubTrust::Public => None,
        }
    }

    /// The first pin of the hub that has this one now.
    pub fn first_pin(&self, pin: Pin) -> String {
        let first = self.first_pin.clone().filter(|_| self.pin() == Some(pin));
        first.unwrap_or_else(|| pin.to_string())
    }

    /// Forgets the login at this hub. Returns whether there was one that is not the only one.
    pub fn forget(&mut self, hub: &str) -> bool {
        let next = self.logins.last().and_then(|login| login.hub_url.clone());
        if let Some(next) = next.filter(|_| self.is_login_at(hub)) {
            self.switch_to(&next);
        }
        let before = self.logins.len();
        self.logins.retain(|login| !login.is_login_at(hub));
        self.logins.len() < before
    }

    fn write(&self, home: &Home, file: Option<&Path>) -> Result<()> {
        files::write(file.unwrap_or(&home.file(CONFIG_FILE)), &json_text(CONFIG_FILE, self)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fingerprint::Fingerprint;

    #[test]
    fn a_pin_is_replaced_where_it_is_the_saved_one_and_the_first_stays_known() {
        let [first, second, third, other] = [1, 2, 3, 4].map(|seed| Fingerprint::new([seed; 32]).pin());
        let login = |key: String| Config { api_key: Some(key), ..Config::default() };
        let mut config = login(format!("pc_a.{first}"));
        config.logins = vec![login(format!("pc_b.{other}")), login(format!("pc_c.{first}"))];
        config.logins.push(Config { hub_pin: Some(first.to_string()), ..login("pc_d".into()) });
        assert!(config.replace_pin(first, second) && config.replace_pin(second, third));
        // A process with an old root in memory, which a thief leads to his own.
        assert!(!config.replace_pin(first, other));
        let pins: Vec<_> = config.logins.iter().map(Config::pin).collect();
        assert_eq!((config.pin(), pins), (Some(third), vec![Some(other), Some(third), Some(third)]));
        assert_eq!(config.first_pin(third), first.to_string());
        assert_eq!(config.first_pin(other), other.to_string());
        assert_eq!(config.replace_secret("pc_a", "pc_n"), Some(format!("pc_n.{third}")));
        assert_eq!(config.replace_secret("pc_gone", "pc_m"), None);
    }
}
