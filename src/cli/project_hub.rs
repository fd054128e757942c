//! The hub that a project's file names. Such a file is often somebody else's, so it is not trusted with our key.

use std::sync::Arc;

use super::call::Call;
use super::call::not_configured;
use super::call::variable;
use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::model::hub_trust::HubTrust;
use crate::net::address::HubUrl;

/// The hub that the project names, unless the option or the environment names another. It gets our key only if the
/// key would go there without the file as well, or if it proves the pin: then it is our hub, wherever it is.
pub fn project_hub(call: &Call, named: Option<&str>) -> Result<Arc<Hub>> {
    let is_overridden = call.args.value("hub").is_some() || variable("CONNECT_HUB_URL").is_some();
    let Some(named) = named.filter(|_| !is_overridden) else { return call.hub() };
    let named = HubUrl::parse(named)?;
    let mut known = call.hub_urls()?;
    if let Some(at) = known.iter().position(|url| *url == named) {
        known.swap(0, at);
        return call.hub_at(known, &call.stop);
    }
    let key = call.api_key()?.ok_or_else(not_configured)?;
    if !matches!(call.trust(&*call.config()?, Some(&key))?, HubTrust::Pin(_)) {
        return Err(Error::new(format!(
            "This project names the hub {named}, which is not known to this machine"
        ))
        .hint(format!("It would get this machine's key. If that is meant: connect dev --hub {named}")));
    }
    call.hub_at(vec![named], &call.stop)
}
