//! `connect identity rotate`: this machine gets a new identity, signed by the one that it had.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::state::identity;

pub fn rotate(call: &Call) -> CommandResult {
    let old = identity::rotate(&call.home)?.fingerprint;
    let new = call.identity()?.fingerprint;
    call.say.value(&json!({ "fingerprint": new, "replaced": old }));
    call.say.result(&format!(
        "[ok] The identity of this machine is now {}, signed by {}",
        new.pin(),
        old.pin()
    ));
    call.say.line("  What it exposes goes on. The hub is told within seconds, or when the machine exposes something again");
    call.say.line("  Those who know the old one accept the new one, and say so once");
    Ok(0)
}
