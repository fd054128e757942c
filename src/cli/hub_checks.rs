//! The checks of `connect doctor` on the path to the hub, and on what it says about this machine.

use std::time::Duration;
use std::time::Instant;

use super::call::Call;
use super::checkup::CheckResult;
use super::checkup::Checkup;
use super::hub_path;
use crate::api::Hub;
use crate::error::Result;
use crate::model::access::Action;
use crate::model::time::in_words;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::os::clock;
use crate::state::agent_pins::agent_changed;
use crate::tls::succession::replaced_by;

/// A larger difference makes times in lists and logs misleading.
const MOST_CLOCK_SKEW: Duration = Duration::from_secs(30);

/// A step on the path to the hub. If it fails, the checks after it are left out.
fn path_check(
    checkup: &mut Checkup<'_>,
    step: impl FnOnce(&Call, &Hub) -> Result<String>,
) -> Option<CheckResult> {
    let hub = checkup.hub.clone()?;
    let began = Instant::now();
    let found = step(checkup.call, &hub);
    if found.is_err() {
        checkup.hub = None;
    }
    Some(CheckResult::of(found.map(|found| format!("{found} ({} ms)", began.elapsed().as_millis()))))
}

pub fn dns(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    path_check(checkup, |call, hub| hub_path::dns(call, &hub.url, Instant::now() + NETWORK_TIMEOUT))
}

pub fn tcp(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    path_check(checkup, |call, hub| {
        let connected = hub_path::tcp(call, &hub.url, Instant::now() + NETWORK_TIMEOUT);
        connected.map_err(|error| match error.hint {
            Some(_) => error,
            None => error.hint(format!(
                "See on the hub's machine that it runs: connect hub status. A firewall may drop port {}",
                hub.url.port
            )),
        })
    })
}

pub fn tls(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    path_check(checkup, |_, hub| {
        hub.check_identity(&hub.url).map(|()| format!("the hub proved who it is by {}", hub.negotiated()))
    })
}

pub fn http(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    path_check(checkup, |_, hub| hub.health().map(|health| format!("connect {}", health.version)))
}

pub fn login(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    path_check(checkup, |_, hub| Ok(hub.whoami()?.rights()))
}

pub fn clock_skew(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    // The hub's time comes with its health; the delay on the network is far below the limit.
    let theirs = checkup.hub.as_ref()?.health().ok()?.time?;
    let ours = clock::now();
    let (ahead, behind) = (ours.since(theirs), theirs.since(ours));
    let found = if ahead > MOST_CLOCK_SKEW {
        format!("this machine is {} ahead of the hub", in_words(ahead))
    } else if behind > MOST_CLOCK_SKEW {
        format!("this machine is {} behind the hub", in_words(behind))
    } else {
        return Some(CheckResult::ok("as the hub's"));
    };
    Some(CheckResult::warn(found, "Set the clock that is wrong: timedatectl set-ntp true"))
}

fn may(hub: &Hub, action: Action) -> Option<bool> {
    Some(hub.whoami().ok()?.may(action))
}

pub fn control_channel(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let hub = checkup.hub.as_ref()?;
    if !may(hub, Action::Expose)? {
        return Some(CheckResult::ok("not for this key: it may not expose"));
    }
    Some(CheckResult::of(hub.control().map(|_| "an agent can connect".to_owned())))
}

/// Compares the agents that answered before with those that the hub names now.
pub fn agents(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let hub = checkup.hub.as_ref()?;
    if !may(hub, Action::Reach)? {
        return Some(CheckResult::ok("not for this key: it may not reach"));
    }
    let known = checkup.call.agent_pins().and_then(|pins| pins.all()).ok()?;
    let (services, agents) = (hub.workspace_services().ok()?, hub.agents().ok()?);
    let now = |name: &str| {
        let service = services.iter().find(|service| service.name.as_str() == name);
        let id = service.map_or(name, |service| &service.agent_id);
        agents.iter().find(|agent| agent.id == id)
    };
    let changed = known.iter().find_map(|(name, pinned)| {
        let agent = now(name).filter(|agent| agent.fingerprint != *pinned)?;
        let is_successor = replaced_by(agent.fingerprint, &agent.chain).contains(pinned);
        (!is_successor).then(|| CheckResult::fail(&agent_changed(name, *pinned, agent.fingerprint)))
    });
    let unchanged = || CheckResult::ok(format!("{} known, none has changed", known.len()));
    Some(changed.unwrap_or_else(unchanged))
}

pub fn relay(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let hub = checkup.hub.as_ref()?;
    Some(CheckResult::of(hub_path::relay(hub).map(str::to_owned)))
}
