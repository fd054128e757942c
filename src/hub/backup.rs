//! A hub's backup: one file with its CA, its code key and everything that its store holds. The end of the audit log, by
//! which a shortened log is found, is a record of the store.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use super::code_key::CodeKey;
use super::store::StoreContents;
use super::store::StoreLocation;
use super::store::open_unused;
use super::store::read_used;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::time::Time;
use crate::net::stop::Stop;
use crate::os::clock;
use crate::os::files;
use crate::os::secret;

/// The first line, before the SHA-256 of the rest.
const BACKUP_MARK: &str = "connect-hub-backup/1 ";
/// As much as a store can hold.
const BACKUP_LIMIT: u64 = 4 * 1024 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// Before the store was read: what was revoked at this time or later may work again.
    pub made_at: Time,
    code_key: String,
    pub contents: StoreContents,
}

impl Backup {
    /// Of a store that a hub may be using at this moment.
    pub fn of(location: &StoreLocation, code_key: &CodeKey, stop: &Stop) -> Result<Self> {
        let made_at = clock::now();
        let contents = read_used(location, stop)?;
        let ca =
            contents.ca.as_ref().ok_or_else(|| Error::new("This store has no CA, so no hub has used it"))?;
        if ca.code_key_id != code_key.id() {
            return Err(Error::new("The code key of this hub is missing")
                .hint("It is in the data folder of each hub of the fleet: --code-key-file FILE"));
        }
        Ok(Self { made_at, code_key: code_key.text().to_owned(), contents })
    }

    pub fn write(&self, file: &Path) -> Result<()> {
        let body = serde_json::to_string(self).or_say(|| "Cannot write the backup")?;
        files::write(file, format!("{BACKUP_MARK}{}\n{body}", secret::hash(&body)).as_bytes())
    }

    pub fn read(file: &Path) -> Result<Self> {
        let bytes = files::read_up_to(file, BACKUP_LIMIT)?;
        let bytes = bytes.ok_or_else(|| Error::new(format!("There is no {}", file.display())))?;
        let text = str::from_utf8(&bytes).ok().and_then(|text| text.strip_prefix(BACKUP_MARK));
        let (sum, body) = text.and_then(|text| text.split_once('\n')).ok_or_else(|| {
            Error::new(format!("{} is not a hub's backup of this version", file.display()))
                .hint("connect hub backup FILE makes one")
        })?;
        let whole = (secret::hash(body) == sum).then(|| serde_json::from_str(body).ok()).flatten();
        whole.ok_or_else(|| {
            Error::new(format!("{} is damaged", file.display())).hint("Use another copy; nothing was changed")
        })
    }

    /// Into a folder that holds nothing but audit logs, and reads it back.
    pub fn restore(&self, data: &Path, stop: &Stop) -> Result<()> {
        let entries = fs::read_dir(data).into_iter().flatten().flatten();
        let is_log = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b"audit");
        if let Some(other) = entries.into_iter().find(|entry| !is_log(entry)) {
            return Err(Error::new(format!("{} is not empty: it holds {}", data.display(), other.path().display()))
                .hint("Restore into another folder with --data DIR, or move this one away. Only audit logs may stay"));
        }
        let location = StoreLocation::Folder(data.to_owned());
        let mut store = open_unused(&location, stop)?;
        CodeKey::of(&self.code_key).write(data)?;
        store.replace(&self.contents)?;
        drop(store);
        if read_used(&location, stop)? != self.contents {
            return Err(Error::new(format!("{} does not hold what was written", data.display())));
        }
        Ok(())
    }
}
