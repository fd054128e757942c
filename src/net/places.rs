//! Places of which everybody has a few: a key at the hub, an address at a listener.

use std::collections::HashMap;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::os::lock::locked;

pub struct Places {
    of_each: usize,
    taken: Mutex<HashMap<String, usize>>,
    freed: Condvar,
}

/// Dropping it gives the place back.
pub struct Place<'p> {
    places: &'p Places,
    key: String,
}

impl Places {
    pub fn of(of_each: usize) -> Self {
        Self { of_each, taken: Mutex::default(), freed: Condvar::new() }
    }

    /// A place of this key, if one becomes free within `patience`.
    pub fn take(&self, key: String, patience: Duration) -> Option<Place<'_>> {
        let is_full = |taken: &mut HashMap<String, usize>| taken.get(&key).copied() >= Some(self.of_each);
        let waited = self.freed.wait_timeout_while(locked(&self.taken), patience, is_full);
        let (mut taken, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && is_full(&mut taken) {
            return None;
        }
        *taken.entry(key.clone()).or_default() += 1;
        Some(Place { places: self, key })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = locked(&self.places.taken);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
        self.places.freed.notify_all();
    }
}
