//! Places at the hub of which each key has a few: connections that stay open, control channels, and one long answer at a
//! time. What somebody does with a share link counts for the key that made the share.

use std::collections::HashMap;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::os::lock::locked;

/// Connections of one key that stay open between requests. Any more get one answer, like those without a key.
const KEY_CONNECTIONS: usize = 64;
/// Control channels of one key: 100 agents with some processes each. One takes about 115 KiB.
const KEY_CHANNELS: usize = 256;
/// Control channels of one agent. Each process of its machine that exposes something has one.
const AGENT_CHANNELS: usize = 16;

pub struct KeyPlaces {
    pub connections: Places,
    pub channels: Places,
    /// By agent and not by key.
    pub agent_channels: Places,
    /// An answer that its reader takes slowly stays in memory until then.
    pub long_answers: Places,
}

impl Default for KeyPlaces {
    fn default() -> Self {
        let [connections, channels, agent_channels, long_answers] =
            [KEY_CONNECTIONS, KEY_CHANNELS, AGENT_CHANNELS, 1].map(Places::of);
        Self { connections, channels, agent_channels, long_answers }
    }
}

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
    fn of(of_each: usize) -> Self {
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
