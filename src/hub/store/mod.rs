//! Where the registry is kept: on this hub's disk, or in an etcd that several hubs share.

mod etcd;
mod file;
mod gateway;
mod interface;
mod replica;
mod watch;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use crate::error::Error;
use crate::error::Result;
use crate::model::registry::Registry;
use crate::net::stop::Stop;
use crate::os::files;
use crate::os::lock::locked;

use etcd::EtcdStore;
use file::FileStore;

pub use etcd::load_or_put_ca;
pub use etcd::replace_ca;
pub use file::load_ca;
pub use file::write_ca;
pub use gateway::EtcdConfig;
pub use gateway::EtcdEndpoint;
pub use gateway::Gateway;
pub use gateway::number;
pub use interface::CaPem;
pub use interface::CommitOutcome;
pub use interface::ReplacedRoot;
pub use interface::Store;
pub use interface::StoreContents;
pub use replica::Replica;

/// A store that is open, and what a hub needs beside it.
pub struct OpenStore {
    pub store: Box<dyn Store>,
    pub registry: Arc<Mutex<Registry>>,
    /// This hub's copy of a shared store, and a connection to it.
    pub shared: Option<(Arc<Replica>, Gateway)>,
    /// What the operator should hear about recovery.
    pub note: Option<String>,
}

/// Locked while a hub, or a command in its place, uses the data folder.
const LOCK_FILE: &str = "hub.lock";

pub fn is_in_use(data: &Path) -> bool {
    files::is_locked(&data.join(LOCK_FILE))
}

/// Opens a hub's store. `None` when another process has the data folder.
pub fn open(data: &Path, shared: Option<&EtcdConfig>, stop: &Stop) -> Result<Option<OpenStore>> {
    files::private_dir(data)?;
    let Some(lock) = files::try_lock(&data.join(LOCK_FILE))? else { return Ok(None) };
    let registry = Arc::default();
    let Some(config) = shared else {
        let (store, note) = FileStore::open(data, lock, &registry)?;
        return Ok(Some(OpenStore { store: Box::new(store), registry, shared: None, note }));
    };
    let store = EtcdStore::open(config, Some(lock), &registry, stop)?;
    let shared = Some((Arc::clone(&store.replica), store.gateway()));
    Ok(Some(OpenStore { store: Box::new(store), registry, shared, note: None }))
}

/// Where a store is, for moving it.
pub enum StoreLocation {
    Folder(PathBuf),
    Etcd(EtcdConfig),
}

/// Everything in a store that hubs may be using: what was acknowledged before this call, and some of what comes during it.
pub fn read_used(location: &StoreLocation, stop: &Stop) -> Result<StoreContents> {
    let registry = Arc::default();
    match location {
        StoreLocation::Folder(folder) => file::read_folder(folder),
        StoreLocation::Etcd(config) => EtcdStore::open(config, None, &registry, stop)?.load(),
    }
}

/// Opens a store that no hub may be using.
pub fn open_unused(location: &StoreLocation, stop: &Stop) -> Result<Box<dyn Store>> {
    match location {
        StoreLocation::Folder(folder) => match open(folder, None, stop)? {
            Some(open) => Ok(open.store),
            None => Err(Error::new("A hub runs on this data folder")
                .because(folder.display().to_string())
                .hint("Stop it first; nothing was changed")),
        },
        StoreLocation::Etcd(config) => {
            let registry = Arc::default();
            let store = EtcdStore::open(config, None, &registry, stop)?;
            let hubs = locked(&registry).hub_urls();
            if !hubs.is_empty() {
                return Err(Error::new(format!("The fleet's hubs are running: {}", hubs.join(" ")))
                    .hint("Stop them first; nothing was changed"));
            }
            Ok(Box::new(store))
        }
    }
}
