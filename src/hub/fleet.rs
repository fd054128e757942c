//! What a hub of a fleet knows about it: its copy of etcd, and whether this one is fenced.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::store::Gateway;
use super::store::Replica;

pub struct Fleet {
    pub replica: Arc<Replica>,
    pub gateway: Gateway,
    is_fenced: AtomicBool,
}

impl Fleet {
    pub fn new(replica: Arc<Replica>, gateway: Gateway) -> Self {
        Self { replica, gateway, is_fenced: AtomicBool::new(false) }
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
