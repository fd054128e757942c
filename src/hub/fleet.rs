//! What a hub of a fleet knows about it: its copy of etcd, how another hub proves itself, and whether this one is
//! fenced.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use rustls::ClientConfig;

use super::ca::Ca;
use super::store::Gateway;
use super::store::Replica;
use crate::error::Result;
use crate::model::hub_trust::HubTrust;
use crate::tls::trust;

pub struct Fleet {
    pub replica: Arc<Replica>,
    pub gateway: Gateway,
    /// How another hub proves that it is one of us.
    pub tls: Arc<ClientConfig>,
    is_fenced: AtomicBool,
}

impl Fleet {
    pub fn new(replica: Arc<Replica>, gateway: Gateway, ca: &Ca) -> Result<Self> {
        // Never by public names: a hub that somebody wrote into etcd would be sent the joiners' keys.
        let tls = trust::hub_client(&HubTrust::Pin(ca.pin()))?;
        Ok(Self { replica, gateway, tls, is_fenced: AtomicBool::new(false) })
    }

    /// Whether this hub has lost etcd and another one has not. Then it serves only its own machine.
    pub fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Relaxed)
    }

    /// Returns what it was before.
    pub fn set_fenced(&self, is_fenced: bool) -> bool {
        self.is_fenced.swap(is_fenced, Ordering::Relaxed)
    }
}
