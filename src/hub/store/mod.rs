//! Where the registry is kept: on this hub's disk, or in an etcd that several hubs share.

mod etcd;
mod file;
mod gateway;
#[cfg(feature = "fleet")]
pub mod migrate;
mod replica;

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::registry::Registry;
use crate::net::stop::Stop;
use crate::os::files;

pub use etcd::Etcd;
pub use etcd::found_or_put;
pub use file::FileStore;
pub use gateway::EtcdConfig;
pub use gateway::EtcdEndpoint;
pub use gateway::Gateway;
pub use gateway::number;
pub use replica::Replica;

/// What became of changes that were to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// They are kept, and the registry in memory shows them.
    Done,
    /// Somebody else was first. The registry shows that now: decide again.
    Overtaken,
}

pub trait Store: Send {
    /// Stands for the registry in memory as it is now; another when somebody else has changed it.
    fn mark(&self) -> u64 {
        0
    }

    /// Keeps what was decided on the registry as it was at `mark`. After an error nothing of it is kept, or,
    /// if the store did not answer, nobody knows.
    fn commit(&mut self, changes: Vec<Change>, mark: u64) -> Result<CommitOutcome>;
}

/// A store that is open.
pub struct OpenStore {
    pub store: Box<dyn Store>,
    pub registry: Arc<Mutex<Registry>>,
    /// What keeps this hub's copy of a shared store fresh.
    pub shared: Option<(Arc<Replica>, Gateway)>,
    /// What the operator should hear about recovery.
    pub note: Option<String>,
}

/// `None` when another process has the data folder.
pub fn open(data: &Path, shared: Option<&EtcdConfig>, stop: &Stop) -> Result<Option<OpenStore>> {
    files::private_dir(data)?;
    let Some(lock) = files::try_lock(&data.join("hub.lock"))? else { return Ok(None) };
    let registry = Arc::default();
    let Some(at) = shared else {
        let (store, note) = FileStore::open(data, lock, &registry)?;
        return Ok(Some(OpenStore { store: Box::new(store), registry, shared: None, note }));
    };
    let (store, gateway) = Etcd::open(at, Some(lock), &registry, stop)?;
    let shared = Some((Arc::clone(&store.replica), gateway));
    Ok(Some(OpenStore { store: Box::new(store), registry, shared, note: None }))
}
