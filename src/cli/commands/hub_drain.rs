//! `connect hub drain`: ends the running hub without cutting a connection, as before an upgrade.

use std::time::Duration;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::commands::hub_status::figure;
use crate::cli::local_hub;
use crate::error::Error;
use crate::hub::store;
use crate::model::time::in_words;

/// Without `--timeout`, the hub cuts the sessions that are still open after this time.
const HUB_DRAIN_TIMEOUT: Duration = Duration::from_mins(10);
const DRAIN_POLL: Duration = Duration::from_millis(200);

/// Returns when the hub's process has ended. The hub goes on draining if this command is ended before.
pub fn run(call: &Call) -> CommandResult {
    let timeout = call.args.duration("timeout")?.unwrap_or(HUB_DRAIN_TIMEOUT);
    let data = local_hub::data_folder(call)?;
    let (hub, _) = local_hub::running(call)?.ok_or_else(|| {
        Error::new("No hub runs on this data folder")
            .because(data.display().to_string())
            .hint("Nothing was changed")
    })?;
    let token = local_hub::run_token(call);
    hub.any("POST", "/v1/drain", Some(&json!({ "timeoutSeconds": timeout.as_secs() })))?;
    let latest = in_words(timeout);
    call.say
        .line(&format!("[ok] No new sessions. The hub ends after the last one, in {latest} at the latest"));
    let mut shown = String::new();
    // A service manager may start the next one at once, for a connection that has waited.
    while store::is_in_use(&data) && local_hub::run_token(call).is_none_or(|now| Some(now) == token) {
        let metrics = hub.metrics().unwrap_or_default();
        let open = figure(&metrics, "connect_sessions_open");
        if open != shown && !metrics.is_empty() {
            call.say.event(&json!({ "event": "draining", "sessionsOpen": open.parse::<u64>().ok() }));
            call.say.line(&format!("  Sessions open: {open}"));
            open.clone_into(&mut shown);
        }
        call.stop.wait_for(DRAIN_POLL);
        call.fail_if_stopped()?;
    }
    call.say.event(&json!({ "event": "ended" }));
    call.say.result("[ok] The hub has ended");
    Ok(0)
}
