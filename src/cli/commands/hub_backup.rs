//! `connect hub backup` and `restore`: everything that makes this hub, in one file.

use std::fs;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_hub::data_folder;
use crate::cli::local_hub::no_hub;
use crate::cli::store_options::StoreOptions;
use crate::hub::backup::Backup;
use crate::hub::code_key::CodeKey;
use crate::hub::store::StoreLocation;
use crate::model::hub_records::Record;
use crate::model::text::counted;
use crate::model::time::Time;

/// Next to a running hub, or without one.
pub fn backup(call: &Call) -> CommandResult {
    let file = Path::new(call.args.positional(0).unwrap_or_default());
    let data = data_folder(call)?;
    let settings = StoreOptions::of(call, &data)?.settings(&data)?;
    let location = match settings.store {
        Some(etcd) => StoreLocation::Etcd(etcd),
        None if !data.join("certs").exists() => return Err(no_hub(&data)),
        None => StoreLocation::Folder(data.clone()),
    };
    let code_key = CodeKey::load_or_make(&data, settings.code_key_file.as_deref())?;
    let backup = call.say.during("  Reading the store", || Backup::of(&location, &code_key, &call.stop))?;
    call.say.during("  Writing the file", || backup.write(file))?;
    let count = backup.contents.records.len();
    call.say.value(&json!({ "file": file, "records": count, "madeAt": backup.made_at }));
    call.say.result(&format!(
        "[ok] {} has {}, the CA and the code key",
        file.display(),
        counted(count, "record")
    ));
    call.say.line("  This file is enough to control the hub: keep it secret");
    call.say.line("  Keep audit.log as well: restore reads from it what was revoked later");
    Ok(0)
}

pub fn restore(call: &Call) -> CommandResult {
    let file = Path::new(call.args.positional(0).unwrap_or_default());
    let data = data_folder(call)?;
    let backup = call.say.during("  Reading the file", || Backup::read(file))?;
    let events = events_since(&data, &backup);
    let revoked = events.as_ref().map(|events| revoked_in(events, &backup));
    call.say.during("  Writing the store", || backup.restore(&data, &call.stop))?;
    let count = backup.contents.records.len();
    call.say
        .value(&json!({ "data": data, "records": count, "madeAt": backup.made_at, "revokedSince": revoked }));
    call.say.result(&format!(
        "[ok] {} has {} of {}",
        data.display(),
        counted(count, "record"),
        backup.made_at
    ));
    if events.iter().flatten().any(|event| event["event"] == "ca.rotated") {
        call.say.warn("The hub's root was replaced after this backup. Machines that follow the new one refuse the old one, and need new keys");
    }
    call.say.warn(&format!("Keys and shares that were revoked after {} work again", backup.made_at));
    let with_data = call.args.value("data").map(|data| format!(" --data {data}")).unwrap_or_default();
    match revoked {
        Some(ids) if ids.is_empty() => call.say.line("  The audit log in this folder names none"),
        Some(ids) => {
            call.say.line("  The audit log in this folder names these. Before the hub starts:");
            for id in ids {
                let (command, option) =
                    if id.starts_with("key") { ("hub key", with_data.as_str()) } else { ("share", "") };
                call.say.result(&format!("    connect {command} revoke {id}{option}"));
            }
        }
        None => {
            call.say.line("  To have them listed, put the old audit.log into the folder, and restore then");
        }
    }
    call.say.line(&format!("  Start the hub: connect hub{with_data}"));
    Ok(0)
}

/// What the audit log in the folder says since the backup. `None` if there is none.
fn events_since(data: &Path, backup: &Backup) -> Option<Vec<Value>> {
    let entries = fs::read_dir(data).into_iter().flatten().flatten();
    let logs: Vec<String> = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect();
    let lines = logs.iter().flat_map(|log| log.lines());
    let events = lines.filter_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        let is_later = Time::parse(event["at"].as_str()?)? >= backup.made_at;
        is_later.then_some(event)
    });
    (!logs.is_empty()).then(|| events.collect())
}

/// The keys and shares of the backup that these events revoke.
fn revoked_in(events: &[Value], backup: &Backup) -> Vec<String> {
    let revoked = events.iter().filter_map(|event| {
        let field = event["event"].as_str()?.strip_suffix(".revoked")?;
        event[field].as_str().map(str::to_owned)
    });
    let is_live = |id: &String| {
        backup.contents.records.iter().any(|record| match record {
            Record::Key(key) => key.info.id == *id && key.info.revoked_at.is_none(),
            Record::Share(share) => share.info.id == *id,
            _ => false,
        })
    };
    revoked.filter(is_live).collect()
}
