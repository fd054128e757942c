//! `connect forget`: drops the pin of a service's agent, like `ssh-keygen -R`.

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::error::Error;

pub fn run(call: &Call) -> CommandResult {
    let name = call.args.positional(0).unwrap_or_default();
    let pins = call.agent_pins()?;
    if !pins.forget(name)? {
        let known: Vec<String> = pins.all()?.into_keys().collect();
        let hint = if known.is_empty() {
            "None is known here".to_owned()
        } else {
            format!("Known: {}", known.join(", "))
        };
        return Err(Error::new(format!("No agent is known for `{}`", name.escape_debug())).hint(hint));
    }
    call.say.value(&json!({ "forgotten": name }));
    call.say.result(&format!("[ok] Forgot the agent of {name}. The next one that answers is believed"));
    Ok(0)
}
