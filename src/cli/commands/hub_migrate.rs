//! `connect hub migrate`: from one store to another, checked by reading it back.

use std::path::PathBuf;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub::data_folder;
use crate::cli::store_options::StoreOptions;
use crate::error::Error;
use crate::error::Result;
use crate::hub::store::StoreLocation;
use crate::hub::store::open_unused;

pub fn run(call: &Call) -> CommandResult {
    let (from, from_name) = location(call, "from")?;
    let (to, to_name) = location(call, "to")?;
    let contents = open_unused(&from, &call.stop)?.load()?;
    if contents.is_empty() {
        return Err(Error::new(format!("There is nothing in {from_name}"))
            .hint("Check --from; a hub that lies elsewhere is named by file=DIR"));
    }
    let mut destination = open_unused(&to, &call.stop)?;
    let there = destination.load()?;
    if !there.is_empty() && !call.args.flag("replace") {
        return Err(Error::new(format!(
            "{to_name} is not empty: it holds {} record(s)",
            there.records.len()
        ))
        .hint("Look at it first. To drop what it holds, add --replace"));
    }
    destination.replace(&contents)?;
    // What counts is what the next one to open it finds.
    drop(destination);
    if open_unused(&to, &call.stop)?.load()? != contents {
        return Err(Error::new(format!("{to_name} does not hold what was written"))
            .hint(format!("{from_name} is untouched; look at the destination, then try again")));
    }
    let count = contents.records.len();
    call.say.value(&json!({ "records": count, "from": from_name, "to": to_name }));
    call.say.result(&format!(
        "[ok] Copied {count} record(s) and the CA from {from_name} to {to_name}, and read them back"
    ));
    call.say.line("  Keys, shares and pins are the same. Start the hub on its new store:");
    call.say.line(&format!(
        "    connect hub --store {}",
        if to_name.starts_with("file") { "file" } else { &to_name }
    ));
    Ok(0)
}

/// Where the store of `--from` or `--to` is, and its name for people.
fn location(call: &Call, option: &str) -> Result<(StoreLocation, String)> {
    let Some(named) = call.args.value(option) else {
        return Err(Error::usage(format!("--{option} is missing"))
            .hint("Usage: connect hub migrate --from file --to etcd=http://127.0.0.1:2379"));
    };
    let folder = match named.split_once('=') {
        Some(("file", folder)) => Some(PathBuf::from(folder)),
        None if named == "file" => Some(data_folder(call)?),
        _ => None,
    };
    if let Some(folder) = folder {
        let name = format!("file={}", folder.display());
        return Ok((StoreLocation::Folder(folder), name));
    }
    let etcd = StoreOptions::given(call, Some(named))?.read()?;
    let etcd = etcd.ok_or_else(|| Error::unknown("store", named))?;
    Ok((StoreLocation::Etcd(etcd), named.to_owned()))
}
