//! `connect hub migrate`: from one store to another, checked by reading it back.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub::data_folder;
use crate::cli::store_options::StoreOptions;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::hub::audit;
use crate::hub::code_key::CodeKey;
use crate::hub::store::StoreLocation;
use crate::hub::store::open_unused;
use crate::hub::tunnel_ports::TUNNEL_PORTS_FILE;
use crate::model::text::counted;
use crate::state::chain_files;

pub fn run(call: &Call) -> CommandResult {
    let (from, from_name) = location(call, "from")?;
    let (to, to_name) = location(call, "to")?;
    let mut contents = open_unused(&from, &call.stop)?.load()?;
    if contents.is_empty() {
        return Err(Error::new(format!("There is nothing in {from_name}"))
            .hint("Check --from; for a hub in another folder: file=DIR"));
    }
    let mut destination = open_unused(&to, &call.stop)?;
    let there = destination.load()?;
    if !there.is_empty() && !call.args.flag("replace") {
        let held = counted(there.records.len(), "record");
        return Err(Error::new(format!("{to_name} is not empty: it holds {held}"))
            .hint("Look at it first. To drop what it holds, add --replace"));
    }
    if let (StoreLocation::Folder(folder), Some(ca)) = (&to, &mut contents.ca) {
        let before = match &from {
            StoreLocation::Folder(folder) => folder.clone(),
            StoreLocation::Etcd(_) => data_folder(call)?,
        };
        ca.code_key_id = move_code_key(call, &before, folder, &ca.code_key_id)?;
        copy_own_files(&before, folder)?;
    }
    let copying = format!("  Copying {} to {to_name}", counted(contents.records.len(), "record"));
    call.say.during(&copying, || destination.replace(&contents))?;
    // What counts is what the next one to open it finds.
    drop(destination);
    if open_unused(&to, &call.stop)?.load()? != contents {
        return Err(Error::new(format!("{to_name} does not hold what was written"))
            .hint(format!("{from_name} is untouched; look at the destination, then try again")));
    }
    let count = contents.records.len();
    call.say.value(&json!({ "records": count, "from": from_name, "to": to_name }));
    call.say.result(&format!(
        "[ok] Copied {} and the CA from {from_name} to {to_name}, and read them back",
        counted(count, "record")
    ));
    call.say.line("  Keys, shares and pins are the same. Start the hub on its new store:");
    match &to {
        StoreLocation::Folder(folder) => {
            call.say.line(&format!("    connect hub --data {}", folder.display()));
        }
        StoreLocation::Etcd(_) => {
            call.say.line(&format!("    connect hub --store {to_name}"));
            call.say
                .line("  Each further hub needs code.key from this one's data folder: --code-key-file FILE");
        }
    }
    Ok(0)
}

/// Tunnel ports and audit log belong to the machine, so they are in no store.
fn copy_own_files(from: &Path, to: &Path) -> Result<()> {
    let log = audit::log_file(from);
    let own = [from.join(TUNNEL_PORTS_FILE), log.clone()].into_iter().chain(chain_files::segments(&log));
    for file in own.filter(|file| file.exists()) {
        let copied = file.file_name().map(|name| fs::copy(&file, to.join(name)));
        copied.transpose().or_say(|| format!("Cannot copy {} to {}", file.display(), to.display()))?;
    }
    Ok(())
}

/// The key that the share codes are hashed under is in no store. Copies it to the hub's new folder and returns its ID; if it
/// cannot be found, the hub gets a new one, and the old codes are lost.
fn move_code_key(call: &Call, from: &Path, to: &Path, id: &str) -> Result<String> {
    let key = CodeKey::load_or_make(from, call.args.value("code-key-file").map(Path::new))?;
    if key.id() != id {
        call.say.warn("The fleet's code.key was not found, so no share code will work any more");
        call.say.warn("To keep them, name the file of one of its hubs: --replace --code-key-file FILE");
    }
    key.write(to)?;
    Ok(key.id())
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
