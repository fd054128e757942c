//! What a store does, whatever is below it.

use serde::Deserialize;
use serde::Serialize;

use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::time::Time;

pub trait Store: Send {
    /// Everything that lasts, as it moves to another store.
    fn load(&mut self) -> Result<StoreContents>;

    /// Keeps what was decided on the registry as it was at `mark`, and shows it there. After an error nothing of it
    /// is kept, or, if the store did not answer, nobody knows.
    fn commit(&mut self, changes: Vec<Change>, mark: u64) -> Result<CommitOutcome>;

    /// Drops everything and keeps this instead.
    fn replace(&mut self, contents: &StoreContents) -> Result<()>;

    /// Another number whenever somebody else has changed the registry.
    fn mark(&self) -> u64 {
        0
    }
}

/// What became of changes that were to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// They are kept, and the registry in memory shows them.
    Done,
    /// Somebody else was first. The registry shows that now: decide again.
    Overtaken,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreContents {
    pub records: Vec<Record>,
    pub ca: Option<CaPem>,
}

/// The hub's CA as every store keeps it, whole and in one place: a rotation has happened or it has not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaPem {
    pub key: String,
    pub certificate: String,
    /// Which code key the share codes are hashed under. The key itself is in no store.
    pub code_key_id: String,
    pub replaced: Option<ReplacedRoot>,
}

/// The root before, and what it has signed: the key of the one that replaced it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplacedRoot {
    pub certificate: String,
    pub cross_signed: String,
    pub until: Time,
}

impl StoreContents {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.ca.is_none()
    }
}
