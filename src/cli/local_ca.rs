//! The local CA that signs the proxy's certificates, and the trust stores of this machine that may hold it.

use std::path::PathBuf;

use serde_json::json;

use super::call::Call;
use crate::error::Error;
use crate::error::Result;
use crate::os::paths;
use crate::os::setup::trust_store;
use crate::os::setup::trust_store::MachinePaths;
use crate::os::setup::trust_store::TrustChange;
use crate::os::setup::trust_store::TrustStore;
use crate::os::user;
use crate::proxy::certificates;

/// How many stores were changed, and how many could not be.
#[derive(Default)]
pub struct StoreCount {
    pub changed: usize,
    pub failed: usize,
}

impl StoreCount {
    pub fn exit_code(&self) -> u8 {
        u8::from(self.failed > 0)
    }
}

pub fn folder(call: &Call) -> PathBuf {
    call.home.file("certs")
}

pub fn ca_file(call: &Call) -> PathBuf {
    folder(call).join("ca.crt")
}

pub fn machine() -> Result<MachinePaths> {
    let home = paths::user_home().ok_or_else(|| Error::new("There is no home folder").hint("Set HOME"))?;
    Ok(MachinePaths { root: PathBuf::from("/"), home })
}

/// When the proxy starts: with `--trust` adds the CA to the stores, otherwise says whether browsers will warn.
pub fn trust_or_warn(call: &Call) -> Result<()> {
    if call.args.flag("trust") {
        call.say.line("  [!] Adding CA to system trust store...");
        if change_stores(call, TrustChange::Trust)?.failed == 0 {
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

/// Shows the commands for each store and, without `--dry-run`, runs them.
pub fn change_stores(call: &Call, change: TrustChange) -> Result<StoreCount> {
    if change == TrustChange::Trust {
        certificates::check_ca(&folder(call))?;
    }
    let mut stores = trust_store::plan(&machine()?, &ca_file(call), change);
    if call.args.flag("user") {
        stores.retain(|store| !store.needs_root);
    }
    if stores.is_empty() {
        return Err(Error::new("No trust store was found on this machine")
            .hint(format!("Trust it by hand: {}", ca_file(call).display())));
    }
    // Every command is shown before the first one runs, since some of them ask for a password.
    let mut planned = Vec::new();
    for store in &stores {
        let commands = store.commands();
        call.say.line(&format!("  {}:", store.name));
        for command in &commands {
            call.say.line(&format!("    {command}"));
        }
        planned.push(json!({ "store": store.name, "commands": commands }));
    }
    call.say.line("");
    if call.args.flag("dry-run") {
        call.say.value(&planned);
        return Ok(StoreCount::default());
    }
    let mut count = StoreCount::default();
    let mut results = Vec::new();
    for store in &stores {
        let is_done = change_store(call, store, change);
        if is_done {
            count.changed += 1;
        } else {
            count.failed += 1;
        }
        results.push(json!({ "store": store.name, "done": is_done }));
    }
    // Within `proxy start --trust` the one JSON value is the start's own.
    if !call.args.flag("trust") {
        call.say.value(&results);
    }
    Ok(count)
}

/// The stores do not depend on each other, so a failure is reported and the next one is tried.
fn change_store(call: &Call, store: &TrustStore, change: TrustChange) -> bool {
    if let Some(missing) = &store.missing {
        call.say.warn(&format!("{} needs {missing}. Install it, then run this again", store.name));
        return false;
    }
    if store.needs_root && !user::is_root() {
        let commands = store.commands().join(" && ");
        call.say.warn(&format!("The {} belongs to root. Run:\n  {commands}", store.name));
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
