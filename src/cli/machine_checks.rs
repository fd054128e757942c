//! The checks of `connect doctor` on this machine: the state folder, the login, what runs, and its limits.

#![allow(clippy::unnecessary_wraps)] // Every check has the type `Check`.

use std::path::Path;
use std::path::PathBuf;

use super::call::not_configured;
use super::checkup::CheckResult;
use super::checkup::Checkup;
use crate::error::Error;
use crate::error::Result;
use crate::model::hub_trust::HubTrust;
use crate::model::text::counted;
use crate::os::files;
use crate::os::limits;
use crate::os::paths;
use crate::state::config::pin_of;
use crate::state::home::Home;
use crate::state::proxy;
use crate::state::routes;
use crate::state::runs;
use crate::state::runs::Run;
use crate::tls::identity::Identity;

/// Our own files and folders in the state folder.
const OWN_FILES: [&str; 14] = [
    "config.json",
    "confirmed.json",
    "daemon.env",
    "identity.pem",
    "known_agents.json",
    "active-routes.json",
    "proxy-state.json",
    "ports.json",
    "services.json",
    "agent.log",
    "proxy.log",
    "run",
    "logs",
    "certs",
];
/// Fewer open files than this run out at about 500 connections, since each takes two. It is the usual default.
const FEWEST_OPEN_FILES: usize = 1024;

pub fn state_folder(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let home = &checkup.call.home;
    let probe = home.file(".doctor");
    let written =
        home.lock().and_then(|_lock| files::write(&probe, b"x")).and_then(|()| files::remove(&probe));
    let result =
        CheckResult::of(written.map(|()| format!("{} can be written", paths::shown(&home.file("")))));
    // A folder that others could change is refused by every command.
    Some(if home.check().is_ok() { result.unless_by_link_only(checkup.call) } else { result })
}

pub fn file_modes(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let open = open_to_others(&checkup.call.home);
    let Some(first) = open.first() else { return Some(CheckResult::ok("private to this user")) };
    let count = counted(open.len(), "file");
    let what = format!("{count} open to other users, like {}", paths::shown(first));
    let error = Error::new(what).hint("connect doctor --fix");
    Some(CheckResult::fail(&error).with_fix(make_private))
}

/// The state folder may be any folder of the user's, so only our own files in it count.
fn open_to_others(home: &Home) -> Vec<PathBuf> {
    let folder = home.file("");
    let is_open = |path: &Path| files::is_open_to_others(path).then(|| path.to_owned());
    let ours = OWN_FILES.iter().flat_map(|name| files::open_to_others_below(&home.file(name)));
    is_open(&folder).into_iter().chain(ours).collect()
}

fn make_private(home: &Home) -> Result<()> {
    open_to_others(home).iter().try_for_each(|path| files::make_private(path))
}

/// The config names a hub and has a key. Only then do the checks of the hub have something to check.
pub fn config(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let call = checkup.call;
    let read = call.config().and_then(|config| {
        let url = call.hub_urls()?.remove(0);
        call.api_key()?.ok_or_else(|| not_configured().hint("connect up --hub URL --api-key KEY"))?;
        checkup.hub = Some(call.hub()?);
        Ok(format!("hub {url}, this machine is {}", config.label.as_deref().unwrap_or("not registered")))
    });
    Some(CheckResult::of(read).unless_by_link_only(call))
}

pub fn key(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    checkup.hub.as_ref()?;
    let config = checkup.call.config().ok()?;
    let key = checkup.call.api_key().ok()??;
    let trust = checkup.call.trust(&config, Some(&key));
    Some(CheckResult::of(trust.map(|trust| match trust {
        HubTrust::Pin(pin) if pin_of(&key) == Some(pin) => format!("it carries the hub's pin {pin}"),
        HubTrust::Pin(pin) => format!("the hub is recognised by the pin {pin}"),
        HubTrust::Roots(_) => "the hub is recognised by your CA file".to_owned(),
        HubTrust::Public => "the hub is recognised by public certificates".to_owned(),
    })))
}

pub fn identity(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let path = checkup.call.home.file("identity.pem");
    let pem = match files::read(&path) {
        Ok(Some(pem)) => pem,
        Ok(None) => return Some(CheckResult::ok("none yet; it is made when first needed")),
        Err(error) => return Some(CheckResult::fail(&error)),
    };
    let parsed = Identity::parse(&pem)
        .map(|identity| format!("fingerprint {}", identity.fingerprint.pin()))
        .map_err(|error| error.hint(format!("mv {0} {0}.old", path.display())));
    Some(CheckResult::of(parsed))
}

/// What `expose --keep` saved is exposed by the daemon.
pub fn exposures(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let saved = checkup.call.config().ok()?.exposures.len();
    if saved == 0 {
        return None;
    }
    let Some(daemon) = runs::running(&checkup.call.home, runs::DAEMON_KIND) else {
        let error = Error::new(format!("{saved} saved, but no daemon runs that would expose them"));
        return Some(CheckResult::fail(&error.hint("connect daemon start")));
    };
    let Some(down) = daemon.open.iter().find(|open| !open.up) else {
        return Some(CheckResult::ok(format!("the daemon keeps {saved} up")));
    };
    let why = down.trouble.as_deref().unwrap_or("the hub has not answered yet");
    Some(CheckResult::fail(&Error::new(format!("{}: {why}", down.name)).hint("connect daemon logs")))
}

/// What listens for joiners that come without the relay.
pub fn direct_sessions(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let alive = runs::all(&checkup.call.home).into_iter().filter(Run::is_alive);
    let listening = alive.filter_map(|run| Some(format!("{} on {}", run.title(), run.direct?)));
    let listening: Vec<String> = listening.collect();
    Some(CheckResult::ok(match listening.as_slice() {
        [] => "nothing listens for them".to_owned(),
        all => format!("listening: {}", all.join(", ")),
    }))
}

/// Entries in the lists of runs, routes and the proxy whose process is gone.
pub fn stale_entries(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let home = &checkup.call.home;
    let dead = runs::all(home).iter().filter(|run| !run.is_alive()).map(Run::title).collect::<Vec<_>>();
    let is_proxy_stale = home.file(proxy::PROXY_STATE_FILE).exists() && proxy::running(home).is_none();
    if dead.is_empty() && routes::dead(home) == 0 && !is_proxy_stale {
        return Some(CheckResult::ok("none"));
    }
    let found = match dead.as_slice() {
        [] => "a process that was killed left entries behind".to_owned(),
        names => format!("ended by themselves: {}", names.join(", ")),
    };
    let hint = "See why: connect status. Clear them: connect doctor --fix";
    Some(CheckResult::warn(found, hint).with_fix(forget_dead))
}

fn forget_dead(home: &Home) -> Result<()> {
    for run in runs::all(home).iter().filter(|run| !run.is_alive()) {
        runs::forget(home, run.pid);
    }
    if proxy::running(home).is_none() {
        files::remove(&home.file(proxy::PROXY_STATE_FILE))?;
    }
    routes::tidy(home)
}

pub fn open_files(_: &mut Checkup<'_>) -> Option<CheckResult> {
    let allowed = limits::open_files();
    if allowed >= FEWEST_OPEN_FILES {
        return Some(CheckResult::ok(format!("{allowed} allowed")));
    }
    let found = format!("only {allowed}; each connection through a tunnel takes two");
    Some(CheckResult::warn(found, "ulimit -n 65536, for good in /etc/security/limits.conf"))
}
