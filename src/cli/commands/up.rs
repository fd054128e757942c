//! `connect up`: logs in at a hub.
//!
//! In this order: find the key, recognise the hub, ask it who the key belongs to, register this machine, save. The
//! config is written last, so a login that fails leaves the old one as it was.

use std::fs;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::api::Hub;
use crate::api::poll_interval;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::call::OTHER_HUB_HINT;
use crate::cli::call::checked_key;
use crate::cli::call::given_key;
use crate::cli::next_key;
use crate::cli::saved_login::say_new_root;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::access::Action;
use crate::model::hub_trust::HubTrust;
use crate::model::time::in_words;
use crate::net::address::HubUrl;
use crate::os::clock;
use crate::os::secret;
use crate::os::terminal;
use crate::os::user;
use crate::state::config::Config;
use crate::state::config::DEFAULT_HUB;
use crate::wire::api::WhoAmI;

/// Longer than any key.
const KEY_LINE_LIMIT: usize = 256;

pub fn run(call: &Call) -> CommandResult {
    if call.args.flag("rotate") {
        rotate(call)?;
    }
    let urls = call.hub_urls()?;
    let is_default = urls[0].to_string() == DEFAULT_HUB;
    if is_default {
        call.say.line(&format!("Hub: {DEFAULT_HUB}, the default; for another one: --hub URL"));
    }
    log_in(call, &urls).map_err(|error| match error.kind {
        ErrorKind::Unreachable if is_default => error.hint(OTHER_HUB_HINT),
        _ => error,
    })
}

/// Takes over the next secret of the key. The login that follows proves it.
fn rotate(call: &Call) -> Result<()> {
    let hub = call.hub()?;
    let is_new = match hub.whoami()?.next_key {
        Some(sealed) => next_key::accept(call, &hub, &sealed)?,
        None => false,
    };
    call.say.line(if is_new {
        "[ok] The key's new secret is saved"
    } else {
        "[ok] The key has no newer secret"
    });
    Ok(())
}

fn log_in(call: &Call, urls: &[HubUrl]) -> CommandResult {
    // A state folder that cannot be used is noticed before the hub registers anything.
    drop(call.home.lock()?);
    let mut config = Config::load(&call.home, call.config_file())?;
    let url = urls[0].clone();
    let given = typed_key(call)?;
    let before = config.hub_url.clone().filter(|before| *before != url.to_string());
    config.switch_to(&url.to_string());
    // A new key or CA file replaces whatever the hub was recognised by before.
    if call.args.value("ca").is_some() || given.is_some() {
        config.ca = None;
        config.hub_pin = None;
    }
    // The key that was typed, then the environment, then the saved one; without any, a code is to be approved.
    let mut key = match given
        .map_or_else(|| given_key("PRIVATECONNECT_TOKEN"), |key| Ok(Some(key)))?
        .or_else(|| config.api_key.clone())
    {
        Some(key) => key,
        None => ask_for_key(call, &mut config, &url)?,
    };
    let trust = call.trust(&config, Some(&key))?;
    let label = call.args.value("label").map(str::to_owned).or_else(|| config.label.clone());
    let label = label.unwrap_or_else(user::hostname);
    let hub_with =
        |key: &str| Hub::new(urls.to_vec(), &trust, Some(key.to_owned()), &call.stop).map(Arc::new);
    // The first call proves the whole path: address, certificate and key.
    let (began, mut hub) = (Instant::now(), hub_with(&key)?);
    let mut whoami = hub.whoami()?;
    let latency = began.elapsed();
    if whoami.limits.uses_left.is_some() {
        let saved = config.api_key.as_deref().filter(|own| is_enrolled(hub_with, own, &whoami));
        key = saved.map_or_else(|| hub.enrol(&label), |own| Ok(own.to_owned()))?;
        hub = hub_with(&key)?;
        whoami = hub.whoami()?;
    }
    let identity = call.identity()?;
    let mut id = config.agent_id.clone().unwrap_or_else(|| secret::id("agent"));
    // Without the right to expose there is no agent to register.
    if whoami.may(Action::Expose) {
        match hub.register(&id, &label, &identity) {
            // In another workspace, or without its identity, this machine is another agent.
            Err(error) if ["agent-of-another-key", "agent-identity"].contains(&error.code()) => {
                id = secret::id("agent");
                hub.register(&id, &label, &identity)?;
            }
            registered => drop(registered?),
        }
    }
    // The certificates themselves are saved, so the file given with --ca may go.
    if let HubTrust::Roots(pem) = &trust {
        config.ca = Some(pem.clone());
    }
    config.hub_url = Some(url.to_string());
    config.hubs = hub.known_hubs().iter().skip(1).map(ToString::to_string).collect();
    config.api_key = Some(key);
    keep_pin(call, &mut config, &hub)?;
    config.role = whoami.role;
    config.tls_policy = call.tls_policy()?.or(config.tls_policy);
    config.workspace = Some(whoami.workspace.clone());
    config.agent_id = Some(id.clone());
    config.label = Some(label.clone());
    Config::change(&call.home, call.config_file(), |saved| saved.clone_from(&config))?;
    call.say
        .value(&json!({ "hub": url.to_string(), "label": label, "agentId": id, "role": whoami.role_word(),
        "workspace": whoami.workspace, "latencyMs": latency.as_millis() }));
    call.say.result(&format!("[ok] Connected to {url} ({} ms)", latency.as_millis()));
    call.say.line(&format!("  Agent: {label} ({id})"));
    say_rights(call, &whoami);
    if let Some(before) = before {
        call.say.line(&format!("  Instead of {before}; that login is kept for: --hub {before}"));
    }
    if !config.hubs.is_empty() {
        call.say.line(&format!("  Other hubs: {}", config.hubs.join(" ")));
    }
    call.say.line("");
    call.say.line(next_step(&whoami));
    Ok(0)
}

/// Saves the hub's new root if it has shown one. What was known of its agents counts if it is the same hub as before.
fn keep_pin(call: &Call, config: &mut Config, hub: &Hub) -> Result<()> {
    let (known, given, proved) = (call.config()?.pin(), config.pin(), hub.pin());
    if known != given && known != proved {
        config.first_pin = None;
    }
    if let Some((old, new)) = given.zip(proved).filter(|(old, new)| old != new) {
        config.replace_pin(old, new);
        say_new_root(&call.say, new, "Its pin is saved");
    }
    Ok(())
}

fn say_rights(call: &Call, whoami: &WhoAmI) {
    call.say.line(&format!("  Role:  {}", whoami.rights()));
    if let Some(at) = whoami.expires_at {
        call.say.line(&format!("  The key expires in {}, at {at}", in_words(at.since(clock::now()))));
    }
}

fn next_step(whoami: &WhoAmI) -> &'static str {
    match (whoami.may(Action::Expose), whoami.may(Action::Join)) {
        (true, true) => "  Next: connect expose NAME PORT, or connect services",
        (true, false) => "  Next: connect expose NAME PORT, or connect share. This key reaches nothing",
        (false, true) => "  Next: connect join CODE",
        (false, false) => "  Next: curl -H 'x-api-key: KEY' URL/metrics. This key is for nothing else",
    }
}

/// Whether this enrolling key gave the machine its own one, which is still good. Another `up` then takes no use.
fn is_enrolled(hub_with: impl Fn(&str) -> Result<Arc<Hub>>, own: &str, enrolling: &WhoAmI) -> bool {
    let own = hub_with(own).and_then(|hub| hub.whoami());
    own.is_ok_and(|own| own.enrolled_by.as_ref() == Some(&enrolling.id))
}

/// The key on the command line: itself, in a file, or with `-` from stdin, so that the process list does not show it.
fn typed_key(call: &Call) -> Result<Option<String>> {
    if let Some(file) = call.args.value("api-key-file") {
        let text = fs::read_to_string(file).or_say(|| format!("Cannot read {file}"))?;
        return checked_key(&text).map(Some);
    }
    match call.args.value("api-key").or_else(|| call.args.value("token")) {
        Some("-") => {
            let line = terminal::read_line(KEY_LINE_LIMIT).or_say(|| "Cannot read the key from stdin")?;
            checked_key(&line).map(Some)
        }
        typed => typed.map(checked_key).transpose(),
    }
}

/// Shows a code and waits until it is approved. The hub then sends a key that only this machine gets.
fn ask_for_key(call: &Call, config: &mut Config, url: &HubUrl) -> Result<String> {
    let hub = recognised(call, config, url)?;
    let label = call.args.value("label").map_or_else(user::hostname, str::to_owned);
    let asked = hub.ask_device(&label)?;
    call.say.event(&json!({ "event": "approve", "code": asked.code, "page": asked.page }));
    call.say.line("No API key was given. Have this machine approved:\n");
    call.say.line(&format!("    Code:  {}", asked.code));
    call.say.line(&format!("    On the hub:       connect hub approve {}", asked.code));
    call.say.line(&format!("    Or in a browser:  {}\n", asked.page));
    let life = Duration::from_secs(asked.expires_in_seconds.min(3600));
    call.say.line(&format!(
        "  Waiting for the approval; the code expires in {}; Ctrl+C gives up",
        in_words(life)
    ));
    let deadline = Instant::now() + life;
    while Instant::now() < deadline {
        if call.stop.wait_for(poll_interval(&asked)) {
            call.fail_if_stopped()?;
        }
        match hub.device_state(&asked) {
            Ok(state) => {
                if let Some(key) = state.key {
                    return Ok(key);
                }
            }
            Err(error) if error.may_pass() => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new("Nobody approved the code in time").hint("Run connect up again for a new one"))
}

/// The hub without a key whose pin would identify it: it is recognised by the CA file, by public roots, or because
/// the user compared its pin.
fn recognised(call: &Call, config: &mut Config, url: &HubUrl) -> Result<Hub> {
    let hub = Hub::new(vec![url.clone()], &call.trust(config, None)?, None, &call.stop)?;
    let Err(error) = hub.health() else { return Ok(hub) };
    // Only a certificate that is not trusted can be helped by showing its pin.
    if error.kind == ErrorKind::Unreachable {
        return Err(error);
    }
    let pin = hub.observed_pin()?;
    if !terminal::is_terminal_in() || call.say.json {
        return Err(error.hint(format!("Give --api-key (a key tells how to recognise its hub) or --ca FILE. The hub at {url} shows the pin {pin}")));
    }
    call.say.result(&format!("{url} has a certificate of its own. Its pin is\n\n    {pin}\n"));
    if !call.is_confirmed("Compare it with what `connect hub status` shows on the hub. Is it the same?") {
        return Err(Error::new("Not connected: the hub was not recognised")
            .hint("Ask its owner for a key, which carries the pin"));
    }
    config.hub_pin = Some(pin.to_string());
    Hub::new(vec![url.clone()], &HubTrust::Pin(pin), None, &call.stop)
}
