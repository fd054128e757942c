//! From one store to another: every record that lasts, and the CA, so that no client notices.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::Etcd;
use super::EtcdConfig;
use super::FileStore;
use super::Store;
use super::etcd::clear;
use super::etcd::find;
use super::etcd::found_or_put;
use super::gateway::Gateway;
use super::replica::TRANSACTION_CHANGES;
use crate::error::Error;
use crate::error::Result;
use crate::hub::ca::FLEET_CA_KEY;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::net::stop::Stop;
use crate::os::files;
use crate::os::files::FileLock;
use crate::os::lock::locked;

pub enum StoreLocation {
    Folder(PathBuf),
    Etcd(EtcdConfig),
}

/// Key and certificate as PEM.
type CaAsPem = (String, String);

/// What a store holds.
#[derive(PartialEq, Eq)]
pub struct StoreContents {
    pub records: Vec<Record>,
    ca: Option<CaAsPem>,
}

impl StoreContents {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.ca.is_none()
    }
}

impl StoreLocation {
    /// All there is; no hub may be changing it meanwhile.
    pub fn read(&self, stop: &Stop) -> Result<StoreContents> {
        let registry = Arc::default();
        let ca = match self {
            Self::Folder(folder) => {
                let lock = lock(folder)?;
                drop(FileStore::open(folder, lock, &registry)?);
                let pem = |name: &str| files::read_text(&folder.join("certs").join(name));
                pem("ca.key")?.zip(pem("ca.crt")?)
            }
            Self::Etcd(at) => {
                let (_, mut gateway) = Etcd::open(at, None, &registry, stop)?;
                let hubs = locked(&registry).hub_urls();
                if !hubs.is_empty() {
                    return Err(Error::new(format!("The fleet's hubs are running: {}", hubs.join(" ")))
                        .hint("Stop them first; nothing was changed"));
                }
                let found = find(&mut gateway, FLEET_CA_KEY)?;
                found.and_then(|found| serde_json::from_slice(&found).ok())
            }
        };
        let records = locked(&registry).records().collect();
        Ok(StoreContents { records, ca })
    }

    /// Drops what is there and writes this.
    pub fn write(&self, contents: &StoreContents, stop: &Stop) -> Result<()> {
        let registry = Arc::default();
        let ca = contents.ca.as_ref();
        match self {
            Self::Folder(folder) => {
                let lock = lock(folder)?;
                let (mut store, _) = FileStore::open(folder, lock, &registry)?;
                store.snapshot(contents.records.clone())?;
                let certificates = folder.join("certs");
                files::private_dir(&certificates)?;
                for (name, pem) in ca.into_iter().flat_map(|(key, crt)| [("ca.key", key), ("ca.crt", crt)]) {
                    files::write(&certificates.join(name), pem.as_bytes())?;
                }
            }
            Self::Etcd(at) => {
                clear(&mut Gateway::new(at, stop)?)?;
                let (mut store, mut gateway) = Etcd::open(at, None, &registry, stop)?;
                for some in contents.records.chunks(TRANSACTION_CHANGES) {
                    let mark = store.mark();
                    store.commit(some.iter().cloned().map(Change::Put).collect(), mark)?;
                }
                if let Some(ca) = ca {
                    found_or_put(&mut gateway, FLEET_CA_KEY, || Ok(json!(ca).to_string()))?;
                }
            }
        }
        Ok(())
    }
}

fn lock(folder: &std::path::Path) -> Result<FileLock> {
    files::private_dir(folder)?;
    files::try_lock(&folder.join("hub.lock"))?.ok_or_else(|| {
        Error::new("A hub runs on this data folder")
            .because(folder.display().to_string())
            .hint("Stop it first; nothing was changed")
    })
}
