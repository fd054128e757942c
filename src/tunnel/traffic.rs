//! How much an exposed service carries, for `connect status`.

use std::sync::atomic::AtomicU64;

#[derive(Debug, Default)]
pub struct TrafficCounters {
    /// Sessions that are open now.
    pub sessions: AtomicU64,
    /// Bytes carried so far, in both directions.
    pub bytes: AtomicU64,
}
