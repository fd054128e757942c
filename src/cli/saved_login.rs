//! Where a command has its key and the hub's pin from: the login in the config, a variable, or a link. When the hub has
//! replaced its root, the login gets the new pin; of the others the user is told.

use std::path::Path;
use std::sync::Arc;

use super::say::Say;
use crate::api::LoginSecrets;
use crate::api::SavedLogin;
use crate::model::fingerprint::Pin;
use crate::state::config::Config;
use crate::state::home::Home;

/// The login at this hub. The process that saves a new pin says so; the others take it from there.
pub fn of_hub(home: &Home, file: Option<&Path>, say: &Say, hub: String) -> SavedLogin {
    let (home, file, say) = (home.clone(), file.map(Path::to_owned), say.clone());
    let (own_home, own_file) = (home.clone(), file.clone());
    let read = move || {
        let config = Config::load(&home, file.as_deref()).ok()?;
        let login = config.login_at(&hub)?;
        Some(LoginSecrets { key: login.api_key.clone(), pin: login.pin() })
    };
    let replace_root = move |old, new| match Config::change(&own_home, own_file.as_deref(), |config| {
        config.replace_pin(old, new)
    }) {
        Ok(false) => {}
        Ok(true) => say_new_root(&say, new, "Its pin is saved"),
        Err(error) => say_new_root(&say, new, &format!("Its pin cannot be saved: {error}")),
    };
    SavedLogin { read: Arc::new(read), replace_root: Arc::new(replace_root) }
}

/// A key or link that was given to this command.
pub fn given(say: &Say, source: &str) -> SavedLogin {
    let (say, source) = (say.clone(), source.to_owned());
    let replace_root = move |_, new| {
        say_new_root(
            &say,
            new,
            &format!("{source} has the pin of the old one and ends with it: get a new one"),
        );
    };
    SavedLogin { read: Arc::new(|| None), replace_root: Arc::new(replace_root) }
}

pub fn say_new_root(say: &Say, new: Pin, more: &str) {
    say.warn(&format!("The hub has a new root, {new}, signed by the one that was known. {more}"));
}
