//! The hub that a project's file names. Such a file is often somebody else's, so it is not trusted with our key.

use std::sync::Arc;

use super::call::Call;
use super::call::variable;
use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::model::hub_trust::HubTrust;
use crate::net::address::HubUrl;

/// The hub that the project names, unless the option or the environment names another.
pub fn project_hub(call: &Call, named: Option<&str>) -> Result<Arc<Hub>> {
    let is_overridden = call.args.value("hub").is_some() || variable("CONNECT_HUB_URL").is_some();
    let Some(named) = named.filter(|_| !is_overridden) else { return call.hub() };
    if call.config()?.hub_url.as_deref() == Some(named) {
        return call.hub();
    }
    let url = HubUrl::parse(named)?;
    require_known(call, &url)?;
    call.hub_at(vec![url], &call.stop)
}

/// A hub that proves our key's pin is ours, wherever it is. Without a pin any host that the file names would get the
/// key, so then the address must be one that `connect up` saved.
fn require_known(call: &Call, named: &HubUrl) -> Result<()> {
    let config = call.config()?;
    let Some(own) = &config.hub_url else { return Ok(()) };
    let trust = call.trust(&config, call.api_key()?.as_deref())?;
    let mut known = [own].into_iter().chain(&config.hubs).filter_map(|url| HubUrl::parse(url).ok());
    if known.any(|url| url == *named) || matches!(trust, HubTrust::Pin(_)) {
        return Ok(());
    }
    let what =
        format!("This project names another hub, {named}, than {own}, where this machine is logged in");
    Err(Error::new(what)
        .hint(format!("It would get this machine's key. If that is meant: connect dev --hub {named}")))
}
