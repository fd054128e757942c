//! Our own environment variables, and how secrets among them are kept from others.
//!
//! A program that we run for the user gets none of them, a tool that we use gets no secret, and our own process in the
//! background gets the secrets by its stdin: the environment of a process can be read for as long as it lives.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::process::Command;
use std::sync::OnceLock;

/// Each also with `PRIVATE` before it.
const SECRETS: [&str; 3] = ["CONNECT_TOKEN", "CONNECT_JOIN", "CONNECT_ETCD_PASSWORD"];
const SETTINGS: [&str; 4] = ["CONNECT_HUB_URL", "CONNECT_HOME", "CONNECT_CA", "CONNECT_BACKGROUND_LOG"];

/// The secrets that came by stdin.
static HANDED_OVER: OnceLock<BTreeMap<String, String>> = OnceLock::new();

pub fn set_handed_over(secrets: BTreeMap<String, String>) {
    let _ = HANDED_OVER.set(secrets);
}

pub fn value(name: &str) -> Option<String> {
    HANDED_OVER.get().and_then(|secrets| secrets.get(name).cloned()).or_else(|| env::var(name).ok())
}

/// The secrets that this process has.
pub fn secrets() -> BTreeMap<String, String> {
    secret_names().filter_map(|name| Some((name.clone(), value(&name)?))).collect()
}

fn secret_names() -> impl Iterator<Item = String> {
    SECRETS.iter().flat_map(|name| [(*name).to_owned(), format!("PRIVATE{name}")])
}

pub fn without_secrets(command: &mut Command) -> &mut Command {
    secret_names().fold(command, |command, name| command.env_remove(name))
}

pub fn is_own(name: &OsStr) -> bool {
    let short = name.to_str().map(|name| name.strip_prefix("PRIVATE").unwrap_or(name));
    short.is_some_and(|name| SECRETS.contains(&name) || SETTINGS.contains(&name))
}
