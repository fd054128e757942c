//! The function of each command in this build.
//!
//! The order does not matter: help follows `commands.txt`. A build without a role leaves its lines out, and the command
//! then says which build has it.

use super::call::Call;
use super::call::CommandResult;
use super::commands;
use super::help;

pub type CommandFunction = fn(&Call) -> CommandResult;

const FUNCTIONS: &[(&str, CommandFunction)] = &[
    #[cfg(feature = "hub")]
    ("hub", commands::hub::run),
    #[cfg(feature = "hub")]
    ("hub key create", commands::hub_key::create),
    #[cfg(feature = "hub")]
    ("hub key rotate", commands::hub_key::rotate),
    #[cfg(feature = "hub")]
    ("hub key list", commands::hub_key::list),
    #[cfg(feature = "hub")]
    ("hub key revoke", commands::hub_key::revoke),
    #[cfg(feature = "hub")]
    ("hub agent list", commands::hub_records::agents),
    #[cfg(feature = "hub")]
    ("hub agent remove", commands::hub_records::remove_agent),
    #[cfg(feature = "hub")]
    ("hub service remove", commands::hub_records::remove_service),
    #[cfg(feature = "hub")]
    ("hub approve", commands::hub_key::approve),
    #[cfg(feature = "hub")]
    ("hub ca", commands::hub_status::ca),
    #[cfg(feature = "hub")]
    ("hub ca rotate", commands::hub_status::rotate_ca),
    #[cfg(feature = "hub")]
    ("hub audit verify", commands::hub_audit::verify),
    #[cfg(feature = "hub")]
    ("hub audit show", commands::hub_audit::show),
    #[cfg(feature = "hub")]
    ("hub audit rotate", commands::hub_audit::rotate),
    #[cfg(feature = "hub")]
    ("hub backup", commands::hub_backup::backup),
    #[cfg(feature = "hub")]
    ("hub restore", commands::hub_backup::restore),
    #[cfg(feature = "hub")]
    ("hub drain", commands::hub_drain::run),
    #[cfg(feature = "hub")]
    ("hub install", commands::install::install),
    #[cfg(feature = "hub")]
    ("hub uninstall", commands::install::uninstall),
    #[cfg(feature = "fleet")]
    ("hub migrate", commands::hub_migrate::run),
    #[cfg(feature = "hub")]
    ("hub status", commands::hub_status::run),
    ("up", commands::up::run),
    ("whoami", commands::whoami::run),
    #[cfg(feature = "agent")]
    ("identity rotate", commands::identity::rotate),
    ("logout", commands::logout::run),
    ("forget", commands::forget::run),
    #[cfg(feature = "discover")]
    ("discover", commands::discover::run),
    ("services", commands::services::run),
    ("services remove", commands::services::remove),
    #[cfg(feature = "agent")]
    ("expose", commands::expose::run),
    #[cfg(feature = "join")]
    ("reach", commands::reach::run),
    #[cfg(feature = "agent")]
    ("share", commands::share::run),
    #[cfg(feature = "agent")]
    ("share list", commands::share::list),
    #[cfg(feature = "agent")]
    ("share revoke", commands::share::revoke),
    #[cfg(feature = "join")]
    ("join", commands::join::run),
    #[cfg(feature = "join")]
    ("dev", commands::dev::run),
    ("status", commands::status::status),
    ("stop", commands::status::stop),
    #[cfg(feature = "agent")]
    ("daemon start", commands::daemon::start),
    #[cfg(feature = "agent")]
    ("daemon stop", commands::daemon::stop),
    #[cfg(feature = "agent")]
    ("daemon restart", commands::daemon::restart),
    #[cfg(feature = "agent")]
    ("daemon status", commands::daemon::status),
    #[cfg(feature = "agent")]
    ("daemon logs", commands::daemon::logs),
    #[cfg(feature = "agent")]
    ("daemon install", commands::install::install),
    #[cfg(feature = "agent")]
    ("daemon uninstall", commands::install::uninstall),
    ("doctor", commands::doctor::run),
    #[cfg(feature = "proxy")]
    ("proxy", commands::proxy::start),
    #[cfg(feature = "proxy")]
    ("proxy start", commands::proxy::start),
    #[cfg(feature = "proxy")]
    ("proxy stop", commands::proxy::stop),
    #[cfg(feature = "proxy")]
    ("proxy status", commands::proxy::status),
    #[cfg(feature = "proxy")]
    ("proxy trust", commands::proxy_trust::trust),
    #[cfg(feature = "proxy")]
    ("proxy untrust", commands::proxy_trust::untrust),
    #[cfg(feature = "proxy")]
    ("proxy logs", commands::proxy::logs),
    #[cfg(feature = "proxy")]
    ("proxy install", commands::install::install),
    #[cfg(feature = "proxy")]
    ("proxy uninstall", commands::install::uninstall),
    ("completions", commands::completions::script),
    ("completions words", commands::completions::words),
    #[cfg(feature = "demo")]
    ("demo", commands::demo::run),
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
    fn every_function_has_a_page_and_every_page_of_a_built_role_has_a_function() {
        let manual = Manual::parse(TEXT, |path| function(path).is_some()).unwrap();
        for (path, _) in FUNCTIONS {
            assert!(manual.find(path).is_some(), "{path}");
        }
        let roles = [
            ("every", true),
            ("hub", cfg!(feature = "hub")),
            ("fleet", cfg!(feature = "fleet")),
            ("agent", cfg!(feature = "agent")),
            ("join", cfg!(feature = "join")),
            ("proxy", cfg!(feature = "proxy")),
            ("discover", cfg!(feature = "discover")),
            ("demo", cfg!(feature = "demo")),
        ];
        for command in &manual.commands {
            let (_, is_in_this_build) =
                roles.iter().find(|(role, _)| *role == command.role).expect("the role is one of these");
            assert_eq!(command.is_built, *is_in_this_build, "{}", command.path);
        }
    }
}
