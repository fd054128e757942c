//! What every command starts from: its arguments, its output, the state folder, the config and the hub.
//!
//! The config is read when a command first needs it and kept; only `reload_config` reads it again.

use std::cell::RefCell;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use super::args::Args;
use super::saved_login;
use super::say::Say;
use crate::api::Hub;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::access::key_flaw;
use crate::model::hub_trust::HubTrust;
use crate::model::tls_policy::TlsPolicy;
use crate::net::address::HubUrl;
use crate::net::stop::Stop;
use crate::os::detach;
use crate::os::environment;
use crate::os::process::Signals;
use crate::os::secret;
use crate::os::terminal;
use crate::state::agent_pins::AgentPins;
use crate::state::config::Config;
use crate::state::config::DEFAULT_HUB;
use crate::state::config::NO_HUB;
use crate::state::config::trust_of;
use crate::state::home::Home;
use crate::state::identity;
use crate::tls::identity::Identity;
use crate::tls::provider::set_policy;
use crate::tls::trust;

/// A longer answer is not a yes.
const YES_LIMIT: usize = 16;

/// The exit code of a command, or what went wrong.
pub type CommandResult = Result<u8>;

pub struct Call {
    pub args: Args,
    pub say: Say,
    pub home: Home,
    /// Set by the first Ctrl-C.
    pub stop: Stop,
    /// Taken before the command's threads start, if it runs another program.
    pub signals: Option<Signals>,
    /// The log file of this process if it runs in the background; `None` in the foreground.
    pub background_log: Option<PathBuf>,
    config: RefCell<Option<Rc<Config>>>,
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
        Ok(Self {
            args,
            say,
            home: Home::find(),
            stop,
            signals,
            background_log: detach::own_log(),
            config: RefCell::default(),
        })
    }

    pub fn is_background(&self) -> bool {
        self.background_log.is_some()
    }

    /// Fails if Ctrl-C interrupted the work.
    pub fn fail_if_stopped(&self) -> Result<()> {
        if self.stop.is_stopped() { Err(Error::stopped()) } else { Ok(()) }
    }

    /// Whether the user says yes. Anything else, a closed stdin included, is a no.
    pub fn is_confirmed(&self, question: &str) -> bool {
        self.say.result(&format!("{question} [y/N]"));
        terminal::read_line(YES_LIMIT).is_ok_and(|answer| answer.trim().eq_ignore_ascii_case("y"))
    }

    pub fn config_file(&self) -> Option<&Path> {
        self.args.value("config").map(Path::new)
    }

    /// The config as it was when this command first asked for it.
    pub fn config(&self) -> Result<Rc<Config>> {
        let known = self.config.borrow().clone();
        known.map_or_else(|| self.reload_config(), Ok)
    }

    /// Reads the config again, for commands that follow its changes. On failure the old one stays.
    pub fn reload_config(&self) -> Result<Rc<Config>> {
        let mut config = Config::load(&self.home, self.config_file())?;
        if let Some(named) = self.named_hubs()?.first().map(ToString::to_string)
            && config.logins.iter().any(|login| login.is_login_at(&named))
        {
            config.switch_to(&named);
        }
        set_policy(self.tls_policy()?.or(config.tls_policy).unwrap_or_default());
        let config = Rc::new(config);
        self.config.replace(Some(Rc::clone(&config)));
        Ok(config)
    }

    /// What the options require of the other end of every connection.
    pub fn tls_policy(&self) -> Result<Option<TlsPolicy>> {
        let Some(text) = self.args.value("tls-policy") else {
            return Ok(self.args.flag("require-pq").then_some(TlsPolicy::Pq));
        };
        let misread = |_| Error::misread(text, "is not a TLS policy");
        let policy = serde_json::from_value(text.into()).map_err(misread);
        policy.map(Some).map_err(|error| error.hint("Write --tls-policy any, pq or cnsa2"))
    }

    /// From the environment, else the one that `connect up` saved.
    pub fn api_key(&self) -> Result<Option<String>> {
        let config = self.config()?;
        Ok(given_key("PRIVATECONNECT_TOKEN")?.or_else(|| config.api_key.clone()))
    }

    fn ca_file(&self) -> Option<String> {
        // `whoami --ca` is a switch and names no file.
        let named = self.args.value("ca").filter(|file| !file.is_empty());
        named.map(str::to_owned).or_else(|| variable("PRIVATECONNECT_CA"))
    }

    /// How the hub is recognised: by a CA file that was named, else by what the config and the key say.
    pub fn trust(&self, config: &Config, key: Option<&str>) -> Result<HubTrust> {
        if let Some(file) = self.ca_file() {
            return trust::read_roots(Path::new(&file));
        }
        Ok(trust_of(config.ca.as_deref(), key, config.hub_pin.as_deref()))
    }

    pub fn identity(&self) -> Result<Identity> {
        identity::load_or_make(&self.home)
    }

    /// The addresses of the hub: from the option, the environment, the config or the default, in this order. The
    /// first is the hub that is meant; the others belong to its fleet and stand in for it.
    pub fn hub_urls(&self) -> Result<Vec<HubUrl>> {
        let named = self.named_hubs()?;
        if !named.is_empty() {
            return Ok(named);
        }
        let config = self.config()?;
        let configured = config.hub_url.as_deref().unwrap_or(DEFAULT_HUB);
        if configured == NO_HUB {
            return Err(Error::usage("No hub is named").hint(OTHER_HUB_HINT));
        }
        // The others have proved a pin, which a CA file given for this call replaces.
        let is_other_trust = config.ca.is_none() && self.ca_file().is_some();
        let others = config.hubs.iter().filter(|_| !is_other_trust).map(String::as_str);
        parse_hub_urls([configured].into_iter().chain(others))
    }

    /// The hubs that the option names or, without it, the environment.
    fn named_hubs(&self) -> Result<Vec<HubUrl>> {
        let option = parse_hub_urls(self.args.values("hub"))?;
        match variable("CONNECT_HUB_URL").filter(|_| option.is_empty()) {
            Some(list) => parse_hub_urls([list.as_str()]),
            None => Ok(option),
        }
    }

    pub fn hub(&self) -> Result<Arc<Hub>> {
        self.hub_at(self.hub_urls()?, &self.stop)
    }

    /// The agents that are known in the workspace of our key: as the login says, since a hub could name another one later.
    pub fn agent_pins(&self) -> Result<AgentPins> {
        let (config, key) = (self.config()?, self.api_key()?.ok_or_else(not_configured)?);
        let hub = match self.trust(&config, Some(&key))? {
            HubTrust::Pin(pin) => config.first_pin(pin),
            _ => self.hub_urls()?.remove(0).to_string(),
        };
        // The hub may have a new root since the key was put into a variable.
        let secret_of = |key: &str| key.split('.').next().map(str::to_owned);
        let is_saved = config.api_key.as_deref().and_then(secret_of) == secret_of(&key);
        let saved = config.workspace.clone().filter(|_| is_saved);
        let workspace = saved.unwrap_or_else(|| secret::hash(&key)[..16].to_owned());
        Ok(AgentPins::new(&self.home, &hub, &workspace))
    }

    /// The hub at these addresses, with our key. `stop` cuts its calls.
    pub fn hub_at(&self, urls: Vec<HubUrl>, stop: &Stop) -> Result<Arc<Hub>> {
        let key = self.api_key()?.ok_or_else(not_configured)?;
        let trust = self.trust(&*self.config()?, Some(&key))?;
        let at = urls.first().map(ToString::to_string).unwrap_or_default();
        let hub = Hub::new(urls, &trust, Some(key), stop)?;
        let saved = match given_key("PRIVATECONNECT_TOKEN")? {
            Some(_) => saved_login::given(&self.say, "The key in CONNECT_TOKEN"),
            None => saved_login::of_hub(&self.home, self.config_file(), &self.say, at),
        };
        Ok(Arc::new(hub.with_saved(saved)))
    }
}

/// Each text may be a list with commas.
#[allow(single_use_lifetimes)] // It cannot be left out yet.
pub fn parse_hub_urls<'l>(lists: impl IntoIterator<Item = &'l str>) -> Result<Vec<HubUrl>> {
    lists.into_iter().flat_map(|list| list.split(',')).map(HubUrl::parse).collect()
}

pub const OTHER_HUB_HINT: &str = "Name your hub: connect up --hub URL. To run one yourself: connect hub";

pub fn not_configured() -> Error {
    Error::new("Agent not configured")
        .hint("Run connect up first to authenticate.")
        .with_code("not-configured")
}

/// An API key as somebody typed or pasted it. Its form is checked before any hub is asked.
pub fn checked_key(key: &str) -> Result<String> {
    let key = key.trim();
    let flaw = key_flaw(key).map(|flaw| Error::usage(format!("This is not a whole API key: {flaw}")));
    flaw.map_or_else(|| Ok(key.to_owned()), |error| Err(error.hint("Copy it again, from pc_ to its end")))
}

/// The API key in this variable.
pub fn given_key(name: &str) -> Result<Option<String>> {
    variable(name).as_deref().map(checked_key).transpose()
}

/// `PRIVATECONNECT_TOKEN` may also be called `CONNECT_TOKEN`, and so on with the others.
pub fn variable(name: &str) -> Option<String> {
    let short = name.strip_prefix("PRIVATE").unwrap_or(name);
    let value = environment::value(&format!("PRIVATE{short}")).or_else(|| environment::value(short));
    // A secret that was read from a file often ends in a newline.
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Coreutils' `timeout` signals its child, and then the group that the child is in.
const ONE_SIGNAL: Duration = Duration::from_millis(100);

/// The first signal ends everything in order, the second one at once.
fn first_then_second(stop: &Stop) -> impl Fn() + Send + 'static {
    let stop = stop.clone();
    let first = OnceLock::new();
    move || {
        if first.get_or_init(Instant::now).elapsed() > ONE_SIGNAL {
            process::exit(130);
        }
        stop.stop();
    }
}
