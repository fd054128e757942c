//! `connect proxy trust` and `untrust`: plans, shows, then does.

use std::path::PathBuf;

use serde_json::json;

use super::proxy_parts::CERTIFICATES;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::error::Error;
use crate::error::Result;
use crate::os::paths;
use crate::os::setup::trust_store;
use crate::os::setup::trust_store::MachinePaths;
use crate::os::setup::trust_store::TrustChange;
use crate::os::setup::trust_store::TrustStore;
use crate::os::user;
use crate::proxy::certificates::Certificates;

pub fn trust(call: &Call) -> CommandResult {
    call.say.line("🔒 Trusting Private Connect local CA...\n");
    // Makes it when there is none: who trusts first and starts later needs no second step.
    Certificates::of_folder(&call.home.file(CERTIFICATES))?;
    let done = carry_out(call, TrustChange::Trust)?;
    if done.worked > 0 {
        call.say.line("  Browsers will now trust Private Connect HTTPS certificates.");
    }
    let ca = ca_file(call).display().to_string();
    call.say.line("\n  Programs with a list of their own:");
    call.say
        .line(&format!("    NODE_EXTRA_CA_CERTS={ca} for Node; SSL_CERT_FILE={ca} for Python and others, which then believe no other CA"));
    Ok(done.code())
}

pub fn untrust(call: &Call) -> CommandResult {
    call.say.line("🔒 Removing Private Connect local CA from the trust stores...\n");
    Ok(carry_out(call, TrustChange::Untrust)?.code())
}

/// With `--trust` as above, otherwise a word on whether browsers will warn.
pub fn beside_start(call: &Call) -> Result<()> {
    if call.args.flag("trust") {
        call.say.line("  [!] Adding CA to system trust store...");
        let done = carry_out(call, TrustChange::Trust)?;
        if done.failed == 0 {
            call.say.line("  [ok] CA trusted — no browser warnings");
        }
        return Ok(());
    }
    match trust_store::stores_without(&machine()?, &ca_file(call)).first() {
        None => call.say.line("  [ok] CA trusted — no browser warnings"),
        Some(store) => call
            .say
            .line(&format!("  [!] CA not in {store} yet, browsers may warn. Run: connect proxy trust")),
    }
    Ok(())
}

struct Done {
    worked: usize,
    failed: usize,
}

impl Done {
    fn code(&self) -> u8 {
        u8::from(self.failed > 0)
    }
}

pub fn ca_file(call: &Call) -> PathBuf {
    call.home.file(CERTIFICATES).join("ca.crt")
}

pub fn machine() -> Result<MachinePaths> {
    let home = paths::user_home().ok_or_else(|| Error::new("There is no home folder").hint("Set HOME"))?;
    Ok(MachinePaths { root: PathBuf::from("/"), home })
}

fn carry_out(call: &Call, change: TrustChange) -> Result<Done> {
    let mut stores = trust_store::plan(&machine()?, &ca_file(call), change);
    if call.args.flag("user") {
        stores.retain(|store| !store.needs_root);
    }
    if stores.is_empty() {
        return Err(Error::new("No trust store was found on this machine")
            .hint(format!("Trust it by hand: {}", ca_file(call).display())));
    }
    for store in &stores {
        call.say.line(&format!("  {}:", store.name));
        store.commands().iter().for_each(|command| call.say.line(&format!("    {command}")));
    }
    call.say.line("");
    if call.args.flag("dry-run") {
        call.say.value(
            &stores
                .iter()
                .map(|store| json!({ "store": store.name, "commands": store.commands() }))
                .collect::<Vec<_>>(),
        );
        return Ok(Done { worked: 0, failed: 0 });
    }
    let results: Vec<bool> = stores.iter().map(|store| do_one(call, store, change)).collect();
    let all: Vec<_> = stores
        .iter()
        .zip(&results)
        .map(|(store, done)| json!({ "store": store.name, "done": done }))
        .collect();
    // Within a start the one value is the start's own.
    if !call.args.flag("trust") {
        call.say.value(&all);
    }
    let worked = results.iter().filter(|done| **done).count();
    Ok(Done { worked, failed: results.len() - worked })
}

/// Each store on its own: what one cannot do, another may.
fn do_one(call: &Call, store: &TrustStore, change: TrustChange) -> bool {
    if let Some(missing) = &store.missing {
        call.say.warn(&format!("{} needs {missing}. Install it, then run this again", store.name));
        return false;
    }
    if store.needs_root && !user::is_root() {
        call.say.warn(&format!(
            "The {} belongs to root. Run:\n  {}",
            store.name,
            store.commands().join(" && ")
        ));
        return false;
    }
    match store.carry_out() {
        Ok(()) => {
            let done = if change == TrustChange::Trust { "added to" } else { "removed from" };
            call.say.line(&format!("  [ok] CA {done} {}", store.name));
            true
        }
        Err(error) => {
            call.say.warn(&format!("{}: {error}", store.name));
            false
        }
    }
}
