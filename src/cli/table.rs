//! The function of each command in this build. A build without a role leaves its lines out.

use super::call::Call;
use super::call::CommandResult;
use super::commands;
use super::help;

pub type CommandFunction = fn(&Call) -> CommandResult;

const FUNCTIONS: &[(&str, CommandFunction)] = &[
    ("hub", commands::hub::run),
    ("hub key create", commands::hub_key::create),
    ("hub key list", commands::hub_key::list),
    ("hub key revoke", commands::hub_key::revoke),
    ("hub approve", commands::hub_key::approve),
    ("hub audit verify", commands::hub_audit::verify),
    ("hub migrate", commands::hub_migrate::run),
    ("hub status", commands::hub_status::run),
    ("up", commands::up::run),
    ("whoami", commands::whoami::run),
    ("logout", commands::logout::run),
    ("discover", commands::discover::run),
    ("services", commands::services::run),
    ("expose", commands::expose::run),
    ("reach", commands::reach::run),
    ("share", commands::share::run),
    ("share list", commands::share::list),
    ("share revoke", commands::share::revoke),
    ("join", commands::join::run),
    ("dev", commands::dev::run),
    ("status", commands::status::status),
    ("stop", commands::status::stop),
    ("daemon start", commands::daemon::start),
    ("daemon stop", commands::daemon::stop),
    ("daemon restart", commands::daemon::restart),
    ("daemon status", commands::daemon::status),
    ("daemon logs", commands::daemon::logs),
    ("daemon install", commands::daemon_service::install),
    ("daemon uninstall", commands::daemon_service::uninstall),
    ("doctor", commands::doctor::run),
    ("proxy", commands::proxy::start),
    ("proxy start", commands::proxy::start),
    ("proxy stop", commands::proxy::stop),
    ("proxy status", commands::proxy::status),
    ("proxy trust", commands::proxy_trust::trust),
    ("proxy untrust", commands::proxy_trust::untrust),
    ("proxy logs", commands::proxy::logs),
    ("completions", commands::completions::script),
    ("completions words", commands::completions::words),
    ("help", help::run),
];

/// `None` if this build was made without the command's role.
pub fn function(path: &str) -> Option<CommandFunction> {
    FUNCTIONS.iter().find(|(known, _)| *known == path).map(|(_, function)| *function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manual::Manual;
    use crate::cli::manual::TEXT;

    #[test]
    fn every_function_has_a_page_and_in_the_full_build_every_page_has_a_function() {
        let manual = Manual::parse(TEXT, |path| function(path).is_some()).unwrap();
        for (path, _) in FUNCTIONS {
            assert!(manual.find(path).is_some(), "{path}");
        }
        let built = manual.commands.iter().filter(|command| command.is_built);
        assert_eq!(built.count(), FUNCTIONS.len());
        assert_eq!(manual.commands.len(), FUNCTIONS.len());
    }
}
