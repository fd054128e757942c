//! The next secret of this machine's key, as the hub hands it over while the key is rotated.

use super::call::Call;
use super::call::checked_key;
use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::state::config::Config;
use crate::tls::sealed;

/// Saves the next secret in the place of the one that `hub` is called with, and uses it from now on. It is saved before it is
/// shown to the hub for the first time: after that the old one may end. Returns whether there was anything to do.
pub fn accept(call: &Call, hub: &Hub, sealed: &str) -> Result<bool> {
    let key = hub.key();
    let secret = key.split('.').next().unwrap_or_default();
    // Sealed for another secret: this process has the next one already.
    let Some(next) = sealed::open(secret, sealed) else { return Ok(false) };
    let next = checked_key(&next)?;
    let saved =
        Config::change(&call.home, call.config_file(), |config| config.replace_secret(secret, &next))?;
    let saved = saved.ok_or_else(|| {
        Error::new("The hub rotates the key that this process uses, but it is not the saved one").hint(
            "Put the new key there where this one comes from: CONNECT_TOKEN, or the command that wrote it",
        )
    })?;
    hub.use_key(saved);
    Ok(true)
}
