//! The state folder, and the lock under which its files are changed.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::files;
use crate::os::paths;

#[derive(Clone, Debug)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    pub fn find() -> Self {
        Self { folder: paths::home() }
    }

    #[cfg(test)]
    pub fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `None` if there is no such file. A damaged file is an error that names it.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.file(name);
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::new(format!("{} is damaged", path.display()))
                .because(error)
                .hint(format!("Fix it, or move it away: mv {0} {0}.old", path.display()))
        })
    }

    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        files::write(&self.file(name), &json_text(name, value)?)
    }

    /// Like `write`, but does not wait for the disk.
    pub fn write_unsynced<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        files::write_unsynced(&self.file(name), &json_text(name, value)?)
    }

    /// Reads, changes and writes one file; the lock keeps other processes out meanwhile.
    pub fn update<T: Serialize + DeserializeOwned + Default, R>(
        &self,
        name: &str,
        change: impl FnOnce(&mut T) -> R,
    ) -> Result<R> {
        let _lock = self.lock()?;
        let mut value = self.read(name)?.unwrap_or_default();
        let result = change(&mut value);
        self.write(name, &value)?;
        Ok(result)
    }

    /// Refuses a state folder that another user could change.
    pub fn check(&self) -> Result<()> {
        files::check_dir(&self.folder)
    }

    pub fn lock(&self) -> Result<files::FileLock> {
        files::private_dir(&self.folder)?;
        files::lock(&self.file(".lock"))
    }
}

pub fn json_text<T: Serialize>(name: &str, value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).or_say(|| format!("Cannot write {name}"))?;
    text.push(b'\n');
    Ok(text)
}
