//! What every command starts from: its arguments, the state folder, the hub that was asked for.

use std::env;
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::args::Args;
use super::say::Say;
use crate::api::Hub;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::net::address::HubUrl;
use crate::net::stop::Stop;
use crate::os::process::Signals;
use crate::state::config::Config;
use crate::state::config::DEFAULT_HUB;
use crate::state::config::trust_of;
use crate::state::home::Home;
use crate::state::identity;
use crate::tls::identity::Identity;
use crate::tls::trust;
use crate::tls::trust::HubTrust;

pub struct Call {
    pub args: Args,
    pub say: Say,
    pub home: Home,
    /// Set by the first Ctrl-C.
    pub stop: Stop,
    /// Taken early by commands that run another one.
    pub signals: Option<Signals>,
}

impl Call {
    pub fn new(args: Args, say: Say) -> Result<Self> {
        let stop = Stop::new();
        let signals = if args.run.is_some() {
            Some(Signals::take(first_then_second(&stop))?)
        } else {
            ctrlc::set_handler(first_then_second(&stop)).or_say(|| "Cannot take this process's signals")?;
            None
        };
        Ok(Self { args, say, home: Home::find(), stop, signals })
    }

    pub fn config_file(&self) -> Option<&Path> {
        self.args.value("config").map(Path::new)
    }

    pub fn config(&self) -> Result<Config> {
        Config::load(&self.home, self.config_file())
    }

    /// The hub that is meant: option, environment, config, default, in this order.
    pub fn hub_url(&self, config: &Config) -> Result<HubUrl> {
        self.hub_urls(config).map(|mut urls| urls.remove(0))
    }

    /// The same, and behind it those of its fleet that may stand in for it.
    pub fn hub_urls(&self, config: &Config) -> Result<Vec<HubUrl>> {
        let asked = self.asked_hubs()?;
        if !asked.is_empty() {
            return Ok(asked);
        }
        if let Some(list) = variable("CONNECT_HUB_URL") {
            return urls([list.as_str()]);
        }
        let configured = config.hub_url.as_deref().unwrap_or(DEFAULT_HUB);
        urls([configured].into_iter().chain(config.hubs.iter().map(String::as_str)))
    }

    /// Those that the option names.
    pub fn asked_hubs(&self) -> Result<Vec<HubUrl>> {
        urls(self.args.values("hub"))
    }

    pub fn api_key(config: &Config) -> Option<String> {
        variable("PRIVATECONNECT_TOKEN").or_else(|| config.api_key.clone())
    }

    pub fn trust(&self, config: &Config, key: Option<&str>) -> Result<HubTrust> {
        let file = self.args.value("ca").map(str::to_owned).or_else(|| variable("PRIVATECONNECT_CA"));
        if let Some(file) = file {
            return trust::read_roots(Path::new(&file));
        }
        Ok(trust_of(config.ca.as_deref(), key, config.hub_pin.as_deref()))
    }

    /// The hub, with the key that `connect up` saved.
    pub fn hub(&self) -> Result<Arc<Hub>> {
        self.hub_until(&self.stop)
    }

    /// The same, but its calls are cut by another stop: for what is still to be said after Ctrl-C.
    pub fn hub_until(&self, stop: &Stop) -> Result<Arc<Hub>> {
        let config = self.config()?;
        self.connected(self.hub_urls(&config)?, &config, stop)
    }

    /// The hub that a project names, unless this call or the environment names another.
    pub fn hub_named(&self, project: Option<&str>) -> Result<Arc<Hub>> {
        let config = self.config()?;
        let asked = self.args.value("hub").is_some() || variable("CONNECT_HUB_URL").is_some();
        let urls = match project.filter(|_| !asked) {
            Some(url) if config.hub_url.as_deref() != Some(url) => {
                let named = HubUrl::parse(url)?;
                self.may_be_named(&config, &named)?;
                vec![named]
            }
            _ => self.hub_urls(&config)?,
        };
        self.connected(urls, &config, &self.stop)
    }

    /// A project is often somebody else's file. Only a hub that proves our key's pin is ours wherever it is; without one,
    /// the key would go to whomever the file names.
    fn may_be_named(&self, config: &Config, named: &HubUrl) -> Result<()> {
        let Some(own) = &config.hub_url else { return Ok(()) };
        let mut known = [own].into_iter().chain(&config.hubs).filter_map(|url| HubUrl::parse(url).ok());
        let trust = self.trust(config, Self::api_key(config).as_deref())?;
        if known.any(|url| url == *named) || matches!(trust, HubTrust::Pin(_)) {
            return Ok(());
        }
        let what =
            format!("This project names another hub, {named}, than {own}, where this machine is logged in");
        Err(Error::new(what)
            .hint(format!("It would get this machine's key. If that is meant: connect dev --hub {named}")))
    }

    fn connected(&self, urls: Vec<HubUrl>, config: &Config, stop: &Stop) -> Result<Arc<Hub>> {
        let key = Self::api_key(config).ok_or_else(not_configured)?;
        let trust = self.trust(config, Some(&key))?;
        Hub::new(urls, &trust, Some(key), stop).map(Arc::new)
    }

    pub fn identity(&self) -> Result<Identity> {
        identity::load_or_make(&self.home)
    }

    /// Ctrl-C cut the work off.
    pub fn go_on(&self) -> Result<()> {
        if self.stop.is_stopped() { Err(Error::stopped()) } else { Ok(()) }
    }
}

/// Each may be a list behind commas.
#[allow(single_use_lifetimes)] // It cannot be left out here yet.
fn urls<'l>(lists: impl IntoIterator<Item = &'l str>) -> Result<Vec<HubUrl>> {
    lists.into_iter().flat_map(|list| list.split(',')).map(HubUrl::parse).collect()
}

pub fn not_configured() -> Error {
    Error::new("Agent not configured").hint("Run connect up first to authenticate.")
}

pub fn variable(name: &str) -> Option<String> {
    // A secret out of a file often brings its line end along.
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The first signal ends everything in order, the second one at once.
fn first_then_second(stop: &Stop) -> impl Fn() + Send + 'static {
    let (own, again) = (stop.clone(), AtomicBool::new(false));
    move || {
        if again.swap(true, Ordering::SeqCst) {
            process::exit(130);
        }
        own.stop();
    }
}
