//! The key under which the hub hashes share codes. Codes are short, so a bare hash would give them away to anybody who reads
//! the journal, a backup or etcd. The key is in a file of its own and never in the store.

use std::path::Path;

use crate::error::OrSay;
use crate::error::Result;
use crate::os::files;
use crate::os::secret;

const CODE_KEY_FILE: &str = "code.key";

#[derive(Debug)]
pub struct CodeKey {
    secret: String,
    is_new: bool,
}

impl CodeKey {
    /// From the named file, which must exist, else from the data folder; else a new one, which `keep` writes.
    pub fn load_or_make(data: &Path, named: Option<&Path>) -> Result<Self> {
        let text = match named {
            // Secrets in containers are behind links, which our own state files must not be.
            Some(file) => Some(std::fs::read_to_string(file).or_say(|| "Cannot read the code key")?),
            None => files::read_text(&data.join(CODE_KEY_FILE))?,
        };
        let is_new = text.is_none();
        Ok(Self { secret: text.map_or_else(secret::secret, |text| text.trim().to_owned()), is_new })
    }

    /// As `text` has given it.
    pub fn of(text: &str) -> Self {
        Self { secret: text.to_owned(), is_new: false }
    }

    pub fn text(&self) -> &str {
        &self.secret
    }

    /// Writes a new key into the data folder.
    pub fn keep(&self, data: &Path) -> Result<()> {
        if self.is_new { self.write(data) } else { Ok(()) }
    }

    pub fn write(&self, data: &Path) -> Result<()> {
        files::write(&data.join(CODE_KEY_FILE), format!("{}\n", self.secret).as_bytes())
    }

    /// What the store keeps of a code. The workspace is part of it: a code is unique within its workspace.
    pub fn hash(&self, workspace: &str, code: &str) -> String {
        secret::sign(&self.secret, &hashed(workspace, code))
    }

    /// Whether `hash` is that of the code.
    pub fn is_hash(&self, hash: &str, workspace: &str, code: &str) -> bool {
        secret::is_signed(&self.secret, &hashed(workspace, code), hash)
    }

    /// Tells two keys apart and reveals nothing of them.
    pub fn id(&self) -> String {
        secret::sign(&self.secret, "")
    }
}

fn hashed(workspace: &str, code: &str) -> String {
    format!("{workspace}\n{code}")
}
