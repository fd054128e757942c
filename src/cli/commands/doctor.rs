//! `connect doctor`: makes one check after the other and prints its result with the command that fixes it.
//!
//! The checks are in `machine_checks`, `hub_checks` and `proxy_checks`. To add one, write a function of the type
//! `Check` and a line here.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::checkup::Check;
use crate::cli::checkup::CheckResult;
use crate::cli::checkup::Checkup;
use crate::cli::checkup::Severity;
use crate::cli::hub_checks;
use crate::cli::machine_checks;
#[cfg(feature = "proxy")]
use crate::cli::proxy_checks;
use crate::model::text::counted;

/// In this order: later checks need what earlier ones found.
const CHECKS: &[(&str, Check)] = &[
    ("file modes", machine_checks::file_modes),
    ("state folder", machine_checks::state_folder),
    ("config", machine_checks::config),
    ("key", machine_checks::key),
    ("identity", machine_checks::identity),
    ("exposures", machine_checks::exposures),
    ("direct sessions", machine_checks::direct_sessions),
    ("stale entries", machine_checks::stale_entries),
    ("open files", machine_checks::open_files),
    ("hub: DNS", hub_checks::dns),
    ("hub: TCP", hub_checks::tcp),
    ("hub: TLS", hub_checks::tls),
    ("hub: HTTP", hub_checks::http),
    ("clock", hub_checks::clock_skew),
    ("login", hub_checks::login),
    ("control channel", hub_checks::control_channel),
    ("relay", hub_checks::relay),
    ("known agents", hub_checks::agents),
    #[cfg(feature = "proxy")]
    (".localhost", proxy_checks::dot_localhost),
    #[cfg(feature = "proxy")]
    ("proxy", proxy_checks::local_proxy),
    #[cfg(feature = "proxy")]
    ("certificates", proxy_checks::certificates),
];

pub fn run(call: &Call) -> CommandResult {
    let mut checkup = Checkup { call, hub: None };
    let mut listed = Vec::new();
    let (mut failed, mut warned) = (0, 0);
    for (name, check) in CHECKS {
        let Some(mut result) = check(&mut checkup) else { continue };
        call.fail_if_stopped()?;
        let is_fixed = call.args.flag("fix") && apply_fix(call, &mut result);
        show(call, name, &result, is_fixed);
        let word = match result.severity {
            Severity::Ok => "ok",
            Severity::Warn => {
                warned += 1;
                "warn"
            }
            Severity::Fail => {
                failed += 1;
                "fail"
            }
        };
        listed.push(json!({ "check": name, "verdict": word, "said": result.found, "mend": result.hint, "fixed": is_fixed }));
    }
    call.say.value(&listed);
    call.say.line("");
    call.say.result(&match (failed, warned) {
        (0, 0) => "[ok] Everything works".to_owned(),
        (0, _) => format!("[ok] Everything works, with {}", counted(warned, "warning")),
        _ => format!("[x] {} failed", counted(failed, "check")),
    });
    Ok(u8::from(failed > 0))
}

/// Repairs what the check found, if it knows how. A repair that fails says why in place of the hint.
fn apply_fix(call: &Call, result: &mut CheckResult) -> bool {
    let Some(fix) = result.fix else { return false };
    match fix(&call.home) {
        Ok(()) => {
            result.severity = Severity::Ok;
            result.hint = None;
            true
        }
        Err(error) => {
            result.hint = Some(format!("{error}. {}", error.hint.clone().unwrap_or_default()));
            false
        }
    }
}

/// `--quiet` prints only what is wrong.
fn show(call: &Call, name: &str, result: &CheckResult, is_fixed: bool) {
    let mark = match result.severity {
        Severity::Ok => "[ok]",
        Severity::Warn => "[!] ",
        Severity::Fail => "[x] ",
    };
    let fixed = if is_fixed { "; fixed" } else { "" };
    let line = format!("{mark} {name:<16} {}{fixed}", result.found);
    if result.severity == Severity::Ok {
        call.say.line(&line);
    } else {
        call.say.result(&line);
    }
    if let Some(hint) = &result.hint {
        call.say.result(&format!("{:22}{hint}", ""));
    }
}
