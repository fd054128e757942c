//! `connect hub audit verify`: checks the chain of the audit log, with or without a running hub.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub::data_folder;
use crate::cli::local_hub::no_hub;
use crate::hub::audit;
use crate::model::text::counted;

pub fn verify(call: &Call) -> CommandResult {
    let data = data_folder(call)?;
    // A folder without a log is most likely the wrong folder, so it is not reported as unchanged.
    if !audit::log_file(&data).exists() {
        return Err(no_hub(&data));
    }
    let lines = audit::verify(&data)?;
    call.say.value(&json!({ "lines": lines, "whole": true }));
    call.say.result(&format!("[ok] {}, unchanged from the first to the last", counted(lines, "line")));
    Ok(0)
}
