//! What the hub remembers: the registry in memory, and the store that outlives it.
//!
//! A change is decided on the current registry, written to the store, and only then visible. Writers queue on the
//! store's lock; readers never wait for a disk or a network.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::refusal::Refusal;
use super::store::CommitOutcome;
use super::store::Store;
use crate::error::Error;
use crate::model::hub_records::Change;
use crate::model::registry::Registry;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::os::secret;

/// A change that other hubs keep overtaking is given up after this long.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts. Each pause is random, so that no hub is always the slower one.
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(5);

pub struct Records {
    registry: Arc<Mutex<Registry>>,
    store: Mutex<Box<dyn Store>>,
    /// Whether other hubs change the same store.
    is_fleet: bool,
    /// Whether a change did not reach this hub's disk. Whoever sees that it can be written again resets it.
    pub has_failed: AtomicBool,
    stop: Stop,
}

/// The result of a decision: the changes to write, and a value for the caller.
pub type ChangeDecision<T> = Result<(Vec<Change>, T), Refusal>;

impl Records {
    pub fn new(registry: Arc<Mutex<Registry>>, store: Box<dyn Store>, is_fleet: bool, stop: &Stop) -> Self {
        Self {
            registry,
            store: Mutex::new(store),
            is_fleet,
            has_failed: AtomicBool::new(false),
            stop: stop.clone(),
        }
    }

    /// The registry, for reading and for what no store holds. The lock is held only briefly and never across I/O.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        locked(&self.registry)
    }

    /// Decides on the current registry and writes the changes. If another hub was first, decides again: `decide` may run
    /// several times and must have no effect of its own.
    ///
    /// The store's lock is held from the decision until the changes are visible, so no two changes of this hub overlap.
    pub fn change<T>(&self, mut decide: impl FnMut(&Registry) -> ChangeDecision<T>) -> Result<T, Refusal> {
        let mut store = locked(&self.store);
        let deadline = Instant::now() + DECISION_TIMEOUT;
        while Instant::now() < deadline {
            let mark = store.mark();
            let (changes, value) = decide(&self.registry())?;
            if changes.is_empty() {
                return Ok(value);
            }
            match store.commit(changes, mark) {
                Ok(CommitOutcome::Done) => return Ok(value),
                // The other hub's change may not have arrived here yet.
                Ok(CommitOutcome::Overtaken) => {
                    self.stop.wait_for(OVERTAKEN_PAUSE * (secret::number() % 100) / 100);
                }
                Err(error) => return Err(self.not_written(&error)),
            }
        }
        Err(self.not_written(&Error::new("other hubs were faster each time")))
    }

    /// Like `change`, but if the store cannot be written, the changes apply to this hub's registry all the same.
    pub fn change_anyway(&self, decide: impl Fn(&Registry) -> Vec<Change>) {
        if self.change(|registry| Ok((decide(registry), ()))).is_err() {
            let mut registry = self.registry();
            for change in decide(&registry) {
                registry.apply(change);
            }
        }
    }

    fn not_written(&self, error: &Error) -> Refusal {
        log::error!("a change was refused: {error}");
        if self.is_fleet {
            return Refusal::FleetStoreAway;
        }
        self.has_failed.store(true, Ordering::Relaxed);
        Refusal::StoreFailed
    }
}
