//! The registry on one hub's disk: a snapshot, and a journal of the changes since.
//!
//! A change is on the disk before its answer is given. Each line of the journal carries a number and a
//! checksum. A last line without its end is what a crash leaves: it was never acknowledged, it is dropped
//! and said. Anything else that does not check out is damage, and the hub refuses to guess. The snapshot is
//! replaced whole; journal lines that it already holds are passed over, so a crash between the two steps
//! loses and repeats nothing.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use super::interface::CaPem;
use super::interface::CommitOutcome;
use super::interface::Store;
use super::interface::StoreContents;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::hub::code_key::CodeKey;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::registry::Registry;
use crate::os::files;
use crate::os::files::FileLock;
use crate::os::lock::locked;
use crate::os::secret;
use crate::wire::journal;
use crate::wire::journal::JournalEntry;
use crate::wire::journal::Snapshot;

/// A longer journal is folded into the snapshot, unless the snapshot is longer still: then folding waits, so
/// that a large hub does not write all it knows again for every few changes.
const JOURNAL_LIMIT: u64 = 4 * 1024 * 1024;
/// What the limits of the registry can add up to, and more; a larger file is not ours.
const STORE_FILE_LIMIT: u64 = 4 * 1024 * 1024 * 1024;

const CA_FILE: &str = "certs/ca.json";

/// How often a folder is read that its hub changes at the same time.
const READ_ATTEMPTS: usize = 5;

pub struct FileStore {
    folder: PathBuf,
    registry: Arc<Mutex<Registry>>,
    journal: File,
    /// Bytes of the journal that are whole lines.
    length: u64,
    /// Half a line may lie behind them, which must go before the next one is written.
    torn: bool,
    snapshot_length: u64,
    last: u64,
    _lock: FileLock,
}

impl FileStore {
    /// Reads all there is into `registry`. Also what the operator should hear about recovery.
    pub fn open(
        folder: &Path,
        lock: FileLock,
        shared: &Arc<Mutex<Registry>>,
    ) -> Result<(Self, Option<String>)> {
        files::remove_drafts(&folder.join("registry.json"));
        let found = FolderContents::read(folder, &mut locked(shared))?;
        let path = folder.join("journal");
        let journal = files::append(&path)?;
        let FolderContents { last, whole, torn, snapshot_length } = found;
        if torn > 0 {
            journal
                .set_len(whole)
                .and_then(|()| journal.sync_all())
                .or_say(|| "Cannot repair the journal")?;
        }
        let note = (torn > 0).then(|| {
            format!(
                "The journal's last line was torn by a crash ({torn} bytes); nothing acknowledged is lost"
            )
        });
        let store = Self {
            folder: folder.to_owned(),
            registry: Arc::clone(shared),
            journal,
            length: whole,
            torn: false,
            snapshot_length,
            last,
            _lock: lock,
        };
        Ok((store, note))
    }

    /// Returns when the changes are on the disk. After an error nothing of them is.
    fn journal(&mut self, changes: Vec<Change>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        // Half a line in the middle would be damage: it is taken back at once or, where that fails, before
        // anything else is written.
        if self.torn {
            self.journal.set_len(self.length).or_say(|| "Cannot repair the journal")?;
            self.torn = false;
        }
        let entry = JournalEntry { n: self.last + 1, changes };
        let line = journal::write(&entry, checksum).or_say(|| "Cannot write a change")?;
        let written = self.journal.write_all(&line).and_then(|()| self.journal.sync_data());
        if let Err(error) = written {
            self.torn = self.journal.set_len(self.length).is_err();
            return Err(Error::new("The hub cannot write to its data folder")
                .because(error)
                .hint(format!("Look at the disk: df -h {}", self.folder.display())));
        }
        self.length += line.len() as u64;
        self.last = entry.n;
        Ok(())
    }

    /// Whether the journal has grown so long that a new snapshot should replace it.
    fn wants_snapshot(&self) -> bool {
        self.length > JOURNAL_LIMIT.max(self.snapshot_length)
    }

    /// Folds the journal into a new snapshot of everything that is true now.
    pub fn snapshot(&mut self, records: Vec<Record>) -> Result<()> {
        let snapshot = Snapshot { version: 1, n: self.last, records };
        let bytes = serde_json::to_vec(&snapshot).or_say(|| "Cannot write the snapshot")?;
        files::write(&self.folder.join("registry.json"), &bytes)?;
        self.journal
            .set_len(0)
            .and_then(|()| self.journal.sync_all())
            .or_say(|| "Cannot empty the journal")?;
        self.length = 0;
        self.snapshot_length = bytes.len() as u64;
        Ok(())
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<StoreContents> {
        contents(&self.folder, &locked(&self.registry))
    }

    fn replace(&mut self, contents: &StoreContents) -> Result<()> {
        self.snapshot(contents.records.clone())?;
        {
            let mut registry = locked(&self.registry);
            *registry = Registry::default();
            for record in &contents.records {
                registry.apply(Change::Put(record.clone()));
            }
        }
        if let Some(ca) = &contents.ca {
            write_ca(&self.folder, ca)?;
        }
        Ok(())
    }

    fn commit(&mut self, changes: Vec<Change>, _: u64) -> Result<CommitOutcome> {
        self.journal(changes.iter().filter(|change| !change.key().0.is_presence()).cloned().collect())?;
        let records: Option<Vec<Record>> = {
            let mut registry = locked(&self.registry);
            for change in changes {
                registry.apply(change);
            }
            self.wants_snapshot().then(|| registry.records().collect())
        };
        if let Some(records) = records
            && let Err(error) = self.snapshot(records)
        {
            log::error!("the journal grows on: {error}");
        }
        Ok(CommitOutcome::Done)
    }
}

/// What a hub may be changing right now. The journal is read before the snapshot, so what is folded in between is in both.
/// A journal that is emptied while it is read looks damaged; the next read finds another.
pub fn read_folder(folder: &Path) -> Result<StoreContents> {
    let read = || {
        let mut registry = Registry::default();
        FolderContents::read(folder, &mut registry)?;
        contents(folder, &registry)
    };
    (1..READ_ATTEMPTS).find_map(|_| read().ok()).map_or_else(read, Ok)
}

fn contents(folder: &Path, registry: &Registry) -> Result<StoreContents> {
    let ca = load_ca(folder, CodeKey::load_or_make(folder, None)?.id())?;
    Ok(StoreContents { records: registry.records().collect(), ca })
}

pub fn load_ca(folder: &Path, code_key_id: String) -> Result<Option<CaPem>> {
    let path = folder.join(CA_FILE);
    let Some(stored) = files::read(&path)? else { return Ok(None) };
    let ca: CaPem = serde_json::from_slice(&stored).map_err(|error| {
        Error::new(format!("{} is damaged", path.display())).because(error).hint(
            "Restore it from a backup. Without it every client needs a new key: move the certs folder away and start again",
        )
    })?;
    Ok(Some(CaPem { code_key_id, ..ca }))
}

pub fn write_ca(folder: &Path, ca: &CaPem) -> Result<()> {
    let path = folder.join(CA_FILE);
    files::private_dir(path.parent().unwrap_or(folder))?;
    files::write(&path, &serde_json::to_vec(ca).or_say(|| "Cannot write the CA")?)
}

/// How much of the two files was read, in bytes.
struct FolderContents {
    /// The number of the last entry.
    last: u64,
    whole: u64,
    torn: u64,
    snapshot_length: u64,
}

impl FolderContents {
    /// Reads all there is into `registry`.
    fn read(folder: &Path, registry: &mut Registry) -> Result<Self> {
        let path = folder.join("journal");
        let bytes = files::read_up_to(&path, STORE_FILE_LIMIT)?.unwrap_or_default();
        let (mut last, mut snapshot_length) = (0, 0);
        if let Some((snapshot, length)) = read_snapshot(&folder.join("registry.json"))? {
            snapshot_length = length;
            last = snapshot.n;
            for record in snapshot.records {
                registry.apply(Change::Put(record));
            }
        }
        let (entries, whole) = journal::read(&bytes, last, checksum).map_err(|line| {
            Error::new(format!("{} is damaged at line {line}", path.display())).hint(
                "Restore the hub's data folder from a backup; the snapshot next to it is older but whole",
            )
        })?;
        for entry in entries {
            last = entry.n;
            for change in entry.changes {
                registry.apply(change);
            }
        }
        Ok(Self { last, whole, torn: bytes.len() as u64 - whole, snapshot_length })
    }
}

fn checksum(json: &[u8]) -> String {
    secret::sha256(json).to_string()[..journal::CHECKSUM_DIGITS].to_owned()
}

fn read_snapshot(path: &Path) -> Result<Option<(Snapshot, u64)>> {
    let Some(bytes) = files::read_up_to(path, STORE_FILE_LIMIT)? else { return Ok(None) };
    let snapshot: Snapshot = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(format!("{} is damaged", path.display()))
            .because(error)
            .hint("Restore the hub's data folder from a backup")
    })?;
    if snapshot.version != 1 {
        return Err(Error::new(format!("{} was written by another version of connect", path.display()))
            .hint("Run the version that wrote it, or a newer one"));
    }
    Ok(Some((snapshot, bytes.len() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_holds_all_and_the_journal_begins_anew() {
        let folder = std::env::temp_dir().join(secret::id("connect-store"));
        files::private_dir(&folder).unwrap();
        let open = || {
            let lock = files::try_lock(&folder.join("hub.lock")).unwrap().unwrap();
            let registry = Arc::default();
            (FileStore::open(&folder, lock, &registry).unwrap(), registry)
        };
        let ((mut store, _), registry) = open();
        for n in 0..20_u64 {
            let device = crate::model::hub_records::Device {
                code_hash: format!("C{n}"),
                address: std::net::IpAddr::from([192, 0, 2, 1]),
                asked_at: crate::model::time::Time::from_unix(n),
                secret_hash: String::new(),
                label: String::new(),
                expires_at: crate::model::time::Time::from_unix(n),
                approved: None,
            };
            store.commit(vec![Change::Put(Record::Device(device))], 0).unwrap();
            if n == 9 {
                let records = locked(&registry).records().collect();
                store.snapshot(records).unwrap();
            }
        }
        drop(store);
        let ((_, note), registry) = open();
        assert_eq!(locked(&registry).devices().count(), 20);
        assert!(note.is_none());
    }
}
